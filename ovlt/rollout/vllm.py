"""Group sampling with vLLM, in the trainer's own process. The only file that imports vllm.

An engine is opened on a model folder, fed weights by ``load``, and asked by ``generate``. It works
without a trainer too (evaluation, distillation). What it promises:

- the prompt ids that the engine used equal ours, or it raises;
- ids that stand for pixels, or that have no tokenizer entry, are never sampled;
- a request's seed is the caller's, so samples depend neither on ranks nor on batching order;
- caches are empty when a call starts, so a resumed run samples the same answers;
- the trainer's random generators, threads and switch for determinism stay as they were.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm import LLM, SamplingParams

from ovlt.config import EngineConfig, SoloEngineConfig
from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.load import ModelFolder
from ovlt.rollout.engine import Completion, Engine, Sampling
from ovlt.rollout.vllm_weights import weight_of
from ovlt.system import quiet
from ovlt.system.guard import guarded
from ovlt.types import Prompt

# Log-probs after temperature and bans: the distribution that was sampled from, which is what the
# trainer corrects by.
LOGPROBS_MODE = "processed_logprobs"
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
        "enforce_eager": config.eager,
        "gpu_memory_utilization": solo.gpu_memory if solo else config.gpu_memory,
        "enable_sleep_mode": solo is None,
        "tensor_parallel_size": tensor_parallel,
    }
    if "LOCAL_RANK" in os.environ and tensor_parallel == 1:
        # One engine per torchrun rank, each on the rank's own GPU.
        settings["distributed_executor_backend"] = "external_launcher"
    if config.attention_backend:
        settings["attention_backend"] = config.attention_backend
    return settings


def image_settings(folder: ModelFolder, max_images: int, max_pixels: int) -> dict[str, Any]:
    """Return vLLM's settings for images.

    vLLM sizes its encoder cache, its batches and its trial run for the largest image that the
    processor lets through. The folder of Qwen2.5-VL says 12.8 million pixels, ours have at most
    ``max_pixels`` and are not resized again.
    """
    least = folder.pixel_range[0]
    size = {"shortest_edge": least, "longest_edge": max(least, max_pixels)}  # areas, in pixels
    return {
        "limit_mm_per_prompt": {"image": max(1, max_images), "video": 0},
        "mm_processor_kwargs": {"size": size},
    }


def choose_runner(runner: str, device: torch.device) -> None:
    """Tell vLLM which model runner to take. It reads the variable when an engine opens.

    'auto' leaves the choice to vLLM, or to the variable that the user has set.
    """
    if device.type == "cuda" and runner != "auto":
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1" if runner == "v2" else "0"


def first_error(error: BaseException) -> str:
    """Return what went wrong first: an error raised while cleaning up hides the one before it."""
    first = error
    while (before := first.__cause__ or first.__context__) is not None:
        first = before
    text = str(first) if isinstance(first, ValueError) else f"{type(first).__name__}: {first}"
    return text if first is error else f"{text}; then {type(error).__name__}: {error}"


class VllmEngine(Engine):
    """vLLM, in process."""

    def __init__(
        self,
        folder: ModelFolder,
        settings: dict[str, Any],
        *,
        device: torch.device,
        dtype: torch.dtype,
        sleep_level: int,
    ):
        """``settings`` are vLLM's; ``sleep_level`` is 0 if no trainer shares the device."""
        self.folder, self.device, self._dtype = folder, device, dtype
        self._sleep_level = sleep_level if device.type == "cuda" else 0
        self._has_weights = True
        self._shapes: dict[str, torch.Size] = {}  # of what was loaded last, by name
        # The lines that are dropped are those of vLLM's CPU worker.
        noise = quiet.without_noise() if device.type == "cpu" else contextlib.nullcontext()
        try:
            with guarded(), noise:
                self.llm = LLM(
                    model=str(folder.path),
                    dtype=str(dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
                    **settings,
                )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not isinstance(error, ValueError):  # vLLM's fault or the driver's: show where
                traceback.print_exc()
            raise ValueError(
                f"vLLM cannot open {folder.path}: {first_error(error)} (the keys are those of "
                "[engine]: gpu_memory, kv_cache_gib, max_sequences for memory; runner, eager, "
                "attention_backend if a kernel fails)"
            ) from error
        self._bans = dict.fromkeys(folder.banned, BAN)
        self.sleep()

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Implement ``Engine.generate``.

        Raises RuntimeError if the engine changed a prompt or its caches cannot be emptied.
        """
        if not prompts:  # a rank without a share; vLLM refuses an empty call
            return []
        if not self._has_weights:
            raise RuntimeError("the engine's weights were dropped when it slept: load some first")
        self.reset_caches()
        params = [self._params(sampling, seed) for seed in seeds]
        with guarded():
            outputs = self.llm.generate([self._request(p) for p in prompts], params, use_tqdm=False)
        completions = []
        for prompt, output in zip(prompts, outputs, strict=True):
            # vLLM expands image placeholders itself, and must come to the tokens we train on.
            if list(output.prompt_token_ids or []) != prompt.token_ids.tolist():
                raise RuntimeError(
                    f"prompt {prompt.id}: the engine saw {len(output.prompt_token_ids or [])} "
                    f"tokens, we train on {len(prompt.token_ids)}: the engine's image processor "
                    "disagrees with ovlt's; check preprocessor_config.json and "
                    "model.min_pixels, model.max_pixels"
                )
            completions.append([_completion(c) for c in output.outputs])
        return completions

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
        self._shapes.clear()
        with guarded():
            self.llm.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": self._detached(weights)}
            )
        self._has_weights = True
        self.reset_caches()

    def _detached(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self._shapes[name] = tensor.shape
            yield name, tensor.detach()

    def weight(self, name: str) -> torch.Tensor:
        """Implement ``Engine.weight``: joined tensors are taken apart."""
        with torch.no_grad():
            model = self.llm.apply_model(_itself)[0]
            # On a CPU some biases are held in float32, rounded to the engine's dtype before.
            return weight_of(model, name, self._shapes).to(self._dtype)

    def sleep(self) -> None:
        """Give the device's memory to the trainer.

        At level 2 the weights are dropped, and the engine is of no use before the next ``load``. At
        level 1 they wait in pinned host memory.
        """
        if self._sleep_level:
            self.llm.sleep(level=self._sleep_level)
            self._has_weights = self._sleep_level == 1

    def wake(self) -> None:
        """Take the memory back; torch's cached blocks must go first."""
        if self._sleep_level:
            torch.cuda.empty_cache()
            self.llm.wake_up()

    def close(self) -> None:
        """Shut the engine down; must precede the end of the process group it lives beside."""
        self.llm.llm_engine.engine_core.shutdown()


def _itself(model: torch.nn.Module) -> torch.nn.Module:
    return model


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
