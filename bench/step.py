"""``python bench/step.py OUT.json``: a training step of 3B and 7B width, with random weights.

What is timed is what training runs: ``load_sharded``'s model (float32 masters, compute in
bfloat16), micro-batches of the packer (groups of five responses that share a prompt with an image
of 262,144 pixels), GRPO's loss, ``forward_backward``, clipping, AdamW. One rank, one micro-batch.
The decoder has as many layers as fit; figures for all layers are scaled from those, see ``scaled``.

MFU = FLOPs of forward and backward / seconds / the rate of a bfloat16 product. FLOPs are those of
the tokens that are computed (a shared prompt once; the head's rows that carry loss): 2 per weight
and token, 4 per query, key and width of attention; a backward counts twice its forward, what is
recomputed nothing. The rate is the one that bench/ceilings.py measured (``--ceilings``), else the
data sheet's.

Every case is written when it is done. ``--seconds`` leaves out cases that would begin later.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal
from unittest import mock

from ovlt.system import env

env.apply(env.machine())

import torch
from machine import DEVICE, about, synchronize, write_json
from step_marks import Marks, marked
from step_model import LONGEST, SHORTEST, group_samples, random_model, sized, tiny_folder
from torch.profiler import ProfilerActivity, profile, record_function

from ovlt.config import LossConfig, ModelConfig, OptimConfig, RunConfig
from ovlt.model import attention, liger, sizes
from ovlt.model.batch import PackedBatch
from ovlt.model.load import ModelFolder
from ovlt.model.packed_model import PackedModel
from ovlt.plan.assumed import Assumptions
from ovlt.run.metrics import PhaseTimer
from ovlt.run.profile import STEP, phase_times
from ovlt.system.files import read_json
from ovlt.system.hardware import GPUS, PEAK_FLOPS
from ovlt.system.runtime import Runtime, start
from ovlt.train import footprint
from ovlt.train.balance import BatchPlan, plan
from ovlt.train.loss import policy_objective
from ovlt.train.optim import build_adamw, clip_gradients
from ovlt.train.pack import collate, extents, group_numbers
from ovlt.train.settle import GIB, RESERVE_GIB
from ovlt.train.step import FORWARD_AND_BACKWARD, forward_backward

DEAREST = 25  # operations that are listed
OBJECTIVE = policy_objective(LossConfig(kl_coef=0.0))


@dataclass(frozen=True)
class Case:
    """What is measured: a width, and how it is trained."""

    size: str  # "3B", "7B" or "tiny"
    budget: int = 16_384  # tokens of the micro-batch
    checkpointing: Literal["none", "mlp", "full", "auto"] = "auto"
    liger: Literal["auto", "on", "off"] = "auto"
    attention: str = ""  # back end; "": the first that runs
    freeze_vision: bool = False
    layers: int = 0  # of the decoder; 0: as many as fit
    pixels: int = 512 * 512
    profiled: bool = False

    @property
    def name(self) -> str:
        """Words that tell the case from the others."""
        words = [self.size, f"{self.budget} tokens", self.checkpointing]
        words += ["Liger off"] if self.liger == "off" else []
        words += [self.attention] if self.attention else []
        words += ["tower frozen"] if self.freeze_vision else []
        return ", ".join(words)


# Layers that fit an 80 GB chip in every way of training, so that variants differ in one thing.
COMPARED = Case("7B", layers=6)
CASES = {
    "base": [Case("7B", profiled=True), Case("3B", profiled=True)],
    "variants": [
        replace(COMPARED, checkpointing="none"),
        replace(COMPARED, checkpointing="mlp"),
        replace(COMPARED, checkpointing="full"),
        replace(COMPARED, checkpointing="none", liger="off"),
        replace(COMPARED, checkpointing="none", attention="sdpa"),
        replace(COMPARED, checkpointing="none", freeze_vision=True),
        Case("7B", budget=32_768),
        Case("7B", budget=65_536),
        Case("3B", budget=32_768),
        Case("3B", budget=65_536),
    ],
    "dry": [
        Case("tiny", budget=400, pixels=84 * 84, profiled=True),
        Case("tiny", budget=400, pixels=84 * 84, checkpointing="full", attention="sdpa"),
    ],
}


def measure(case: Case, tiny: ModelFolder, runtime: Runtime, options: Options) -> dict[str, object]:
    """Return the figures of one case. Raises torch.OutOfMemoryError."""
    whole = sized(tiny, case.size)
    small = case.size == "tiny"
    shortest, longest = (10, 30) if small else (SHORTEST, LONGEST)
    samples = group_samples(
        whole, case.budget, pixels=case.pixels, shortest=shortest, longest=longest
    )
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    began = time.perf_counter()
    batch = collate(
        samples,
        [1 / sum(s.num_response_tokens for s in samples)] * len(samples),
        config=whole.config,
        patchify=whole.patchify,
    )
    packed_s = time.perf_counter() - began
    chosen = choose(case, whole, batch, dtype, free_bytes())
    folder = sized(tiny, case.size, chosen.layers)

    def planned(of: ModelFolder) -> BatchPlan:
        numbers = group_numbers(samples)
        spans = extents(samples, of.config, numbers)
        return plan(spans, ranks=1, budget=case.budget, config=of.config)

    with ExitStack() as undo:
        if case.attention:
            backends = mock.patch.object(attention, "BACKENDS", (case.attention, "sdpa"))
            undo.enter_context(backends)
        config = ModelConfig(
            activation_checkpointing=chosen.training.checkpointing,
            liger=case.liger,
            freeze_vision=case.freeze_vision,
        )
        before = allocated()
        model = random_model(folder, runtime, config, dtype)
        held = {"float32 master weights": allocated() - before}
        optimizer = build_adamw(model, OptimConfig())
        step = Step(model, optimizer, batch, runtime)
        rounds, peak, held_after = timed_rounds(step, options.rounds)
        held["Adam moments"] = held_after - before - held["float32 master weights"]
        best = min(rounds, key=lambda marks: marks.total())
        record: dict[str, object] = {
            "case": case.name,
            "settings": asdict(case),
            "layers": {
                "measured": chosen.layers,
                "whole": whole.config.text_config.num_hidden_layers,
            },
            "checkpointing": chosen.training.checkpointing,
            "tokens": batch.num_tokens,
            "sample_tokens": sum(len(s.token_ids) for s in samples),
            "loss_rows": batch.labels.numel(),
            "patches": chosen.training.patches,
            "collate_s": packed_s,
            "seconds": best.seconds(),
            "step_s": best.total(),
            "spread": max(m.total() for m in rounds) / best.total(),
            "tokens_per_s": batch.num_tokens / best.total(),
            "memory": memory(chosen.training, folder, held, best, peak),
        }
        rate = options.product_flops or datasheet()
        record |= rates(
            best, planned(folder), planned(whole), folder, whole, chosen.training,
            batch.labels.numel(), rate,
        )  # fmt: skip
        if case.profiled:
            record["profile"] = profiled(step, options.trace)
        return record


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    rounds: int
    product_flops: float  # measured FLOP/s of a product; 0: the data sheet's
    trace: Path | None  # of the first profiled case


@dataclass(frozen=True)
class Chosen:
    """The layers of the decoder that fit, and how they are trained."""

    layers: int
    training: footprint.Training


def free_bytes() -> float:
    """Return what a step may take of the device."""
    if DEVICE.type != "cuda":
        return float("inf")
    gc.collect()  # the model of the case before
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0] - RESERVE_GIB * GIB


def choose(
    case: Case, whole: ModelFolder, batch: PackedBatch, dtype: torch.dtype, free: float
) -> Chosen:
    """Return the most layers that fit ``free`` bytes, in the way of training that is asked for.

    With "auto" checkpointing: whole models as the planner would train them, parts of one with the
    MLPs computed again, the usual way. Raises torch.OutOfMemoryError if not one layer fits.
    """
    tokens, key_index = batch.num_tokens, batch.segments.key_index
    training = footprint.Training(
        ranks=1,
        itemsize=dtype.itemsize,
        budget=tokens,
        micro_batches=1,
        patches=0 if batch.patches is None else len(batch.patches),
        keys=1.0 if key_index is None else key_index.numel() / tokens,
        checkpointing="none",
        reduce_each=False,
        reshard=True,
        liger=liger.should_apply(case.liger, DEVICE),
        freeze_vision=case.freeze_vision,
        reference=False,
    )
    layers = int(whole.config.text_config.num_hidden_layers)
    wanted = range(case.layers or layers, 0, -1)
    for count in wanted:
        config = resized(whole, count)
        kind = case.checkpointing
        if kind == "auto" and count < layers:
            kind = "mlp"
        best = footprint.cheapest_that_fits(
            config, training, free, checkpointing=kind, reduce="last"
        )
        if footprint.fullest(config, best) <= free:
            return Chosen(count, best)
    raise torch.OutOfMemoryError(f"not one layer fits {free / GIB:.1f} GiB")


def resized(whole: ModelFolder, layers: int) -> sizes.Sizes:
    """Return the sizes of ``whole`` with so many layers."""
    tree = whole.config.to_dict()
    kinds = tree["text_config"].get("layer_types") or []
    tree["text_config"] |= {"num_hidden_layers": layers, "layer_types": kinds[:layers] or None}
    return type(whole.config).from_dict(tree)


@dataclass(frozen=True)
class Step:
    """One optimizer step over one micro-batch."""

    model: PackedModel
    optimizer: torch.optim.Optimizer
    batch: PackedBatch
    runtime: Runtime

    def __call__(self, mark: Callable[[str], None]) -> None:
        """Run it; ``mark`` names what has just ended."""
        totals = forward_backward(self.model, [self.batch], OBJECTIVE, self.runtime)
        mark("tower backward")
        norm = clip_gradients(self.model, 1.0)
        mark("clip")
        totals.read(norm)
        mark("figures read")
        self.optimizer.step()
        self.optimizer.zero_grad()
        mark("optimizer")


def timed_rounds(step: Step, rounds: int) -> tuple[list[Marks], int, int]:
    """Return the marks of each round, the peak of memory, and what is held between steps."""
    result: list[Marks] = []
    for number in range(rounds + 1):  # the first one compiles and fills caches
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with marked(step.model) as marks:
            step(marks)
        synchronize()
        if number:
            result.append(marks)
    peak = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0
    return result, peak, allocated()


def allocated() -> int:
    """Bytes of tensors on the device; 0 on a CPU."""
    return torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0


def memory(
    training: footprint.Training, folder: ModelFolder, held: dict[str, int], marks: Marks, peak: int
) -> dict[str, object]:
    """Return GiB by item: what ``ovlt plan`` counts, and what was allocated (on a GPU)."""
    moments = footprint.update_items(folder.config, training)
    head, block = moments["update, in the head"], moments["update, in a block"]
    predicted = {name: head.get(name, block.get(name, 0.0)) for name in {**head, **block}}
    fullest = footprint.fullest(folder.config, training)
    kept = ("activations, decoder", "activations, tower", "pixels", "gathered weights")
    during = sum(predicted.get(name, 0.0) for name in kept)
    rows = {
        "float32 master weights": (predicted["float32 master weights, shard"], None),
        "Adam moments": (predicted["Adam moments, shard"], None),
        "activations and gathered weights, before the head": (during, marks.grown("decoder")),
        "the fullest moment": (fullest, peak),
    }
    table = {
        name: {
            "predicted_gib": round(expected / GIB, 3),
            "measured_gib": round((held.get(name, seen) or 0) / GIB, 3),
        }
        for name, (expected, seen) in rows.items()
    }
    return {"table": table, "predicted_gib": {k: round(v / GIB, 3) for k, v in predicted.items()}}


def rates(
    marks: Marks, part: BatchPlan, all_layers: BatchPlan, folder: ModelFolder, whole: ModelFolder,
    training: footprint.Training, rows: int, rate: float,
) -> dict[str, object]:  # fmt: skip
    """Return MFU of what was measured, and scaled to all layers of the decoder.

    Scaled: the decoder's seconds grow with its FLOPs, the optimizer's with the parameters, the rest
    stays as it is.
    """

    def flops(planned: BatchPlan) -> float:
        tower = 1 if training.freeze_vision else FORWARD_AND_BACKWARD
        return FORWARD_AND_BACKWARD * planned.text + tower * planned.tower

    seconds = marks.seconds()
    optimizer = sum(seconds.get(name, 0.0) for name in ("clip", "optimizer"))
    computing = marks.total() - optimizer
    decoder = sum(v for k, v in seconds.items() if k.startswith("decoder"))
    head = sizes.head_flops(whole.config, rows)
    scaled = computing + decoder * ((all_layers.text - head) / (part.text - head) - 1)
    parameters = [sizes.parameters(f.config).total for f in (folder, whole)]
    scaled_optimizer = optimizer * parameters[1] / parameters[0]
    again = sizes.recomputed_share(whole.config, training.checkpointing)
    again *= all_layers.text - head
    predicted = predicted_seconds(flops(all_layers) + again, parameters[1])
    result: dict[str, object] = {
        "flops": flops(part),
        "tflops_per_s": flops(part) / computing / 1e12,
        "scaled": {
            "layers": int(whole.config.text_config.num_hidden_layers),
            "forward_backward_s": scaled,
            "optimizer_s": scaled_optimizer,
            "tokens_per_s": part.tokens / (scaled + scaled_optimizer),
            "predicted_s": predicted,
        },
    }
    if rate:
        result["mfu"] = flops(part) / computing / rate
        result["mfu_scaled"] = flops(all_layers) / scaled / rate
        result["mfu_rate"] = rate
    return result


def predicted_seconds(flops: float, parameters: int) -> float | None:
    """Return what ``ovlt plan`` expects of a step; None if it does not know the chip.

    ``flops`` with those of what is computed again.
    """
    name = torch.cuda.get_device_name().lower() if DEVICE.type == "cuda" else ""
    gpu = next((gpu for key, gpu in GPUS.items() if key in name), None)
    if gpu is None:
        return None
    return flops / (gpu.flops * Assumptions().update_efficiency) + 28 * parameters / gpu.bandwidth


def datasheet() -> float:
    """Return the chip's FLOP/s by its data sheet; 0 if it is not known."""
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else ""
    return next((flops for key, flops in PEAK_FLOPS.items() if key in name), 0.0)


def profiled(step: Step, trace: Path | None) -> dict[str, object]:
    """Return the dearest operations of one step, and the idle time of its phases."""
    activities = [ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    timer = PhaseTimer()
    with profile(activities=activities) as profiler, record_function(f"{STEP}0"):
        with timer("forward and backward"):
            forward_backward(step.model, [step.batch], OBJECTIVE, step.runtime)
        with timer("optimizer"):
            clip_gradients(step.model, 1.0)
            step.optimizer.step()
            step.optimizer.zero_grad()
            synchronize()
    if trace is not None and not trace.exists():
        profiler.export_chrome_trace(str(trace))
    key = "self_device_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
    phases = phase_times(profiler.events() or [], device=DEVICE.type)
    averages = [a for a in profiler.key_averages() if not a.key.startswith((STEP, "phase "))]
    # Kernels alone: an operation has its kernels' time as its own too.
    kernels = [a for a in averages if str(a.device_type) == f"DeviceType.{DEVICE.type.upper()}"]
    total = sum(float(getattr(a, key)) for a in kernels) or 1.0
    kernels.sort(key=lambda a: -float(getattr(a, key)))
    return {
        "phases": [phase._asdict() for phase in phases],
        "dearest": [
            {
                "what": a.key[:160],
                "ms": float(getattr(a, key)) / 1e3,
                "calls": a.count,
                "share": float(getattr(a, key)) / total,
            }
            for a in kernels[:DEAREST]
        ],
    }


def line(record: dict[str, object]) -> str:
    """Return the case in one line."""
    if "error" in record:
        return f"{record['case']}: {record['error']}"
    text = f"{record['case']}: {record['step_s']:.4f} s, {record['tokens_per_s']:.0f} tokens/s"
    return text + (f", MFU {record['mfu_scaled']:.3f}" if "mfu_scaled" in record else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", choices=sorted(CASES), default="base")
    parser.add_argument("--ceilings", type=Path, help="what bench/ceilings.py wrote")
    parser.add_argument("--trace", type=Path, help="a trace of the first profiled case, .json.gz")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9)
    words = parser.parse_args()
    product = 0.0
    if words.ceilings and words.ceilings.is_file():
        product = float(read_json(words.ceilings)["product_flops"])
    options = Options(words.rounds, product, words.trace)
    began = time.monotonic()
    results: dict[str, object] = {"about": about()}
    cases: list[dict[str, object]] = []
    runtime = start(RunConfig(device=DEVICE.type))
    with tempfile.TemporaryDirectory() as home:
        tiny = tiny_folder(Path(home))
        for case in CASES[words.cases]:
            if time.monotonic() - began > words.seconds:
                cases.append({"case": case.name, "error": "no time was left"})
            else:
                cases.append(tolerant(case, tiny, runtime, options))
            print(line(cases[-1]), flush=True)
            write_json(words.out, results | {"cases": cases})
    runtime.close()


def tolerant(
    case: Case, tiny: ModelFolder, runtime: Runtime, options: Options
) -> dict[str, object]:
    """Return the figures of a case, or why there are none: the others go on."""
    try:
        return measure(case, tiny, runtime, options)
    except torch.OutOfMemoryError as error:
        reason = f"out of memory: {str(error).partition('. ')[0]}"
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"[:300]
    return {"case": case.name, "settings": asdict(case), "error": reason}


if __name__ == "__main__":
    main()
