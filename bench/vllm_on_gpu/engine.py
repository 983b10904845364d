"""``engine.py OUT.json [libraries] [engine] [--eager]``: vLLM on this device, beside a trainer.

``libraries`` (a GPU only): the trimmed libraries of the kit, one by one, against PyTorch.
``engine``: a tiny model; the same seeds, beside a greedy prompt too, bans, sleep and wake with the
memory they give back, weights into the engine, the probe, every tensor read back, ten rounds of it
with constant memory, greedy tokens, and the mean difference of log-probs to the trainer. OVLT_VLLM:
see settings.py.

Each part is written when it is done, and its failure ends no other but those that need it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from ovlt.system import env

env.apply(env.machine())
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from machine import DEVICE, about, write_json
from settings import patch
from step_model import tiny_folder
from torch import Tensor

from ovlt.config import EngineConfig, ModelConfig, RunConfig
from ovlt.model import sizes as model_sizes
from ovlt.model.load import ModelFolder
from ovlt.model.packed_model import PackedModel
from ovlt.model.parallel import load_sharded
from ovlt.rollout.engine import Completion, Engine, Sampling, request_seeds, sample_of
from ovlt.rollout.open import open_engine
from ovlt.rollout.sync import PROBE_SAMPLING, ProbeDifference, WeightSync
from ovlt.system.runtime import Runtime, start
from ovlt.train.pack import collate
from ovlt.types import Prompt

CUDA = DEVICE.type == "cuda"
GIB = 2**30
ROUNDS = 10  # of sleep, wake, load
MEAN = 0.1 if CUDA else 1e-4  # nats that rounding explains, on average
MAX_TOKENS, MAX_PIXELS = 464, 256 * 256
SIZES = ([(84, 84)], [], [(56, 140), (196, 112)], [(252, 252)] * 2)  # images of the prompts
# head dim, query heads, key heads, causal: the tiny model's, the tower's, and the decoder's of 7B
SHAPES = ((32, 2, 1, True), (24, 2, 2, False), (80, 16, 16, False), (128, 28, 4, True))


# By way of gpu_model_runner numba is imported too, which must like this numpy.
MODULES = (
    "vllm.cumem_allocator",
    "vllm.model_executor.models.qwen2_5_vl",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.worker.gpu_worker",
)


class Report:
    """Parts with their verdicts and figures, written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checks: list[dict[str, object]] = []
        self._name, self._began = "", 0.0
        self._figures: dict[str, object] = {}

    def part(self, name: str) -> Report:
        """Name the part that a ``with`` block runs; an error is its verdict."""
        self._name, self._began, self._figures = name, time.perf_counter(), {}
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Write the verdict. The parts that follow are run, whatever the error."""
        if error is not None and not isinstance(error, Exception):
            return False  # such as an interrupt
        check: dict[str, object] = {"check": self._name, "passed": error is None}
        if error is not None:
            traceback.print_exception(error)
            check["error"] = f"{type(error).__name__}: {error}"[:500]
        seconds = round(time.perf_counter() - self._began, 2)
        check |= {"figures": self._figures, "seconds": seconds}
        self.checks.append(check)
        print("PASS" if check["passed"] else "FAIL", check, flush=True)
        write_json(self.path, {"about": about(), "checks": self.checks})
        return True

    def note(self, **figures: object) -> None:
        """Add figures to the part at work."""
        self._figures |= {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in figures.items()
        }


def expect(truth: object, text: str) -> None:
    """Raise AssertionError with ``text`` if it is not so."""
    if not truth:
        raise AssertionError(text)


# --- the libraries -----------------------------------------------------------------------------
def plain_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention of one sequence [tokens, heads, dim] in float32."""
    share = q.shape[1] // k.shape[1]
    q, k, v = (x.float().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(share, 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    if causal:
        seen = torch.ones_like(scores[0], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        scores = scores.masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1)


def libraries(report: Report) -> None:
    """Import vLLM, and compare its compiled operations with PyTorch."""
    with report.part("vllm: imports"):
        for name in MODULES:
            importlib.import_module(name)
        import vllm
        from vllm.platforms import current_platform
        from vllm.vllm_flash_attn import FA3_AVAILABLE

        report.note(vllm=vllm.__version__, gpu=current_platform.get_device_name())
        expect(current_platform.is_cuda(), "vLLM sees no CUDA")
        expect(FA3_AVAILABLE, "FlashAttention 3 is not there")
    with report.part("vllm: the slimmed library computes"):
        importlib.import_module("vllm._custom_ops")  # registers torch.ops._C
        x, weight = (torch.randn(n, 512, device="cuda", dtype=torch.bfloat16) for n in (64, 1))
        out = torch.empty_like(x)
        torch.ops._C.rms_norm(out, x, weight[0], 1e-6)
        exact = torch.nn.functional.rms_norm(x.float(), (512,), weight[0].float(), 1e-6)
        error = float((out.float() - exact).norm() / exact.norm())
        half = torch.empty(64, 256, device="cuda", dtype=torch.bfloat16)
        torch.ops._C.silu_and_mul(half, x)
        exact = torch.nn.functional.silu(x[:, :256].float()) * x[:, 256:].float()
        second = float((half.float() - exact).norm() / exact.norm())
        report.note(rms_norm=error, silu_and_mul=second)
        expect(max(error, second) < 1e-2, "wrong results")
    with report.part("vllm: FlashAttention 3"):
        from vllm.vllm_flash_attn import flash_attn_varlen_func

        for dim, heads, kv_heads, causal in SHAPES:
            q = torch.randn(300, heads, dim, device="cuda", dtype=torch.bfloat16)
            k, v = torch.randn(2, 300, kv_heads, dim, device="cuda", dtype=torch.bfloat16)
            ends = torch.tensor([0, 100, 300], device="cuda", dtype=torch.int32)
            result = flash_attn_varlen_func(
                q, k, v, max_seqlen_q=200, cu_seqlens_q=ends, max_seqlen_k=200, cu_seqlens_k=ends,
                causal=causal, fa_version=3,
            )  # fmt: skip
            parts = [slice(0, 100), slice(100, 300)]
            exact = torch.cat([plain_attention(q[p], k[p], v[p], causal) for p in parts])
            error = float((result.float() - exact).norm() / exact.norm())
            report.note(**{f"head_{dim}": error})
            expect(error < 2e-2, f"head dim {dim}: error {error}")


# --- the engine --------------------------------------------------------------------------------
def prompts_of(folder: ModelFolder) -> list[Prompt]:
    """Return questions without, with one and with two images."""
    rng = np.random.default_rng(3)
    prompts: list[Prompt] = []
    for i, sizes in enumerate(SIZES):
        grids = [model_sizes.image_grid(folder.config, h, w) for h, w in sizes]
        ids = folder.chat.prompt_ids("<image>" * len(sizes) + "How many red bars?", grids)
        images = tuple(rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes)
        prompts.append(Prompt(str(i), "test", "q", "3", ids, images))
    return prompts


def taken_gib() -> float:
    """GiB of the GPU that are not free, whoever has them."""
    if not CUDA:
        return 0.0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / GIB


class Parts:
    """An engine and a trainer on one device, and what is asked of them."""

    def __init__(self, folder: ModelFolder, runtime: Runtime, *, eager: bool) -> None:
        self.folder, self.runtime, self.eager = folder, runtime, eager
        self.dtype = torch.bfloat16 if CUDA else torch.float32
        self.prompts = prompts_of(folder)
        self.engine: Engine = self._opened()
        self.model: PackedModel | None = None

    def _opened(self) -> Engine:
        config = EngineConfig(
            max_sequences=32, gpu_memory=0.3, kv_cache_gib=0.2, eager=self.eager, runner="auto"
        )
        return open_engine(
            self.folder, config, self.runtime, dtype=self.dtype, max_tokens=MAX_TOKENS,
            max_images=2, max_pixels=MAX_PIXELS,
        )  # fmt: skip

    def load_trainer(self) -> WeightSync:
        """Load the trainer beside the sleeping engine."""
        self.model = load_sharded(
            self.folder, self.runtime.mesh, DEVICE, ModelConfig(), dtype=self.dtype, temperature=0.8
        )
        limits = ProbeDifference(mean=MEAN, largest=2.0)
        return WeightSync(self.engine, self.model, self.folder, tolerance=limits, verify_every=1)

    def sample(
        self, seed: int, sampling: Sampling | None = None, *, beside: Sequence[Sampling] = ()
    ) -> list[Completion]:
        """Return the completions of all prompts. The engine is awake.

        ``beside``: how more prompts of the same call are sampled, whose completions are left out.
        """
        sampling, prompts = sampling or Sampling(3, 0.8, 17), self.prompts
        seeds = request_seeds(seed, 0, range(len(prompts)), sampling.n)
        groups = self.engine.generate(
            [*prompts, *[prompts[1]] * len(beside)],
            [*[sampling] * len(prompts), *beside],
            [*seeds, *[0] * len(beside)],
        )
        return [completion for group in groups[: len(prompts)] for completion in group]

    def difference(self, seed: int) -> float:
        """Return the mean |log-prob of the trainer - of the engine|."""
        assert self.model is not None
        completions = self.sample(seed)
        asked = [p for p in self.prompts for _ in range(len(completions) // len(self.prompts))]
        apart: list[Tensor] = []
        for prompt, completion in zip(asked, completions, strict=True):
            batch = collate(
                [sample_of(prompt, completion)],
                [1.0],
                config=self.folder.config,
                patchify=self.folder.patchify,
            )
            with torch.no_grad():
                logp = self.model(batch.to(DEVICE)).logp
            apart.append((logp.float().cpu() - torch.from_numpy(completion.logp)).abs())
        return float(torch.cat(apart).mean())

    def move(self) -> None:
        """Give the trainer other weights."""
        assert self.model is not None
        self.model.reshard()
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in self.model.parameters():
                local = parameter.to_local()
                local += 0.05 * torch.randn_like(local)


def same(a: Sequence[Completion], b: Sequence[Completion]) -> float:
    """Return the share of equal texts."""
    return float(
        np.mean([np.array_equal(x.token_ids, y.token_ids) for x, y in zip(a, b, strict=True)])
    )


def engine(report: Report, runtime: Runtime, home: Path, *, eager: bool) -> None:
    """Go through what a run asks of an engine."""
    before, parts = taken_gib(), None
    with report.part("engine: opens, and sleeps"):
        report.note(settings=patch(), eager=eager)
        parts = Parts(tiny_folder(home), runtime, eager=eager)
        report.note(asleep_gib=taken_gib() - before)
        llm = getattr(parts.engine, "llm")  # noqa: B009 - no part of the interface
        inner = llm.llm_engine.vllm_config
        report.note(v2_runner=bool(getattr(inner, "use_v2_model_runner", False)))
    if parts is None:
        return
    sync = None
    with report.part("engine: a trainer beside it"):
        sync = parts.load_trainer()
    if sync is None:
        return
    with report.part("engine: wake, load, probe, every tensor read back"):
        parts.engine.wake()
        report.note(**sync().metrics(), awake_gib=taken_gib() - before)
    with report.part("engine: same seeds, same texts; other seeds, others"):
        first = parts.sample(7)
        report.note(same_seed=same(first, parts.sample(7)), other_seed=same(first, parts.sample(8)))
        said = np.concatenate([c.token_ids for c in first])
        expect(not np.isin(said, parts.folder.banned).any(), "a banned id was sampled")
        expect(all(np.isfinite(c.logp).all() for c in first), "a log-prob is not finite")
        expect(same(first, parts.sample(8)) < 1, "seeds make no difference")
        if parts.engine.mixes_greedy:
            beside = same(first, parts.sample(7, beside=[PROBE_SAMPLING]))
            report.note(beside_greedy=beside)
            # Rounding may turn a text: the batch has another size. Without seeds all would differ.
            expect(beside >= 0.5, "a greedy prompt beside them takes the seeds from others")
    with report.part("engine: log-probs are the trainer's"):
        mean = parts.difference(9)
        report.note(mean_difference=mean)
        expect(mean < MEAN, f"apart by {mean} nats on average")
    with report.part("engine: stale before a sync, fresh after it"):
        parts.move()
        stale = parts.difference(10)
        began = time.perf_counter()
        proof = sync()
        fresh = parts.difference(10)
        report.note(stale=stale, fresh=fresh, sync_s=time.perf_counter() - began, **proof.metrics())
        expect(fresh < MEAN < stale, "the sync did not bring the new weights")
    with report.part(f"engine: memory is constant over {ROUNDS} rounds of sleep, wake, load"):
        began, asleep, awake = time.perf_counter(), [], []
        for _ in range(ROUNDS):
            parts.engine.sleep()
            asleep.append(taken_gib())
            parts.engine.wake()
            sync()
            awake.append(taken_gib())
        report.note(round_s=(time.perf_counter() - began) / ROUNDS)
        report.note(asleep_first=asleep[0], asleep_last=asleep[-1], awake_last=awake[-1])
        expect(asleep[-1] < asleep[1] + 0.1, f"memory grows: {asleep}")
        expect(not CUDA or asleep[-1] < awake[-1] - 1, "sleep gives no memory back")
    if CUDA:
        with report.part("engine: sleep level 1, which keeps the weights in host memory"):
            setattr(parts.engine, "_sleep_level", 1)  # noqa: B010 - as engine.sleep_level = 1
            began, levels = time.perf_counter(), []
            for _ in range(3):
                parts.engine.sleep()
                levels.append(taken_gib())
                parts.engine.wake()
            report.note(asleep_gib=levels[-1], round_s=(time.perf_counter() - began) / 3)
            expect(levels[-1] < levels[0] + 0.1, f"memory grows: {levels}")
            report.note(mean_difference=parts.difference(11), **sync().metrics())
    with report.part("engine: greedy tokens"):
        greedy = Sampling(1, 0.0, 9)
        report.note(same=same(parts.sample(0, greedy), parts.sample(1, greedy)))
        expect(same(parts.sample(0, greedy), parts.sample(1, greedy)) == 1, "greedy texts differ")
    with report.part("engine: closes"):
        parts.engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=["engine"])
    parser.add_argument(
        "--eager", action="store_true", help="without torch.compile and CUDA graphs"
    )
    words = parser.parse_args()
    report = Report(words.out)
    if "libraries" in words.names and CUDA:
        libraries(report)
    if "engine" in words.names:
        runtime = start(RunConfig(device=DEVICE.type))  # LOCAL_RANK: an external launcher's engine
        with tempfile.TemporaryDirectory() as home:
            engine(report, runtime, Path(home), eager=words.eager)
    failed = sum(not check["passed"] for check in report.checks)
    print(f"{len(report.checks) - failed} passed, {failed} failed", flush=True)
    sys.stdout.flush()
    os._exit(bool(failed))  # an engine's threads may outlive it


if __name__ == "__main__":
    main()
