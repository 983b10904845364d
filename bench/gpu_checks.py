"""``python bench/gpu_checks.py OUT.json [NAMES]``: what only a GPU can show to be right.

    fsdp           gradients under FSDP2, weights freed after the forward, equal the plain model's
    feed           micro-batches that are built and copied ahead give what those at hand give, and
                   nothing in forward and backward waits for the device
    deterministic  two runs of two steps in deterministic mode give the same bits
    rows           row kernels (OVLT_ROW_KERNEL) at edges of blocks, against float64; small, so that
                   compute-sanitizer can watch them
    sizes          the head at 65,536 rows, and logits of more than 2^31 numbers, against float64

Each check is written when it is done, and its failure ends no other. On a CPU they run small.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from ovlt.system import env

env.apply(env.machine())
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used

import torch
from head import Head
from machine import DEVICE, about, write_json
from step_model import group_samples, random_model, sized, tiny_folder
from timing import relative_errors
from torch import Tensor

from ovlt.config import LossConfig, ModelConfig, OptimConfig, RunConfig
from ovlt.model.batch import PackedBatch
from ovlt.model.load import ModelFolder
from ovlt.model.packed_model import PackedModel, empty_model, fill_buffers
from ovlt.model.parallel import load_sharded
from ovlt.model.weights import read_weights
from ovlt.system.runtime import Runtime, start
from ovlt.train.feed import MicroBatches
from ovlt.train.loss import policy_objective
from ovlt.train.optim import build_adamw, clip_gradients
from ovlt.train.pack import collate
from ovlt.train.step import forward_backward
from ovlt_kernels.row_logp import row_logp, row_logp_grad_, row_logp_reference

CUDA = DEVICE.type == "cuda"
OBJECTIVE = policy_objective(LossConfig(kl_coef=0.0))
Figures = dict[str, float]


class Setup:
    """What a check may need, made when it is asked for: compute-sanitizer is slow."""

    def __init__(self, home: Path) -> None:
        self._home = home

    @functools.cached_property
    def runtime(self) -> Runtime:
        return start(RunConfig(device=DEVICE.type))

    @functools.cached_property
    def tiny(self) -> ModelFolder:
        return tiny_folder(self._home)

    def close(self) -> None:
        if "runtime" in vars(self):
            self.runtime.close()


def batch_of(folder: ModelFolder, budget: int, *, small: bool) -> PackedBatch:
    """Return groups of responses to image questions."""
    pixels, shortest, longest = (84 * 84, 10, 30) if small else (512 * 512, 200, 600)
    samples = group_samples(folder, budget, pixels=pixels, shortest=shortest, longest=longest)
    weights = [1 / sum(s.num_response_tokens for s in samples)] * len(samples)
    return collate(samples, weights, config=folder.config, patchify=folder.patchify)


def check_fsdp(setup: Setup) -> Figures:
    """Compare gradients, in float32, after one step of a model of two layers.

    FSDP2 frees each block's weights after its forward, and gathers them again by hooks on what the
    forward returns (``LossOutput``).
    """
    runtime, tiny = setup.runtime, setup.tiny
    batch = batch_of(tiny, 400, small=True)
    plain = empty_model(tiny.config)
    plain.to_empty(device=DEVICE)
    plain.tie_weights()
    fill_buffers(plain, DEVICE)
    read_weights(plain, tiny.path)
    plain.set_head(banned=tiny.banned)
    plain(batch.to(DEVICE), OBJECTIVE).loss.backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    figures: Figures = {}
    pairs: list[tuple[str, Tensor | None]] = []
    for reshard in (True, False):
        config = ModelConfig(liger="off", reshard=reshard)
        model = load_sharded(tiny, runtime.mesh, DEVICE, config, dtype=torch.float32)
        forward_backward(model, [batch], OBJECTIVE, runtime)
        pairs += [(name, p.grad) for name, p in model.named_parameters()]
    for name, sharded in pairs:
        grad, reference = whole(sharded), expected[name]
        if grad is None or reference is None:
            raise AssertionError(f"no gradient of {name}")
        part = next(
            (part for part in ("embed_tokens", "lm_head", "merger") if part in name), "blocks"
        )
        error = relative_errors([grad], [reference.double()])[0]
        figures[part] = max(figures.get(part, 0.0), error)
    if set(figures) != {"embed_tokens", "lm_head", "merger", "blocks"}:
        raise AssertionError(f"parts without a gradient: {figures}")
    return at_most(figures, 1e-4)


def whole(tensor: Tensor | None) -> Tensor | None:
    """Return a DTensor's whole value."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def check_feed(setup: Setup) -> Figures:
    """Compare losses and gradients of micro-batches copied ahead with those already there.

    Twice as many as fit in the queue, of different sizes, so that their memory is used again; and
    torch warns of everything that waits.
    """
    folder = sized(setup.tiny, "7B" if CUDA else "tiny", 1)
    budgets = (4096, 1024, 3072, 2048) * 3 if CUDA else (400, 300) * 2
    made = [batch_of(folder, budget, small=not CUDA) for budget in budgets]
    dtype = torch.bfloat16 if CUDA else torch.float32
    model = random_model(folder, setup.runtime, ModelConfig(), dtype)
    at_hand = [batch.to(DEVICE) for batch in made]
    ahead = MicroBatches(
        [functools.partial(made.__getitem__, i) for i in range(len(made))], keep=False
    )
    figures: Figures = {}
    results: list[tuple[float, list[Tensor]]] = []
    for batches in (at_hand, at_hand, ahead):  # the first time, a few things are made for good
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            if CUDA:
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("warn" if batches is ahead else "default")
            totals = forward_backward(model, batches, OBJECTIVE, setup.runtime)
            if CUDA:
                torch.cuda.set_sync_debug_mode("default")
        figures["waits"] = float(sum("synchroniz" in str(warning.message) for warning in seen))
        loss = totals.read(torch.zeros((), device=DEVICE))[0]["loss"]
        gradients = [local(p.grad).clone() for p in model.parameters() if p.grad is not None]
        results.append((loss, gradients))
        model.zero_grad()
    (loss, expected), (other, found) = results[1:]
    at_most(figures, 0.0)
    at_most({"loss": abs(loss - other)}, 1e-6)
    error = max(relative_errors(found, [value.double() for value in expected]))
    return figures | {"loss": abs(loss - other)} | at_most({"gradient": error}, 1e-2)


def check_deterministic(setup: Setup) -> Figures:
    """Take two steps twice, from the same weights; every gradient and weight has the same bits."""
    folder = sized(setup.tiny, "7B" if CUDA else "tiny", 1)
    batch = batch_of(folder, 4096 if CUDA else 400, small=not CUDA)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (two_steps(folder, batch, setup.runtime) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    different = [a for a, b in zip(first, second, strict=True) if not torch.equal(a, b)]
    return at_most({"tensors that differ": float(len(different))}, 0.0)


def two_steps(folder: ModelFolder, batch: PackedBatch, runtime: Runtime) -> list[Tensor]:
    """Return the gradients of the second of two steps, and the weights after it."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if CUDA else torch.float32
    config = ModelConfig(activation_checkpointing="mlp")
    model = random_model(folder, runtime, config, dtype)
    optimizer = build_adamw(model, OptimConfig(lr=1e-3))
    gradients: list[Tensor] = []
    for _ in range(2):
        optimizer.zero_grad()
        forward_backward(model, [batch], OBJECTIVE, runtime)
        gradients = [local(p.grad).clone() for p in model.parameters() if p.grad is not None]
        clip_gradients(model, 1.0)
        optimizer.step()
    return gradients + weights_of(model)


def weights_of(model: PackedModel) -> list[Tensor]:
    return [local(p).detach() for p in model.parameters()]


def local(tensor: Tensor) -> Tensor:
    """Return a DTensor's own part."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def check_rows(setup: Setup) -> Figures:
    """Statistics and gradients of rows of logits, at sizes around those of blocks."""
    figures: Figures = {}
    vocabularies = (1, 7, 511, 512, 513, 4097, *([152_064] if CUDA else []))
    generator = torch.Generator(DEVICE).manual_seed(0)
    for rows, vocab, dtype in itertools.product(
        (1, 3, 65), vocabularies, (torch.float32, torch.bfloat16)
    ):
        logits = 4 * torch.randn(rows, vocab, generator=generator, device=DEVICE)
        logits = logits.to(dtype)
        target = torch.randint(vocab, (rows,), generator=generator, device=DEVICE)
        key = "float32" if dtype == torch.float32 else "bfloat16"
        error = row_error(logits, target)
        figures[key] = max(figures.get(key, 0.0), error)
    at_most({"float32": figures["float32"]}, 1e-5)
    return at_most(figures, 1e-2)


def row_error(logits: Tensor, target: Tensor, few: slice = slice(None)) -> float:
    """Return the largest error over 1 + |exact| of statistics and gradient, of the rows ``few``."""
    wide = logits[few].double().requires_grad_()
    exact = row_logp_reference(wide, target[few])
    (0.7 * exact[0] + 0.1 * exact[1]).sum().backward()
    assert wide.grad is not None
    stats = row_logp(logits, target)
    pairs = [(value[few], reference) for value, reference in zip(stats, exact, strict=True)]
    upstream = torch.ones_like(stats[0])
    row_logp_grad_(logits, target, stats, 0.7 * upstream, 0.1 * upstream)
    pairs.append((logits[few], wide.grad))
    return max(
        float(((value.double() - reference.detach()).abs() / (1 + reference.detach().abs())).max())
        for value, reference in pairs
    )


def check_sizes(setup: Setup) -> Figures:
    """The head at the largest sizes: row numbers times the vocabulary pass 2^31."""
    rows, width, vocab = (65_536, 3584, 152_064) if CUDA else (96, 32, 464)
    head = Head(rows, width, vocab, torch.bfloat16)
    exact = head.exact("grpo")
    ours = max(relative_errors(head.ovlt("grpo"), exact))
    plain = max(relative_errors(head.by_blocks("grpo"), exact))
    del head, exact
    rows = 16_384 if CUDA else 96
    logits = torch.randn(rows, vocab, device=DEVICE, dtype=torch.bfloat16)
    target = torch.randint(vocab, (rows,), device=DEVICE)
    figures = {"head": ours, "head by plain PyTorch": plain, "head, ratio": ours / plain}
    figures["last rows"] = row_error(logits, target, slice(-64, None))
    at_most({"last rows": figures["last rows"]}, 1e-2)
    at_most({"head, ratio": figures["head, ratio"]}, 2.0)
    return figures


def at_most(figures: Figures, limit: float) -> Figures:
    """Return ``figures``. Raises AssertionError if one is above ``limit``, or NaN."""
    wrong = {name: value for name, value in figures.items() if not value <= limit}
    if wrong:
        raise AssertionError(f"above {limit}: {wrong}; all: {figures}")
    return figures


CHECKS: dict[str, Callable[[Setup], Figures]] = {
    "fsdp": check_fsdp,
    "feed": check_feed,
    "deterministic": check_deterministic,
    "rows": check_rows,
    "sizes": check_sizes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help=", ".join(CHECKS))
    words = parser.parse_args()
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as home:
        setup = Setup(Path(home))
        for name in words.names or CHECKS:
            began = time.perf_counter()
            result: dict[str, object] = {"check": name, "passed": True}
            try:
                result["figures"] = CHECKS[name](setup)
            except Exception as error:
                traceback.print_exc()
                result |= {"passed": False, "error": f"{type(error).__name__}: {error}"[:500]}
            result["seconds"] = round(time.perf_counter() - began, 1)
            results.append(result)
            if CUDA:
                torch.cuda.empty_cache()
            print(result, flush=True)
            write_json(words.out, {"about": about(), "checks": results})
    setup.close()
    raise SystemExit(not all(result["passed"] for result in results))


if __name__ == "__main__":
    main()
