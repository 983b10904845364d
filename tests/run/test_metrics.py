"""What a run leaves behind survives kills, resumes and odd values."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovlt.run.metrics import MetricsWriter, PhaseTimer
from ovlt.run.record import read_metrics
from ovlt.types import Group, Prompt, Sample


def writer(folder: Path, **options) -> MetricsWriter:
    options = {"tensorboard": False, "total_steps": 9, "description": "grpo"} | options
    return MetricsWriter(folder, **options)


def group(step: int, text: str = "42", reward: float = 1.0) -> Group:
    pixels = np.random.default_rng(3).integers(0, 256, (28, 56, 3), dtype=np.uint8)
    prompt = Prompt("p7", "charts", "How many?", "42", np.arange(5), (pixels, pixels.copy()))
    sample = Sample(
        prompt, np.arange(8), np.arange(8) >= 5, text=text, reward=reward,
        reward_parts={"accuracy": reward}, reason="equal", advantage=-0.5, finished=False,
    )  # fmt: skip
    return Group(prompt, [sample, sample])


def tensorboard_scalars(folder: Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of every event in every file, in the order of writing."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.glob("events.*")):
        for record in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(record)
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            if event.HasField("session_log"):
                found.append((event.step, "session start", 0.0))
    return found


def test_lines_hold_what_was_logged(tmp_path):
    out = writer(tmp_path)
    out.log(1, {"loss": np.float32(0.5), "reward/mean": 1}, {"rollout": 2.5})
    assert read_metrics(tmp_path)[0]["metrics"] == {"loss": 0.5, "reward/mean": 1.0}  # flushed
    out.log(2, {"loss": float("nan"), "lr": 1e-6}, {"rollout": float("inf")})
    out.close()
    out.close()
    first, second = read_metrics(tmp_path)
    assert first["seconds"] == {"rollout": 2.5}
    assert abs(first["time"] - time.time()) < 60
    assert "non_finite" not in first
    assert second["metrics"] == {"loss": None, "lr": 1e-6}
    assert second["seconds"] == {"rollout": None}
    assert second["non_finite"] == ["loss", "seconds/rollout"]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_progress_bar_tells_the_step(tmp_path, capsys):
    out = writer(tmp_path, start_step=3)
    out.log(
        4, {"reward/mean": 0.625, "response/tokens_mean": 81.4, "tokens_per_second": 15321.0}, {}
    )
    out.close()
    printed = capsys.readouterr().err
    for part in ("grpo", "4/9", "reward 0.625", "81 tokens/answer", "15,321 tokens/s"):
        assert part in printed


def test_other_ranks_write_nothing(tmp_path, capsys):
    out = writer(tmp_path / "new", is_main=False, tensorboard=True, wandb="never-imported")
    out.log(1, {"loss": 1.0}, {})
    out.log_rollouts(1, [group(1)])
    out.resume(0)
    out.close()
    assert not (tmp_path / "new").exists()
    assert capsys.readouterr().err == ""


def test_tensorboard_gets_the_scalars_and_the_resume(tmp_path):
    out = writer(tmp_path, tensorboard=True)
    for step in (1, 2, 3):
        out.log(step, {"loss": step / 2, "bad": float("nan")}, {"update": 0.25})
    out.close()
    again = writer(tmp_path, tensorboard=True, start_step=2)
    again.resume(2)
    again.log(3, {"loss": 8.0}, {})
    again.close()
    found = tensorboard_scalars(tmp_path / "tb")
    assert (2, "loss", 1.0) in found
    assert (2, "seconds/update", 0.25) in found
    assert not any(tag == "bad" for _, tag, _ in found)
    assert found[-2:] == [(3, "session start", 0.0), (3, "loss", 8.0)]


def test_rollouts_and_images(tmp_path):
    out = writer(tmp_path)
    hostile = "a\u2028b\ud800\x00 </script>\n"
    out.log_rollouts(12, [group(12, hostile), group(12, reward=math.nan)])
    image = next((tmp_path / "images").iterdir())
    stamp = image.stat().st_mtime_ns
    out.log_rollouts(13, [group(13)])
    out.log_rollouts(13, [group(13, "again")])  # a step run twice is kept once
    out.close()
    lines = (tmp_path / "rollouts" / "step_000012.jsonl").read_text("ascii").splitlines()
    first, second = (json.loads(line) for line in lines)
    assert {k: first[k] for k in ("step", "prompt_id", "source", "question", "answer")} == {
        "step": 12, "prompt_id": "p7", "source": "charts", "question": "How many?", "answer": "42",
    }  # fmt: skip
    assert first["samples"][0] == {
        "text": hostile, "reward": 1.0, "parts": {"accuracy": 1.0}, "reason": "equal",
        "advantage": -0.5, "tokens": 3, "finished": False,
    }  # fmt: skip
    assert second["samples"][1]["reward"] is None
    # Two equal images are one file, written once, pixel for pixel.
    assert first["images"] == [f"images/{image.name}"] * 2
    assert [p.name for p in (tmp_path / "images").iterdir()] == [image.name]
    assert image.stat().st_mtime_ns == stamp
    assert (np.asarray(Image.open(image)) == group(0).prompt.images[0]).all()
    (only,) = (tmp_path / "rollouts" / "step_000013.jsonl").read_text().splitlines()
    assert json.loads(only)["samples"][0]["text"] == "again"


def test_images_that_are_not_uint8_rgb_are_refused(tmp_path):
    bad = group(1)
    object.__setattr__(bad.prompt, "images", (np.zeros((28, 28), np.float32),))
    out = writer(tmp_path)
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\].*float32 \[28, 28\]"):
        out.log_rollouts(1, [bad])
    out.close()


def test_resume_takes_back_what_came_after_the_checkpoint(tmp_path):
    out = writer(tmp_path)
    for step in range(1, 8):
        out.log(step, {"loss": float(step)}, {})
        out.log_rollouts(step, [group(step)])
    out.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "met')
    torn = tmp_path / "rollouts" / "step_000003.jsonl"
    torn.write_text(torn.read_text() + '{"step": 3, "pro')
    (tmp_path / "rollouts" / "step_000005.jsonl.tmp").write_text("half")
    assert len(read_metrics(tmp_path)) == 7

    out = writer(tmp_path, start_step=4)
    out.resume(4)
    out.resume(4)  # killed in between and called again
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    names = sorted(p.name for p in (tmp_path / "rollouts").iterdir())
    assert names == [f"step_{n:06d}.jsonl" for n in (1, 2, 3, 4)]
    assert len(torn.read_text().splitlines()) == 1
    out.log(5, {"loss": 55.0}, {})
    out.resume(4)  # also with the file open
    out.log(5, {"loss": 555.0}, {})
    out.close()
    assert [line["metrics"]["loss"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 555]
    out = writer(tmp_path)
    out.resume(-1)
    out.close()
    assert read_metrics(tmp_path) == []


def test_a_line_after_a_torn_one_is_not_lost(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "metrics": {}}\n{"step": 2, "me')
    out = writer(tmp_path)
    out.log(2, {"loss": 1.0}, {})
    out.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_reading_tells_a_torn_tail_from_damage(tmp_path):
    assert read_metrics(tmp_path) == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')  # no line end: the write was cut short
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    path.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2, is damaged"):
        read_metrics(tmp_path)


def test_a_killed_process_leaves_a_readable_record(tmp_path):
    program = (
        "import sys; from pathlib import Path; from ovlt.run.metrics import MetricsWriter\n"
        "out = MetricsWriter(Path(sys.argv[1]), tensorboard=False, total_steps=10**9, "
        "description='x')\n"
        "for step in range(1, 10**9):\n"
        "    out.log(step, {'loss': 1 / step, 'pad' * 40: 1.0}, {'a': 1.0})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.DEVNULL
    )
    path = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 30
    while (not path.exists() or path.stat().st_size < 50_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert len(steps) > 100
    assert steps == list(range(1, len(steps) + 1))


def test_wandb_that_is_missing_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        writer(tmp_path, wandb="project")


def test_phases_add_up_to_the_wall():
    timer = PhaseTimer()
    start = time.perf_counter()
    with timer("rollout"):
        time.sleep(0.02)
        with timer("reward"):
            time.sleep(0.03)
    with pytest.raises(RuntimeError), timer("update"):
        raise RuntimeError
    with timer("rollout"):
        time.sleep(0.01)
    time.sleep(0.01)
    seconds = timer.seconds()
    wall = time.perf_counter() - start
    assert list(seconds) == ["rollout", "reward", "update", "other"]
    assert math.fsum(seconds.values()) == pytest.approx(wall, abs=5e-3)
    assert seconds["reward"] >= 0.03  # charged to the inner phase only
    assert seconds["rollout"] >= 0.03
    assert seconds["other"] >= 0.01
    timer.reset()
    assert list(timer.seconds()) == ["other"]
