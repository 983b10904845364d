"""Group sampling with vLLM, in the trainer's own process. The only file that imports vllm.

An engine is opened on a model folder, fed weights by ``load``, and asked by ``generate``. It works
without a trainer too (evaluation, distillation). What it promises:

- the prompt ids that the engine used equal ours, or it raises;
- ids that stand for pixels, or that no tokenizer entry stands behind, are never sampled;
- a request's seed is the caller's, so samples do not depend on ranks or on batching order;
- caches are empty when a call starts, so a resumed run meets what the first run met;
- the trainer's random generators are left alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ovlt.config import RolloutConfig
from ovlt.model import qwen2_5_vl as qwen
from ovlt.model.load import ModelFolder
from ovlt.rollout.engine import Completion
from ovlt.system.runtime import guarded_rng
from ovlt.types import Prompt

# What the engine's log-prob must be for the trainer to correct by it: after temperature and bans.
LOGPROBS_MODE = "processed_logprobs"
BAN = -100.0  # added to a logit; e^-100 is nothing in float32, and no -inf reaches a log-prob


def engine_settings(
    device: torch.device, config: RolloutConfig, *, max_model_len: int, shares_device: bool
) -> dict[str, Any]:
    """vLLM's settings by device: the one table."""
    common: dict[str, Any] = {
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_sequences,
        "logprobs_mode": LOGPROBS_MODE,
        "mm_processor_cache_gb": 0,  # an image is used once per step; the cache can desynchronise
        "generation_config": "vllm",  # no sampling default out of the model folder
        "trust_remote_code": False,
        "disable_log_stats": True,
        "seed": 0,
    }
    if device.type == "cpu":
        return common | {
            "enforce_eager": True,
            "skip_mm_profiling": True,
            # A per-request seed and a partial prefill do not go together on a CPU.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(max_model_len, 4096),
            "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
        }
    settings = common | {
        "gpu_memory_utilization": config.gpu_memory,
        "enable_sleep_mode": shares_device,
        "tensor_parallel_size": config.tensor_parallel,
    }
    if "LOCAL_RANK" in os.environ and config.tensor_parallel == 1:
        # One engine per torchrun rank, each on the rank's own GPU.
        settings["distributed_executor_backend"] = "external_launcher"
    return settings


class VllmEngine:
    """vLLM, in process."""

    def __init__(
        self,
        folder: ModelFolder,
        config: RolloutConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        max_images: int,
        max_model_len: int,
        shares_device: bool,
    ):
        self.folder, self.config, self.device = folder, config, device
        self._can_sleep = device.type == "cuda" and shares_device
        images = {"image": max(1, max_images), "video": 0}
        with guarded_rng():
            from vllm import LLM

            self.llm = LLM(
                model=str(folder.path),
                dtype=str(dtype).removeprefix("torch."),
                **({"limit_mm_per_prompt": images} if folder.patchify else {}),
                **engine_settings(
                    device, config, max_model_len=max_model_len, shares_device=shares_device
                ),
            )
        for name in ("model_executor.model_loader.reload.layerwise", "v1.worker.cpu_worker"):
            # At every sync these warn of modules that have nothing to load, and of the thread count
            # being what it is; `sync.py` proves more than such lines could say.
            logging.getLogger(f"vllm.{name}").setLevel(logging.ERROR)
        self._bans = dict.fromkeys(folder.banned, BAN)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        n: int,
        seeds: Sequence[int],
        temperature: float,
        max_tokens: int,
        ignore_stop: bool = False,
    ) -> list[list[Completion]]:
        """``n`` completions for each prompt, in order. ``temperature`` 0 is greedy (then n is 1).

        Seeds of different prompts must be at least n apart: sample i of a prompt uses seed + i.
        Raises RuntimeError when the engine changed a prompt or its caches cannot be emptied.
        """
        if not prompts:
            return []
        from vllm import SamplingParams

        self.reset_caches()
        params = [
            SamplingParams(
                n=n,
                temperature=temperature,
                top_p=self.config.top_p if temperature > 0 else 1.0,
                top_k=self.config.top_k if temperature > 0 else 0,
                seed=seed if temperature > 0 else None,
                max_tokens=max_tokens,
                logprobs=0,
                logit_bias=self._bans,
                stop_token_ids=[self.folder.chat.end_id],
                ignore_eos=ignore_stop,
                detokenize=False,
            )
            for seed in seeds
        ]
        if ignore_stop:
            for p in params:
                p.stop_token_ids = []
        with guarded_rng():
            outputs = self.llm.generate([self._request(p) for p in prompts], params, use_tqdm=False)
        result = []
        for prompt, output in zip(prompts, outputs, strict=True):
            if list(output.prompt_token_ids or []) != prompt.token_ids.tolist():
                raise RuntimeError(
                    f"prompt {prompt.id}: the engine saw {len(output.prompt_token_ids or [])} "
                    f"tokens, we train on {len(prompt.token_ids)}: the engine's image processor "
                    "disagrees with ovlt's; check preprocessor_config.json and "
                    "model.min_pixels, model.max_pixels"
                )
            result.append([_completion(c) for c in output.outputs])
        return result

    def _request(self, prompt: Prompt) -> Any:
        from PIL import Image

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
        """Take the memory back, before ``load``."""
        if self._can_sleep:
            torch.cuda.empty_cache()
            self.llm.wake_up()

    def close(self) -> None:
        """Shut the engine down; must precede the end of the process group it lives beside."""
        self.llm.llm_engine.engine_core.shutdown()


def _detached(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        yield name, tensor.detach()


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
