"""Group sampling with vLLM, in the trainer's own process. The only file that imports vllm.

An engine is opened on a model folder, fed weights by ``load``, and asked by ``generate``. It works
without a trainer too (evaluation, distillation). What it promises:

- the prompt ids that the engine used equal ours, or it raises;
- ids that stand for pixels, or that have no tokenizer entry, are never sampled;
- a request's seed is the caller's, so samples depend neither on ranks nor on batching order;
- caches are empty when a call starts, so a resumed run samples the same answers;
- the trainer's random generators stay as they were.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from ovlt.config import EngineConfig, SoloEngineConfig
from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.load import ModelFolder
from ovlt.rollout.engine import Completion, Engine, Sampling
from ovlt.system import quiet
from ovlt.system.ahead import ahead
from ovlt.system.rng import guarded_rng
from ovlt.types import Prompt

# Log-probs after temperature and bans: the distribution that was sampled from, which is what the
# trainer corrects by.
LOGPROBS_MODE = "processed_logprobs"
_QUEUED = 8  # prompts that wait in the engine beyond those that fill its sequence slots
_RENDERED = 8  # prompts of a stream whose images are patches before the engine has room for them
BAN = -100.0  # added to a logit; e^-100 vanishes in float32, and no -inf reaches a log-prob


def engine_settings(
    device: torch.device,
    config: EngineConfig,
    solo: SoloEngineConfig | None,
    *,
    max_model_len: int,
) -> dict[str, Any]:
    """Return vLLM's settings by device; ``solo`` if no trainer shares it. The one such table."""
    common: dict[str, Any] = {
        "max_model_len": max_model_len,
        "max_num_seqs": (solo.max_sequences if solo else 0) or config.max_sequences,
        "logprobs_mode": LOGPROBS_MODE,
        "mm_processor_cache_gb": 0,  # an image is used once per step; the cache can desynchronise
        "generation_config": "vllm",  # no sampling default out of the model folder
        "trust_remote_code": False,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    if device.type == "cpu":
        return common | {
            "enforce_eager": True,
            "skip_mm_profiling": True,
            # A per-request seed and a partial prefill do not go together on a CPU.
            "enable_chunked_prefill": False,
            # Without chunks a prompt must fit into one batch; 4,096 keeps short ones together.
            "max_num_batched_tokens": max(max_model_len, 4096),
            "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
        }
    tensor_parallel = solo.tensor_parallel if solo else 1
    settings = common | {
        "gpu_memory_utilization": solo.gpu_memory if solo else config.gpu_memory,
        "enable_sleep_mode": solo is None,
        "tensor_parallel_size": tensor_parallel,
    }
    if "LOCAL_RANK" in os.environ and tensor_parallel == 1:
        # One engine per torchrun rank, each on the rank's own GPU.
        settings["distributed_executor_backend"] = "external_launcher"
    return settings


class _Waiting(NamedTuple):
    """A prompt that the engine is at work on; its pixels are the engine's."""

    place: int  # among the prompts
    request: str  # what vLLM calls it
    id: str
    token_ids: np.ndarray


class _Rendered(NamedTuple):
    """A prompt with what vLLM takes of it."""

    prompt: Prompt
    seed: int
    inputs: Any


class VllmEngine(Engine):
    """vLLM, in process."""

    def __init__(
        self,
        folder: ModelFolder,
        settings: dict[str, Any],
        *,
        device: torch.device,
        dtype: torch.dtype,
        max_images: int,
        shares_device: bool,
    ):
        self.folder, self.device = folder, device
        self._max_sequences = int(settings["max_num_seqs"])
        self._can_sleep = device.type == "cuda" and shares_device
        # A model without a vision tower knows no such limit.
        images = {"limit_mm_per_prompt": {"image": max(1, max_images), "video": 0}}
        # The lines that are dropped are those of vLLM's CPU worker.
        noise = quiet.without_noise() if device.type == "cpu" else contextlib.nullcontext()
        try:
            with guarded_rng(), noise:
                self.llm = LLM(
                    model=str(folder.path),
                    dtype=str(dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
                    **(images if folder.patchify else {}),
                    **settings,
                )
        except ValueError as error:  # of the model, or of sizes that do not fit its memory
            raise ValueError(
                f"vLLM cannot open {folder.path}: {error} (the keys are those of [engine]: "
                "gpu_memory, kv_cache_gib, max_sequences)"
            ) from error
        self._bans = dict.fromkeys(folder.banned, BAN)
        self.sleep()

    def generate(
        self, prompts: Iterable[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Implement ``Engine.generate``.

        Raises RuntimeError if the engine changed a prompt or its caches cannot be emptied.
        """
        completions: list[list[Completion]] = [[] for _ in seeds]
        inputs = self._rendered(zip(prompts, seeds, strict=True))
        for place, group in self._sampled(inputs, sampling):
            completions[place] = group
        return completions

    def stream(
        self, prompts: Iterable[tuple[Prompt, int]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Implement ``Engine.stream``; raises as ``generate`` does.

        Images become patches in a thread, which takes the prompts, so that the engine does not
        stand still meanwhile.
        """
        return self._sampled(ahead(self._rendered(prompts), _RENDERED), sampling)

    def _rendered(self, prompts: Iterable[tuple[Prompt, int]]) -> Iterator[_Rendered]:
        """Yield each prompt with its seed and with what vLLM's processor makes of it."""
        for prompt, seed in prompts:
            # What LLM.enqueue does first; vLLM offers this step alone under no public name.
            yield _Rendered(prompt, seed, self.llm._preprocess_cmpl_one(self._request(prompt)))

    def _sampled(
        self, rendered: Iterator[_Rendered], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (place, completions) of each prompt as it is finished."""
        self.reset_caches()
        upcoming = enumerate(rendered)
        # Enough that no sequence slot waits for a prompt, and no more: vLLM keeps the patches of
        # a waiting prompt as floats, four times the size of its pixels.
        room = math.ceil(self._max_sequences / sampling.n) + _QUEUED
        waiting: dict[str, _Waiting] = {}  # by the name of the request
        try:
            while self._fill(waiting, room, upcoming, sampling):
                since = time.perf_counter()
                with guarded_rng():
                    outputs = self.llm.llm_engine.step()
                self.busy_s += time.perf_counter() - since
                for output in outputs:
                    if output.finished:
                        asked = waiting.pop(output.request_id)
                        yield asked.place, _checked(asked, output)
        except BaseException:
            requests = [asked.request for asked in waiting.values()]
            self.llm.llm_engine.abort_request(requests, internal=True)
            raise

    def _fill(
        self,
        waiting: dict[str, _Waiting],
        room: int,
        upcoming: Iterator[tuple[int, _Rendered]],
        sampling: Sampling,
    ) -> bool:
        """Give the engine prompts until it has ``room`` of them; whether it has any."""
        with guarded_rng():
            for place, entry in itertools.islice(upcoming, max(0, room - len(waiting))):
                params = self._params(sampling, entry.seed)
                params.output_kind = RequestOutputKind.FINAL_ONLY
                name = str(next(self.llm.request_counter))
                # To the name that the outputs have, vLLM adds letters within itself.
                request = self.llm.llm_engine.add_request(name, entry.inputs, params)
                prompt = entry.prompt
                waiting[name] = _Waiting(place, request, prompt.id, prompt.token_ids)
        return bool(waiting)

    def _params(self, sampling: Sampling, seed: int) -> SamplingParams:
        greedy = sampling.temperature == 0
        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            top_k=0 if greedy else sampling.top_k,
            seed=None if greedy else seed,
            max_tokens=sampling.max_tokens,
            logprobs=0,  # the log-prob of the sampled token alone
            logit_bias=self._bans,  # ids that no response may hold
            # What the chat template writes; the tokenizer's eos may be another.
            stop_token_ids=[] if sampling.ignore_stop else [self.folder.chat.end_id],
            ignore_eos=True,
            detokenize=False,
        )

    def _request(self, prompt: Prompt) -> Any:
        grids = [qwen.image_grid(self.folder.config, *x.shape[:2]) for x in prompt.images]
        request: dict[str, Any] = {
            "prompt_token_ids": self.folder.chat.collapse(prompt.token_ids, grids)
        }
        if prompt.images:
            request["multi_modal_data"] = {"image": [Image.fromarray(x) for x in prompt.images]}
        return request

    def reset_caches(self) -> None:
        """Empty the prefix cache (its verdict asserted) and the encoder cache."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM refused to reset its prefix cache: are requests still running?"
            )
        self.llm.llm_engine.reset_encoder_cache()

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace every weight from a stream of (transformers name, whole tensor)."""
        with guarded_rng():
            self.llm.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": _detached(weights)}
            )
        self.reset_caches()

    def sleep(self) -> None:
        """Give the device's memory to the trainer (level 1: weights wait in host memory)."""
        if self._can_sleep:
            self.llm.sleep(level=1)

    def wake(self) -> None:
        """Take the memory back; torch's cached blocks must go first."""
        if self._can_sleep:
            torch.cuda.empty_cache()
            self.llm.wake_up()

    def close(self) -> None:
        """Shut the engine down; must precede the end of the process group it lives beside."""
        self.llm.llm_engine.engine_core.shutdown()


def _detached(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        yield name, tensor.detach()


def _checked(asked: _Waiting, output: Any) -> list[Completion]:
    """Return the completions of a prompt. Raises RuntimeError if the engine changed the prompt."""
    # vLLM expands image placeholders itself, and must come to the tokens we train on.
    if list(output.prompt_token_ids or []) != asked.token_ids.tolist():
        raise RuntimeError(
            f"prompt {asked.id}: the engine saw {len(output.prompt_token_ids or [])} tokens, we "
            f"train on {len(asked.token_ids)}: the engine's image processor disagrees with "
            "ovlt's; check preprocessor_config.json and model.min_pixels, model.max_pixels"
        )
    return [_completion(c) for c in output.outputs]


def _completion(output: Any) -> Completion:
    ids = np.asarray(output.token_ids, dtype=np.int64)
    logp = np.asarray(
        [
            step[token].logprob
            for step, token in zip(output.logprobs, output.token_ids, strict=True)
        ],
        dtype=np.float32,
    )
    return Completion(ids, logp, finished=output.finish_reason == "stop")
