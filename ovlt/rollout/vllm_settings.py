"""What vLLM is told when an engine opens, by device. Nothing here imports vLLM.

Tested with vLLM 0.32 and 0.25.1 (``make test-old``), which take the same; if versions come to
differ, it is settled here.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from ovlt.config import EngineConfig, SoloEngineConfig
from ovlt.model.load import ModelFolder

# Log-probs after temperature and bans: the distribution that was sampled from, which is what the
# trainer corrects by.
LOGPROBS_MODE = "processed_logprobs"


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
