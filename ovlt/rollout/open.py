"""Which engine a recipe names, on which device, in which dtype."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence

import torch

from ovlt.config import EngineConfig, ModelConfig, SoloEngineConfig
from ovlt.model.families import family_of, is_known
from ovlt.model.load import ModelFolder
from ovlt.model.packed_model import PackedModel
from ovlt.rollout.engine import Engine, Sampling
from ovlt.rollout.sync import ProbeDifference, WeightSync, probe_pixels, probe_tokens
from ovlt.rollout.vllm_settings import choose_runner, engine_settings, image_settings
from ovlt.system.runtime import Runtime, compute_dtype

GIB = 2**30
# The differences between engine and trainer on the image probe that rounding explains, in nats
# (docs/metrics.md). Float32 engines agree to about 1e-6 on a CPU; on CUDA vLLM's attention
# multiplies float32 in TF32. In bfloat16 a token differs by 0.05 or so, one in thousands by tenths.
FLOAT32 = ProbeDifference(mean=1e-5, largest=1e-3)
FLOAT32_ON_CUDA = ProbeDifference(mean=5e-3, largest=2e-2)
BFLOAT16 = ProbeDifference(mean=0.12, largest=1.5)


def engine_dtype(
    engine: EngineConfig, model: ModelConfig, folder: ModelFolder, device: torch.device
) -> torch.dtype:
    """Return the dtype of ``engine.dtype``; 'auto' is the trainer's compute dtype, if that can be.

    Raises ValueError for a dtype that the engine does not run this family in.
    """
    name = model.compute_dtype if engine.dtype == "auto" else engine.dtype
    dtype = compute_dtype(name, device, int(folder.text_config.hidden_size))
    if engine.backend != "vllm" or not is_known(folder.config.model_type):
        return dtype
    family = family_of(folder.config)
    possible = family.model.engine_dtypes(device)
    if dtype in possible:
        return dtype
    if engine.dtype != "auto":
        names = ", ".join(str(x).removeprefix("torch.") for x in possible)
        raise ValueError(
            f"engine.dtype='{engine.dtype}': vLLM runs {family.sizes.TITLE} on {device.type} in "
            f"{names} only; set engine.dtype='{names.rpartition(', ')[2]}', or "
            "engine.backend='transformers'"
        )
    return possible[-1]


def probe_tolerance(
    engine: EngineConfig, dtype: torch.dtype, device: torch.device
) -> ProbeDifference:
    """Return the largest probe difference that is still a healthy run."""
    default = BFLOAT16
    if dtype == torch.float32:
        default = FLOAT32_ON_CUDA if device.type == "cuda" else FLOAT32
    return ProbeDifference(
        engine.max_mean_mismatch or default.mean, engine.max_mismatch or default.largest
    )


def weight_sync(
    engine: Engine,
    model: PackedModel,
    folder: ModelFolder,
    config: EngineConfig,
    dtype: torch.dtype,
) -> WeightSync:
    """Return the transfer of a model's weights into an engine of that dtype, as [engine] says."""
    device = next(model.parameters()).device
    return WeightSync(
        engine,
        model,
        folder,
        tolerance=probe_tolerance(config, dtype, device),
        verify_every=config.verify_every,
        dtype=dtype,
    )


def check_engine(
    folder: ModelFolder,
    config: EngineConfig,
    *,
    max_tokens: int,
    samplings: Sequence[Sampling] = (),
) -> None:
    """Raise ValueError if ``open_engine`` or a sampling would fail later; opens nothing.

    ``max_tokens`` is the longest prompt + response, ``samplings`` what the engine will be asked.
    """
    context = int(folder.text_config.max_position_embeddings)
    if max_tokens > context:
        raise ValueError(
            f"{folder.path} takes {context} tokens, but a prompt and its response may have "
            f"{max_tokens}: lower max_prompt_tokens or max_response_tokens in [grpo.rollout] or in "
            "[evaluate]"
        )
    if config.backend == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "engine.backend='vllm' but vllm is not installed: install it (make install), or "
                "set engine.backend='transformers', which is slower"
            )
        return
    if folder.patchify is None:
        raise ValueError(
            f"{folder.path} is a text-only model: engine.backend='vllm' serves such a model"
        )
    if any(s.temperature > 0 and (s.top_p < 1 or s.top_k) for s in samplings):
        raise ValueError(
            "engine.backend='transformers' samples with top_p = 1 and top_k = 0 only: set them "
            "so in [grpo.rollout], [evaluate] or [distill], whichever samples"
        )


def check_memory(
    free: int, total: int, config: EngineConfig, solo: SoloEngineConfig | None
) -> None:
    """Raise ValueError if the engine's share of a GPU is not free; ``free``, ``total`` in bytes."""
    share = solo.gpu_memory if solo else config.gpu_memory
    table = "evaluate.engine] or [distill.engine" if solo else "engine"
    needed = share * total
    if free < needed:
        raise ValueError(
            f"{free / GIB:.1f} of the GPU's {total / GIB:.1f} GiB are free, and the engine would "
            f"take {needed / GIB:.1f} (gpu_memory={share} of [{table}]): "
            f"{(needed - free) / GIB:.1f} GiB are missing. End what else runs there (nvidia-smi "
            f"lists it), or set gpu_memory to at most {int(100 * free / total) / 100}"
        )


def open_engine(
    folder: ModelFolder,
    config: EngineConfig,
    runtime: Runtime,
    *,
    dtype: torch.dtype,
    max_tokens: int,
    max_images: int = 8,
    max_pixels: int = 0,
    solo: SoloEngineConfig | None = None,
) -> Engine:
    """Open the engine that ``config.backend`` names, on this rank's device.

    ``max_tokens`` is the longest prompt + response, ``max_images`` the most images of a prompt and
    ``max_pixels`` the largest area of one (0: the largest that the folder's processor lets pass).
    ``solo`` says how the engine differs if it has the device to itself; without it a trainer lives
    there too, so the engine takes a share of the memory and is asleep when this returns. Raises
    ValueError.
    """
    if solo is None:  # the probe of the weight sync asks this engine too
        max_tokens = max(max_tokens, probe_tokens(folder))
    check_engine(folder, config, max_tokens=max_tokens)
    if config.backend == "transformers":
        from ovlt.rollout.transformers import TransformersEngine

        return TransformersEngine(folder, device=runtime.device, dtype=dtype)
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()  # vLLM measures what is free, and a trainer may live here already
        check_memory(*torch.cuda.mem_get_info(runtime.device), config, solo)
    runtime.say("opening the engine: importing vLLM takes about ten seconds, then the model loads")
    started = time.perf_counter()
    try:  # here, because importing vLLM takes so long, and because it is optional
        from ovlt.rollout.vllm import VllmEngine
    except ImportError as error:
        raise ValueError(
            f"engine.backend='vllm' but vllm cannot be imported ({error}): install it (make "
            "install), or set engine.backend='transformers', which is slower"
        ) from None
    settings = engine_settings(runtime.device, config, solo, max_model_len=max_tokens)
    if is_known(folder.config.model_type):
        settings |= family_of(folder.config).model.engine_settings(runtime.device)
    if folder.patchify is not None:
        # The probe's image may be larger than any of a recipe for tiny ones.
        largest = max(max_pixels or folder.pixel_range[1], probe_pixels(folder))
        settings |= image_settings(folder, max_images, largest)
    choose_runner(config.runner, runtime.device)
    engine = VllmEngine(
        folder,
        settings,
        device=runtime.device,
        dtype=dtype,
        sleep_level=0 if solo else config.sleep_level,
    )
    runtime.say(f"the engine is open after {time.perf_counter() - started:.1f} s")
    return engine
