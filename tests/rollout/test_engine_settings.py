"""What vLLM is told on a GPU, seen without one."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny import tiny_folder

from ovlt.config import EngineConfig, SoloEngineConfig
from ovlt.rollout.engine import Sampling
from ovlt.rollout.open import check_memory
from ovlt.rollout.vllm_settings import choose_runner, engine_settings, image_settings
from ovlt.types import Prompt

vllm = pytest.importorskip("ovlt.rollout.vllm", exc_type=ImportError)
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


def settings(device: torch.device, solo: SoloEngineConfig | None = None, **keys: Any) -> Any:
    return engine_settings(device, EngineConfig(**keys), solo, max_model_len=512)


def test_a_user_chooses_runner_attention_and_eager_mode_on_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    choose_runner("auto", CUDA)
    choose_runner("v1", CPU)
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1"  # the user's, or vLLM's own choice
    choose_runner("v1", CUDA)
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    choose_runner("v2", CUDA)
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    default = settings(CUDA)
    assert not default["enforce_eager"]
    assert "attention_backend" not in default
    chosen = settings(CUDA, attention_backend="TRITON_ATTN", eager=True)
    assert chosen["enforce_eager"]
    assert chosen["attention_backend"] == "TRITON_ATTN"
    assert settings(CPU)["enforce_eager"]
    assert "attention_backend" not in settings(CPU, attention_backend="TRITON_ATTN")


def test_only_an_engine_beside_a_trainer_sleeps() -> None:
    assert settings(CUDA)["enable_sleep_mode"]
    assert not settings(CUDA, SoloEngineConfig())["enable_sleep_mode"]


class Sleeper:
    """Stands for vLLM: remembers what it was asked."""

    def __init__(self, **options: Any):
        self.options, self.calls = options, list[str]()
        self.llm_engine = SimpleNamespace(
            reset_encoder_cache=lambda: None, abort_request=lambda *_, **__: None
        )

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.calls.append("wake")

    def reset_prefix_cache(self) -> bool:
        return True

    def collective_rpc(self, name: str, **_: Any) -> None:
        self.calls.append(name)

    def _preprocess_cmpl_one(self, *_: Any) -> list[Any]:
        self.calls.append("generate")
        raise KeyError


@pytest.mark.parametrize("level", [1, 2])
def test_a_sleeping_engine_needs_weights_only_where_it_dropped_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    folder = tiny_folder(tmp_path / "m")
    monkeypatch.setattr(vllm, "LLM", Sleeper)
    engine = vllm.VllmEngine(
        folder, {"max_num_seqs": 8}, device=CUDA, dtype=torch.bfloat16, sleep_level=level
    )
    assert engine.llm.calls == [f"sleep {level}"]
    engine.wake()
    ids = folder.chat.prompt_ids("How many?", [])
    ask = ([Prompt("a", "test", "q", "3", ids, ())], Sampling(1, 0.0, 4), [0])
    if level == 2:
        with pytest.raises(RuntimeError, match="dropped when it slept"):
            engine.generate(*ask)
        assert "generate" not in engine.llm.calls
        engine.load(iter(()))
    with pytest.raises(KeyError):
        engine.generate(*ask)
    assert engine.llm.calls[-1] == "generate"


def test_vllm_sizes_itself_for_the_recipes_images_not_the_folders(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    least, most = folder.pixel_range
    assert most > 262_144
    told = image_settings(folder, 2, 262_144)
    assert told["mm_processor_kwargs"]["size"] == {"shortest_edge": least, "longest_edge": 262_144}
    assert told["limit_mm_per_prompt"] == {"image": 2, "video": 0}


def test_a_gpu_that_is_too_full_is_refused_with_what_is_missing_and_the_key() -> None:
    gib = 2**30
    check_memory(48 * gib, 80 * gib, EngineConfig(gpu_memory=0.6), None)
    with pytest.raises(ValueError, match=r"17\.5 GiB are missing.*gpu_memory to at most 0\.38"):
        check_memory(int(30.5 * gib), 80 * gib, EngineConfig(gpu_memory=0.6), None)
    with pytest.raises(ValueError, match=r"72\.0 \(gpu_memory=0\.9 of \[evaluate\.engine"):
        check_memory(48 * gib, 80 * gib, EngineConfig(), SoloEngineConfig())


def test_an_engine_that_does_not_start_says_its_own_error_before_that_of_the_clean_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: Any) -> None:
        try:
            raise RuntimeError("the kernel does not run on this chip")
        finally:
            raise AttributeError("'NoneType' object has no attribute 'shutdown'")

    monkeypatch.setattr(vllm, "LLM", fail)
    folder = tiny_folder(tmp_path / "m")
    with pytest.raises(ValueError, match="attention_backend") as seen:
        vllm.VllmEngine(
            folder, {"max_num_seqs": 8}, device=CUDA, dtype=torch.bfloat16, sleep_level=2
        )
    text = str(seen.value)
    assert text.index("the kernel does not run") < text.index("'shutdown'")
    assert "test_engine_settings.py" in capfd.readouterr().err  # the traceback, which says where


def test_every_call_of_vllm_runs_without_the_trainers_switch_for_determinism(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switched: list[bool] = []

    class Watcher(Sleeper):
        def __init__(self, **options: Any):
            super().__init__(**options)
            switched.append(torch.are_deterministic_algorithms_enabled())

        def collective_rpc(self, name: str, **_: Any) -> None:
            switched.append(torch.are_deterministic_algorithms_enabled())

        def _preprocess_cmpl_one(self, *_: Any) -> list[Any]:
            switched.append(torch.are_deterministic_algorithms_enabled())
            raise KeyError

    monkeypatch.setattr(vllm, "LLM", Watcher)
    folder = tiny_folder(tmp_path / "m")
    torch.use_deterministic_algorithms(True)
    try:
        engine = vllm.VllmEngine(
            folder, {"max_num_seqs": 8}, device=CPU, dtype=torch.float32, sleep_level=0
        )
        engine.load(iter(()))
        ids = folder.chat.prompt_ids("How many?", [])
        with pytest.raises(KeyError):
            engine.generate([Prompt("a", "test", "q", "3", ids, ())], Sampling(1, 0.0, 4), [0])
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert switched == [False] * 3
