"""The report page: it shows the figures of the run, and hostile text stays text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.report_page import HOSTILE, UNSEEN, chromium, shown_title, words

from ovlt.benchmarks.stats import mean_ci95, paired_difference, wilson_ci95
from ovlt.report.command import write_report
from ovlt.run.metrics import MetricsWriter
from ovlt.types import Group, Prompt, Sample

FAMILIES = ("chart bars", "geometry", "grid counting")


def make_evaluation(seed: int, accuracy: float, questions: int = 90) -> dict:
    rng = np.random.default_rng(seed)
    skill = np.clip(rng.normal(accuracy, 0.25, questions), 0, 1)
    sampled = rng.binomial(4, skill) / 4
    greedy = (rng.random(questions) < skill).astype(int)
    mean, half = mean_ci95(sampled.tolist())
    families = {
        name: {
            "num": questions // 3,
            "greedy": greedy[i::3].mean(),
            "sampled": sampled[i::3].mean(),
        }
        for i, name in enumerate(FAMILIES)
    }
    ids = [f"q{i}" for i in range(questions)]
    return {
        "split": "test", "model": f"runs/demo/{seed}/hf", "num_questions": questions,
        "greedy": {"accuracy": greedy.mean(), "ci95": wilson_ci95(int(greedy.sum()), questions)},
        "sampled": {"temperature": 1.0, "n": 4, "accuracy": mean,
                    "ci95": [mean - half, mean + half]},
        "response_tokens": {"greedy": 61.0 + 8 * seed, "sampled": 64.5 + 8 * seed},
        "by_source": families, "by_kind": {k: families[k] for k in FAMILIES[:2]},
        "questions": {"id": ids, "greedy": greedy.tolist(), "sampled": sampled.tolist()},
    }  # fmt: skip


def make_groups(step: int, texts: list[str], num: int = 3) -> list[Group]:
    groups = []
    for index in range(num):
        rng = np.random.default_rng([step, index])
        image = np.full((112, 168, 3), 245, np.uint8)
        for bar, height in enumerate(rng.integers(15, 95, 5)):
            image[112 - height :, 12 + 30 * bar : 32 + 30 * bar] = (40 + 30 * bar, 90, 160)
        prompt = Prompt(
            f"chart-{step}-{index}", "chart bars", f"How many bars top bar {index + 1}?",
            str(index), np.arange(9), (image,),
        )  # fmt: skip
        rewards = [float((index + k) % 2) for k in range(len(texts))]
        mean, std = np.mean(rewards), np.std(rewards) + 1e-6
        samples = [
            Sample(
                prompt, np.arange(20 + k), np.arange(20 + k) >= 9, text=text, reward=reward,
                reward_parts={"accuracy": reward, "format": 1.0},
                reason="equal numbers" if reward else "no number in the box",
                advantage=float((reward - mean) / std), finished=k != 3,
            )
            for k, (text, reward) in enumerate(zip(texts, rewards, strict=True))
        ]  # fmt: skip
        groups.append(Group(prompt, samples))
    return groups


def make_stage(
    run: Path, name: str, order: int, *, steps: int, accuracy: float | None, texts: list[str]
) -> Path:
    folder = run / name
    folder.mkdir(parents=True)
    kind = name.rstrip("0123456789")
    about = {
        "stage": kind, "title": name.upper(), "created": f"2025-11-20T1{order}:00:00+00:00",
        "status": "done" if order < 2 else "running", "seconds": 431.0 * (order + 1),
        "steps": steps, "order": order,
        "command": f"torchrun -m ovlt.{kind} recipes/smoke.toml --seed=7",
    }  # fmt: skip
    (folder / "stage.json").write_text(json.dumps(about))
    if accuracy is not None:
        (folder / "evaluation.json").write_text(json.dumps(make_evaluation(order, accuracy)))
    if steps:
        rng = np.random.default_rng(order)
        writer = MetricsWriter(folder, tensorboard=False, total_steps=steps, description=name)
        for step in range(1, steps + 1):
            metrics = {
                "loss": float(2 / step**0.5 + rng.normal(0, 0.05)),
                "reward/mean": float(0.7 - 0.5 * 0.97**step + rng.normal(0, 0.05)),
                "response/tokens_mean": float(60 + step / 3 + rng.normal(0, 3)),
                "mismatch/kl": float(abs(rng.normal(4e-4, 1e-4))),
                "grad_norm": float("nan") if step == 3 else float(abs(rng.normal(1, 0.2))),
                "tokens_per_second": float(rng.normal(15300, 400)),
            }
            if step % 5 == 0:
                metrics |= {"val/sampled": 0.3 + step / 300, "val/greedy": 0.33 + step / 300}
            seconds = {"rollout": 3 + rng.random(), "reward": 0.2, "update": 2.1, "other": 0.1}
            writer.log(step, metrics, seconds)
            if step % 5 == 1:
                writer.log_rollouts(step, make_groups(step, texts))
        writer.close()
    return folder


def make_run(run: Path, texts: list[str], steps: int = 16) -> Path:
    make_stage(run, "base", 0, steps=0, accuracy=0.2, texts=texts)
    make_stage(run, "sft", 1, steps=steps, accuracy=0.45, texts=texts)
    make_stage(run, "grpo", 2, steps=steps, accuracy=0.66, texts=texts)
    about = {
        "recipe": "smoke.toml", "seed": 7, "hardware": "2 x CPU core", "commit": "0123abc",
        "versions": {"torch": "2.13.0", "vllm": "0.32.0"}, "command": "torchrun -m ovlt.cycle",
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(about))
    return run


TEXTS = ["Bar 1 reaches 40. So \\boxed{2}.", "I count three. \\boxed{3}", "two", "x" * 5000]


def test_page_and_summary_hold_the_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TEXTS)
    out = write_report(run)
    page, seen = out.read_text("utf-8"), words(out.read_text("utf-8"))
    text = (run / "summary.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    summary = json.loads(text)
    assert [stage["name"] for stage in summary["stages"]] == ["base", "sft", "grpo"]

    evaluations = [json.loads((run / n / "evaluation.json").read_text()) for n in ("sft", "grpo")]
    sft, grpo = evaluations
    last = summary["stages"][2]
    assert last["evaluation"]["greedy"]["ci95"] == grpo["greedy"]["ci95"]
    assert f"{grpo['greedy']['accuracy'] * 100:.1f}" in seen
    assert f"{grpo['sampled']['ci95'][0] * 100:.1f} to" in seen
    mean, half = paired_difference(grpo["questions"]["greedy"], sft["questions"]["greedy"])
    assert last["difference"]["baseline"]["greedy"] == {"mean": mean, "half_width": half}
    assert f"+{mean * 100:.1f} \u00b1 {half * 100:.1f}" in seen
    assert summary["stages"][1]["difference"]["previous"]["to"] == "base"
    assert summary["stages"][1]["difference"]["baseline"] is None  # itself the baseline
    assert len(last["curves"]["loss"]["steps"]) == 16
    assert last["curves"]["grad_norm"]["values"][2] is None
    assert "Not finite in 1 step, first at step 3" in seen
    for expected in ("smoke.toml", "2 x CPU core", "torch", "0.32.0", "Validation accuracy", "grid",
                     "Seconds per step, by phase", "geometry", "7 min 11 s"):  # fmt: skip
        assert expected in seen, expected
    assert page.count("<svg") == 1 + 2 * 8


def test_page_loads_nothing_and_is_reproducible(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TEXTS, steps=4)
    first = write_report(run).read_bytes()
    assert write_report(run, tmp_path / "elsewhere" / "page.html").read_bytes() == first
    assert (tmp_path / "elsewhere" / "summary.json").exists()
    page = first.decode("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        source = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1].encode()
        digest = base64.b64encode(hashlib.sha256(source).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "img-src data:" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    links = re.findall(r'(?:src|href|action)="([^"]*)"', page)
    assert links
    assert all(link.startswith(("#", "data:image/")) for link in links)
    assert not re.search(r"url\(|@import|\sstyle=|\son\w+=", page)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [HOSTILE, UNSEEN], steps=3)
    about = {"stage": "sft", "title": HOSTILE, "order": 1, "status": HOSTILE, "command": UNSEEN}
    (run / "sft" / "stage.json").write_text(json.dumps(about))
    (run / "sft" / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "metrics": {"loss": 1}, "seconds": {'"><b>' + HOSTILE: 1}}) + "\n"
    )
    page = write_report(run).read_text("utf-8")
    assert "<img src=x" not in page
    assert page.count("<script>") == 1
    assert HOSTILE in html.unescape(page)
    spelled = (
        "pay \u27e8U+202E\u27e9cod.exe\u27e8U+202C\u27e9 \u27e8U+200B\u27e9now\u27e8U+001B\u27e9"
    )
    assert spelled in page
    assert "\u27e8U+D800\u27e9 end" in page
    assert not set("\u202e\u202c\u200b\x1b") & set(page)


def test_long_text_is_folded_and_cut(tmp_path: Path) -> None:
    texts = ["a" * 4100 + "tail", "b" * 50_000]
    run = make_run(tmp_path / "run", texts, steps=1)
    page = write_report(run).read_text("utf-8")
    assert "<summary>104 more characters</summary>" in page
    assert "10000 characters left out" in page
    assert "b" * 40_001 not in page


def test_rollouts_are_first_middle_last_and_bounded(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage = make_stage(run, "grpo", 2, steps=16, accuracy=None, texts=TEXTS)  # steps 1, 6, 11, 16
    writer = MetricsWriter(stage, tensorboard=False, total_steps=1, description="grpo")
    writer.log_rollouts(1, make_groups(1, ["y"] * 20, num=9))
    writer.close()
    seen = words(write_report(run).read_text("utf-8"))
    assert re.findall(r"Step (\d+) (\d+ of \d+) groups", seen) == [
        ("1", "6 of 9"), ("11", "3 of 3"), ("16", "3 of 3")]  # fmt: skip
    assert "4 more answers left out" in seen
    assert "advantage +1.00" in seen
    assert "advantage \u22121.00" in seen
    assert "cut at the length limit" in seen
    assert "no number in the box" in seen


def test_answers_on_which_the_judges_differ_are_listed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage = make_stage(run, "grpo", 2, steps=1, accuracy=None, texts=TEXTS)
    groups = make_groups(1, ["<answer>5 <b>km</b></answer>", "<answer>7</answer>"], num=1)
    for sample, mathruler in zip(groups[0].samples, (1.0, 0.0), strict=True):
        sample.reward_parts = {"accuracy": 0.0, "mathruler": mathruler, "math_verify": 0.0}
    writer = MetricsWriter(stage, tensorboard=False, total_steps=1, description="grpo")
    writer.log_rollouts(1, groups)
    writer.close()
    page = write_report(run).read_text("utf-8")
    assert "<b>km</b>" not in page
    seen = words(page)
    assert "Answers on which the judges differ (1)" in seen
    assert "5 <b>km</b> 0 wrong right wrong" in seen


def test_a_file_name_from_a_rollout_never_leaves_the_stage(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage = make_stage(run, "grpo", 2, steps=1, accuracy=None, texts=["t"])
    (run / "secret.png").write_bytes((next((stage / "images").iterdir())).read_bytes())
    file = stage / "rollouts" / "step_000001.jsonl"
    row = json.loads(file.read_text().splitlines()[0])
    row["images"] = ["../secret.png", "images/0123456789abcdef.png", 7]
    file.write_text(json.dumps(row) + "\n")
    page = write_report(run).read_text("utf-8")
    assert "data:image" not in page.split("<body>")[1]
    assert page.count("its name is not images/") == 2
    assert "cannot be shown" in page


@pytest.mark.parametrize("damage", ["no evaluation", "empty metrics", "torn", "garbage", "bare"])
def test_incomplete_stages_are_shown(tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path / "run", ["t"], steps=2)
    grpo = run / "grpo"
    if damage == "no evaluation":
        (grpo / "evaluation.json").unlink()
    elif damage == "empty metrics":
        (grpo / "metrics.jsonl").write_text("")
    elif damage == "torn":
        for file in (grpo / "metrics.jsonl", grpo / "rollouts" / "step_000001.jsonl"):
            file.write_bytes(file.read_bytes()[:-9])
    elif damage == "garbage":
        (grpo / "metrics.jsonl").write_text('{"step": 1, "metrics": {"loss": NaN}}\n[1]\n{{{\n')
        (grpo / "evaluation.json").write_text('{"greedy": 3, "questions": {"id": [1, 1]}')
        (grpo / "rollouts" / "step_000001.jsonl").write_text(
            '{"samples": 5}\n{"samples": [[]]}\n{"prompt_id": "no samples"}\n'
        )
    else:
        shutil.rmtree(grpo)
        grpo.mkdir()
        (grpo / "stage.json").write_text('{"order": 2}')
    seen = words(write_report(run).read_text("utf-8"))
    summary = json.loads((run / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["base", "sft", "grpo"]
    problems = summary["stages"][2]["problems"]
    if damage == "torn":
        assert "could not be read: 1" in problems[0]
        assert "1 damaged line left out" in seen
        assert len(summary["stages"][2]["curves"]["loss"]["steps"]) == 1
    if damage == "garbage":
        assert "3 damaged lines left out" in seen
        assert len(problems) == 2
        assert all(problem in seen for problem in problems)


def test_other_questions_are_not_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["t"], steps=1)
    file = run / "grpo" / "evaluation.json"
    evaluation = json.loads(file.read_text())
    evaluation["questions"]["id"][4] = "another"
    file.write_text(json.dumps(evaluation))
    write_report(run)
    stages = json.loads((run / "summary.json").read_text())["stages"]
    assert stages[2]["difference"] == {"previous": None, "baseline": None}
    # The order of the questions does not matter, their ids do.
    evaluation["questions"]["id"][4] = "q4"
    for key, values in evaluation["questions"].items():
        evaluation["questions"][key] = values[::-1]
    file.write_text(json.dumps(evaluation))
    write_report(run, baseline="base")
    again = json.loads((run / "summary.json").read_text())["stages"][2]["difference"]
    sft = json.loads((run / "sft" / "evaluation.json").read_text())["questions"]["greedy"]
    expected = paired_difference(evaluation["questions"]["greedy"][::-1], sft)
    assert again["previous"]["greedy"] == pytest.approx(
        {"mean": expected[0], "half_width": expected[1]}
    )
    assert again["baseline"]["to"] == "base"


def test_the_command_prints_its_files_and_explains_a_wrong_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["t"], steps=1)
    command = [sys.executable, "-m", "ovlt.report"]
    done = subprocess.run([*command, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(run / "report.html"), str(run / "summary.json")]
    bad = subprocess.run([*command, str(run / "sft")], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert "give its parent" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_nothing_hostile_runs_in_a_browser(tmp_path: Path) -> None:
    title = "</title>" + HOSTILE
    run = make_run(tmp_path / "run", [HOSTILE, UNSEEN, "<svg onload=\"document.title='owned'\">"])
    about = json.loads((run / "run.json").read_text()) | {"recipe": title, "commit": HOSTILE}
    (run / "run.json").write_text(json.dumps(about))
    page = write_report(run)
    source = page.read_text("utf-8")
    # A script smuggled into the page is refused; without the policy the same script runs, which
    # proves that this test would see it, and that the readout of the figures works.
    probe = """<script>
        const figure = document.querySelector("figure[data-readout]");
        figure.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
        document.title = "owned: " + figure.querySelector(".legend").innerText;
        </script></body>"""
    (tmp_path / "guarded.html").write_text(source.replace("</body>", probe), "utf-8")
    bare = re.sub(r"<meta http-equiv[^>]*>", "", source)
    (tmp_path / "bare.html").write_text(bare.replace("</body>", probe), "utf-8")

    dom = chromium(tmp_path / "guarded.html", tmp_path / "profile")
    assert shown_title(dom) == f"{title} - ovlt report"
    assert dom.count("<script>") == 2  # ours and the probe: no payload became an element
    assert '<img src="x"' not in dom
    assert dom.count("<svg") == 1 + 2 * 8
    assert "Validation accuracy" in dom
    assert '<p class="keys">' in dom  # the policy lets our own script run
    owned = shown_title(chromium(tmp_path / "bare.html", tmp_path / "profile-bare"))
    assert " ".join(owned.split()) == "owned: step 5 greedy 34.67 sampled 31.67"
