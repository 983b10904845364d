"""``python bench/freshness.py``: what the probe of a weight sync notices, for docs/metrics.md.

First how often rounding alone would stop a run, by simulation. Then the real engine on a CPU,
beside a trainer whose weights differ from the engine's in one known way (model of
recipes/smoke.toml, random weights, float32): the difference on the probe, which limits it breaks,
and whether reading the tensors back finds it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ovlt.system import env

env.apply("cpu")

import torch

from ovlt.config import RunConfig
from ovlt.config.load import load_recipe
from ovlt.data.worlds import synthetic
from ovlt.model.load import open_folder
from ovlt.model.parallel import load_sharded
from ovlt.model.weights import full_weights
from ovlt.rollout.open import BFLOAT16, FLOAT32, open_engine
from ovlt.rollout.sync import PROBE_TOKENS, WeightSync
from ovlt.smoke.base import make_folder
from ovlt.system.runtime import start

Weights = dict[str, torch.Tensor]
SD = 0.05  # nats, of one token's difference in bfloat16, as others report it
RANKS = 8
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


def draws(kind: str, rng: np.random.Generator, rows: int) -> np.ndarray:
    """Errors of the tokens of ``rows`` probes, of standard deviation SD."""
    shape = (rows, PROBE_TOKENS)
    if kind == "normal":
        return SD * rng.standard_normal(shape)
    if kind == "Laplace":
        return SD / np.sqrt(2) * rng.laplace(size=shape)
    if kind == "1 % ten times as wide":
        wide = np.where(rng.random(shape) < 0.01, 10.0, 1.0)
        return SD / np.sqrt(0.99 + 0.01 * 100) * wide * rng.standard_normal(shape)
    return SD / np.sqrt(3) * rng.standard_t(3, shape)  # Student, 3 degrees of freedom


def simulate(millions: int) -> None:
    """Print how often a healthy probe breaks the limits, and a healthy sync stops."""
    rng = np.random.default_rng(0)
    print(f"| errors | probe breaks a limit | stop per sync, {RANKS} ranks | before: max > 0.5 |")
    print("|---|---|---|---|")
    for kind in ("normal", "Laplace", "1 % ten times as wide", "Student t, 3 degrees"):
        breaches = before = 0
        for _ in range(10 * millions):
            apart = np.abs(draws(kind, rng, 100_000))
            fine = (apart.mean(1) <= BFLOAT16.mean) & (apart.max(1) <= BFLOAT16.largest)
            breaches += int((~fine).sum())
            before += int((apart[:, :8].max(1) > 0.5).sum())
        total = millions * 1_000_000
        share, old = breaches / total, before / total
        stop = RANKS * share**2  # the same rank, twice
        print(f"| {kind} | {share:.1e} | {stop:.1e} | {1 - (1 - old) ** RANKS:.1e} |")


def exchanged(weights: Weights, one: str, other: str) -> Weights:
    """Return the weights with two tensors in each other's place."""
    return weights | {one: weights[other], other: weights[one]}


def moved(weights: Weights, rate: float, part: str = "") -> Weights:
    """Return the weights of one AdamW step before, if a step moves each weight by ``rate``.

    ``part`` is a part of the names of the stale tensors. The signs of the step are random.
    """
    generator = torch.Generator().manual_seed(3)
    out = dict(weights)
    for name, value in weights.items():
        sign = torch.randint(0, 2, value.shape, generator=generator) * 2.0 - 1.0
        if part in name:
            out[name] = value + rate * sign
    if torch.equal(weights[HEAD], weights[EMBEDDING]):  # one tensor under two names
        out[HEAD] = out[EMBEDDING]
    return out


def cases(weights: Weights) -> Iterator[tuple[str, Weights]]:
    """Yield what an engine may hold instead of the trainer's weights."""
    yield "nothing wrong", weights
    lost = (
        "layers.0.mlp.up_proj.weight",
        "layers.1.self_attn.q_proj.weight",
        "merger.mlp.2.weight",
    )
    for rate in (1e-2, 1e-4):
        for name in lost:
            text = f"`{name}` not sent; it has moved by {rate:g}"
            yield text, moved(weights, rate, name)
    for name in ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight"):
        pair = [f"model.language_model.layers.{i}.{name}" for i in (0, 1)]
        yield f"`{name}` of layers 0 and 1 exchanged", exchanged(weights, pair[0], pair[1])
    mlp = "model.language_model.layers.0.mlp."
    swapped = exchanged(weights, f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight")
    yield "gate and up of layer 0 exchanged", swapped
    for rate in (1e-4, 1e-6):
        yield f"all weights of one step before, rate {rate:g}", moved(weights, rate)
        text = f"image features of one step before (the tower's weights), rate {rate:g}"
        yield text, moved(weights, rate, "visual")


def measure() -> None:
    """Print the differences on both probes for each of ``cases``."""
    recipe = load_recipe("recipes/smoke.toml")
    runtime = start(RunConfig(device="cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        make_folder(Path(scratch) / "m", recipe.base, synthetic.vocabulary_corpus())
        folder = open_folder(Path(scratch) / "m")
        engine = open_engine(folder, recipe.engine, runtime, dtype=torch.float32, max_tokens=256)
        model = load_sharded(
            folder, runtime.mesh, runtime.device, recipe.model, dtype=torch.float32
        )
        sync = WeightSync(engine, model, folder, tolerance=FLOAT32)
        weights = {name: t.clone() for name, t in full_weights(model, tied_head=True)}
        print(
            "| the engine holds | first probe: mean, largest | stopped in float32 | in bfloat16 |"
        )
        print("|---|---|---|---|")
        for text, held in cases(weights):
            engine.load(held.items())
            both = [sync.difference(probe, sync.ask(probe)) for probe in sync.probes]
            stopped = [
                "no" if any(d.within(limits) for d in both) else "yes"
                for limits in (FLOAT32, BFLOAT16)
            ]
            try:
                sync.verify()
                stopped.append("no")
            except RuntimeError:
                stopped.append("yes")
            first = f"{both[0].mean:.1e}, {both[0].largest:.1e}"
            print(f"| {text} | {first} | {' | '.join(stopped)} |", flush=True)
        engine.load(weights.items())
        began = time.perf_counter()
        sync.verify()
        print(f"\nreading back took {time.perf_counter() - began:.3f} s")
        engine.close()
    runtime.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, default=10, help="probes to simulate")
    simulate(parser.parse_args().millions)
    print()
    measure()
