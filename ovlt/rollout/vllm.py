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
import itertools
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

from ovlt.model import sizes
from ovlt.model.load import ModelFolder
from ovlt.rollout.engine import Completion, Engine, Sampling, one_for_each
from ovlt.rollout.vllm_weights import weight_of
from ovlt.system import quiet
from ovlt.system.ahead import ahead
from ovlt.system.guard import guarded
from ovlt.types import Prompt

_RENDERED = 8  # prompts of a stream whose images are patches before the engine has room for them
BAN = -100.0  # added to a logit; e^-100 vanishes in float32, and no -inf reaches a log-prob
_QUEUED = 8  # prompts that wait in the engine beyond those that fill its sequence slots


class _Waiting(NamedTuple):
    """A prompt that the engine is at work on; its pixels are the engine's."""

    place: int  # among the prompts
    request: str  # what vLLM calls it
    id: str
    token_ids: np.ndarray


class _Rendered(NamedTuple):
    """A prompt with what vLLM takes of it."""

    prompt: Prompt
    sampling: Sampling
    seed: int
    inputs: Any


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
        self._max_sequences = int(settings["max_num_seqs"])
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
        # A greedy request has no seed. On a CPU vLLM 0.25.1 then draws for the whole batch without
        # seeds; versions with this operation draw for each request apart.
        self.mixes_greedy = device.type != "cpu" or hasattr(torch.ops._C, "fused_gumbel_argmax")
        self._bans = dict.fromkeys(folder.banned, BAN)
        self.sleep()

    def generate(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling | Sequence[Sampling],
        seeds: Sequence[int],
        finished: Callable[[int, list[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """Implement ``Engine.generate``.

        Raises RuntimeError if the engine changed a prompt or its caches cannot be emptied, or if
        greedy prompts are among others and may not be (``mixes_greedy``).
        """
        completions: list[list[Completion]] = [[] for _ in seeds]
        samplings = one_for_each(sampling, len(seeds))
        if not self.mixes_greedy and len({s.temperature == 0 for s in samplings}) == 2:
            raise RuntimeError("this vLLM ignores the seeds of prompts beside greedy ones")
        inputs = self._rendered(zip(prompts, samplings, seeds, strict=True))
        for place, group in self._sampled(inputs, max((s.n for s in samplings), default=1)):
            completions[place] = group
            if finished is not None:
                finished(place, group)
        return completions

    def stream(
        self, prompts: Iterable[tuple[Prompt, int]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Implement ``Engine.stream``; raises as ``generate`` does.

        Images become patches in a thread, which takes the prompts, so that the engine does not
        stand still meanwhile.
        """
        asked = ((prompt, sampling, seed) for prompt, seed in prompts)
        return self._sampled(ahead(self._rendered(asked), _RENDERED), sampling.n)

    def _rendered(self, asked: Iterable[tuple[Prompt, Sampling, int]]) -> Iterator[_Rendered]:
        """Yield each prompt with its seed and with what vLLM's processor makes of it."""
        for prompt, sampling, seed in asked:
            # What LLM.enqueue does first; vLLM offers this step alone under no public name.
            inputs = self.llm._preprocess_cmpl_one(self._request(prompt))
            yield _Rendered(prompt, sampling, seed, inputs)

    def _sampled(
        self, rendered: Iterator[_Rendered], n: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (place, completions) of each prompt as it is finished; most have ``n`` of them."""
        if not self._has_weights:
            raise RuntimeError("the engine's weights were dropped when it slept: load some first")
        self.reset_caches()
        upcoming = enumerate(rendered)
        # Enough that no sequence slot waits for a prompt, and no more: vLLM keeps the patches of
        # a waiting prompt as floats, four times the size of its pixels.
        room = math.ceil(self._max_sequences / n) + _QUEUED
        waiting: dict[str, _Waiting] = {}  # by the name of the request
        try:
            while self._fill(waiting, room, upcoming):
                since = time.perf_counter()
                with guarded():
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
    ) -> bool:
        """Give the engine prompts until it has ``room`` of them; whether it has any."""
        with guarded():
            for place, entry in itertools.islice(upcoming, max(0, room - len(waiting))):
                params = self._params(entry.sampling, entry.seed)
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
        grids = [sizes.image_grid(self.folder.config, *x.shape[:2]) for x in prompt.images]
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
