"""recipes/node.sh and the Dockerfile: what can be seen of them without a node of GPUs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ovlt.config.load import load_recipe
from ovlt.data.mixture.shares import entries

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MIXTURES = sorted((ROOT / "recipes" / "data").glob("*/*.toml"))
RECIPE = """
[run]
folder = "runs/mine/seed{seed}"
[model]
path = "models/Qwen2.5-VL-7B-Instruct" # not "models/in-a-comment"
[data]
validation = "data/mine/validation.parquet"
[distill]
teacher = "models/QwQ-32B"
"""
CYCLE = """
data = "data/mine/seeds.parquet"
[grpo]
data = "data/mine/medium.parquet"
[[cycle.iterations]]
"""
MIXTURE = """
[mixture]
folder = "data/mine/{name}"
total = 4
{more}
[[mixture.sources]]
source = "questions"
path = "data/sources/asked.jsonl"
"""
# The hub, and the three commands that need the models; everything else of ovlt is real.
PYTHON = """#!/bin/bash
case "$*" in *ovlt.plan*|*ovlt.cycle*|*ovlt.report*) echo "ran $*"; exit 0 ;; esac
exec {python} "$@"
"""
HUB = """#!/bin/bash
echo "hub $*" >> hub.log
[ "$HF_HUB_OFFLINE" = 0 ] || exit 1
while [ "$1" != --local-dir ]; do shift; done
mkdir -p "$2/.cache/huggingface/download" && echo '{}' > "$2/config.json"
printf '0123abcd\\netag\\n1.0\\n' > "$2/.cache/huggingface/download/config.json.metadata"
"""
NVIDIA = """#!/bin/bash
case "$*" in
  *driver*) for i in 1 2 3 4 5 6 7 8; do echo {driver}; done ;;
  *name*) for i in 1 2 3 4 5 6 7 8; do echo "NVIDIA {chip}"; done ;;
  -L) echo "GPU 0: NVIDIA {chip}" ;;
esac
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Node:
    """A copy of the repository on a machine that says it has eight GPUs."""

    def __init__(self, home: Path, *, chip: str = "H200", driver: str = "580.95.05"):
        self.home = home
        (home / "recipes").mkdir()
        for name in ("ovlt", "kernels", "Makefile", "requirements"):
            (home / name).symlink_to(ROOT / name)
        shutil.copy(ROOT / "recipes" / "node.sh", home / "recipes" / "node.sh")
        shutil.copy(ROOT / "recipes" / "smoke.toml", home / "recipes" / "smoke.toml")
        (home / "recipes" / "mine.toml").write_text(RECIPE)
        mixtures = home / "recipes" / "data" / "mine"
        mixtures.mkdir(parents=True)
        apart = 'benchmarks = ["data/mine/validation.parquet"]'
        for name, more in (("a_first", apart), ("held_out", "validation = 2")):
            text = MIXTURE.replace("{name}", name).replace("{more}", more)
            (mixtures / f"{name}.toml").write_text(text)
        executable(home / "bin" / "python", PYTHON.replace("{python}", sys.executable))
        executable(home / "bin" / "hf", HUB)
        text = NVIDIA.replace("{chip}", chip).replace("{driver}", driver)
        executable(home / "bin" / "nvidia-smi", text)
        sources = home / "data" / "sources"
        sources.mkdir(parents=True)
        rows, rng = [], np.random.default_rng(11)
        for index in range(12):
            pixels = rng.integers(0, 256, (37, 41, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(sources / f"{index}.png")
            row = {"problem": f"<image>No. {index}?", "answer": "3", "images": [f"{index}.png"]}
            rows.append(json.dumps(row))
        (sources / "asked.jsonl").write_text("\n".join(rows))

    def run(self, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.home / "bin"), os.environ["PATH"]])
        python = {"PYTHON": str(self.home / "bin" / "python"), "ANYWAY": "1", "PATH": path}
        return subprocess.run(
            ["/bin/bash", "recipes/node.sh", "recipes/mine.toml", *argv],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.home,
            env=os.environ | python | {"HF_HUB_OFFLINE": "1"} | environment,
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_every_script_is_one_that_bash_reads() -> None:
    for script in [*ROOT.glob("recipes/*.sh"), *ROOT.glob("requirements/*.sh")]:
        subprocess.run(["/bin/bash", "-n", str(script)], check=True)
        assert os.access(script, os.X_OK), script


def test_a_bare_node_to_the_report_and_again(node: Node) -> None:
    done = node.run("--grpo.steps=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NVIDIA H200" in done.stdout
    assert "--hardware=h200x8" in done.stdout
    assert "ran -m ovlt.cycle recipes/mine.toml --grpo.steps=3" in done.stdout
    assert "ran -m ovlt.report runs/mine/seed0" in done.stdout
    # the models that values name, not comments; at the revision that came
    asked = (node.home / "hub.log").read_text().splitlines()
    assert [line.split()[2] for line in asked] == ["Qwen/QwQ-32B", "Qwen/Qwen2.5-VL-7B-Instruct"]
    assert "--revision" not in "".join(asked)
    revisions = (node.home / "data" / "revisions.txt").read_text().splitlines()
    assert "Qwen/QwQ-32B 0123abcd" in revisions
    # held-out questions first: the other mixture leaves their images out
    assert pq.read_table(node.home / "data/mine/validation.parquet").num_rows == 2
    rows = pq.read_table(node.home / "data/mine/a_first.parquet")
    held = pq.read_table(node.home / "data/mine/validation.parquet")
    assert rows.num_rows == 4
    assert not set(rows["problem"].to_pylist()) & set(held["problem"].to_pylist())
    sums = (node.home / "data" / "checksums.sha256").read_text().splitlines()
    names = [line[66:] for line in sums]
    assert "data/mine/a_first.parquet" in names
    assert "models/QwQ-32B/config.json" in names
    assert not [name for name in names if "/." in name or "checksums" in name]

    again = node.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert (node.home / "hub.log").read_text().splitlines() == asked
    assert (node.home / "data" / "checksums.sha256").read_text().splitlines() == sums
    assert again.stdout.count(": there") == 5  # two models, two mixtures, one dataset

    # a model that an override names, a benchmark, and a subset that a mixture names only now
    more = node.home / "recipes" / "data" / "mine" / "a_first.toml"
    before = more.read_text()
    text = before.replace('.parquet"]', '.parquet",\n  "data/sources/MathVista",\n]')
    wide = '[[mixture.sources]]\nsource = "geos"\npath = "data/sources/LLaVA-OneVision-Data"\n'
    more.write_text(f'{text}\n{wide}subset = "GEOS(MathV360K)"\n')
    wanted = node.run("--distill.captioner=models/Qwen2.5-VL-3B-Instruct")
    assert wanted.returncode == 1
    assert "a_first.parquet was prepared by another recipes/data/mine/a_first.toml" in wanted.stderr
    more.write_text(f'{more.read_text()}{wide}subset = "GeoQA+(MathV360K)"\n')
    assert node.run().returncode == 1
    more.write_text(before)
    calls = (node.home / "hub.log").read_text().splitlines()[len(asked) :]
    assert [line.split()[2] for line in calls] == [
        "Qwen/Qwen2.5-VL-3B-Instruct", "lmms-lab/LLaVA-OneVision-Data", "AI4Math/MathVista",
        "lmms-lab/LLaVA-OneVision-Data",
    ]  # fmt: skip
    assert "--include GEOS(MathV360K)/* --include GeoQA+(MathV360K)/*" in calls[-1]

    # lost and fetched again: at the revision of the first time
    shutil.rmtree(node.home / "models" / "QwQ-32B")
    third = node.run()
    assert third.returncode == 0, third.stdout + third.stderr
    assert "--revision 0123abcd" in (node.home / "hub.log").read_text().splitlines()[-1]
    # a file that has changed is named, and nothing is trained on it
    with (node.home / "data" / "mine" / "a_first.parquet").open("ab") as file:
        file.write(b"x")
    fourth = node.run()
    assert fourth.returncode == 1
    assert "data/mine/a_first.parquet" in fourth.stdout
    assert "fetch or prepare them again" in fourth.stderr
    assert "ran -m ovlt.cycle" not in fourth.stdout


def test_a_dry_run_changes_nothing(node: Node) -> None:
    before = sorted(node.home.rglob("*"))
    done = node.run("--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would run" in done.stdout
    assert "ran -m ovlt.cycle recipes/mine.toml --dry-run" in done.stdout
    assert sorted(node.home.rglob("*")) == before


def test_a_node_that_is_too_small_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    done = Node(tmp_path, driver="550.54.15").run(ANYWAY="")
    assert done.returncode == 1
    assert "driver: 550 (major version), and this recipe needs 580" in done.stderr
    assert "== 2" not in done.stdout


def test_a_model_of_unknown_origin_is_named(node: Node) -> None:
    path = node.home / "recipes" / "mine.toml"
    path.write_text(RECIPE.replace("models/QwQ-32B", "models/mine"))
    done = node.run()
    assert done.returncode == 1
    assert "models/mine is not there" in done.stderr
    (node.home / "models" / "mine").mkdir(parents=True)
    (node.home / "models" / "mine" / "config.json").write_text("{}")
    assert node.run().returncode == 0


def test_a_word_it_does_not_know_is_refused(node: Node) -> None:
    done = node.run("--smokey")
    assert done.returncode == 2
    assert "'--smokey'" in done.stderr


@pytest.mark.parametrize("argv", [["--dry-run"], ["--smoke", "--dry-run"]], ids=" ".join)
def test_a_dry_run_here_and_now(tmp_path: Path, argv: list[str]) -> None:
    """The whole of it on this machine, nothing replaced."""
    recipe = tmp_path / "mine.toml"
    recipe.write_text(RECIPE + CYCLE)
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        ["/bin/bash", str(ROOT / "recipes" / "node.sh"), str(recipe), *argv],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, plan, stages = re.split(r"== [67] ", done.stdout)
    assert "h100x8: 79.0 GiB" in plan
    assert "ovlt distill" in stages
    missing = "data/mine/seeds.parquet  (MISSING)"
    assert (missing in stages) == ("--smoke" not in argv)
    assert ("runs/mine-smoke/seed0" in stages) == ("--smoke" in argv)


@pytest.mark.parametrize("path", MIXTURES, ids=lambda path: path.stem)
def test_the_shipped_mixtures_can_be_prepared(path: Path) -> None:
    mixture = load_recipe(path).mixture
    chosen, total = entries(mixture)
    assert total == {
        "held_out": 1000, "seeds": 7000, "medium": 3000, "hard": 6000,
        "seeds1": 59200, "seeds2": 12000, "seeds3": 12000, "grpo1": 5000, "grpo3": 5000,
    }[path.stem]  # fmt: skip
    assert all(entry.config.subset for entry in chosen)
    held = {"data/openvlthinker/held_out.parquet", "data/openvlthinker/validation.parquet"}
    held.add("data/sources/MathVista")
    assert path.stem == "held_out" or set(mixture.benchmarks) == held


@pytest.mark.parametrize("name", ["openvlthinker-v1", "openvlthinker-v2"])
def test_what_the_recipe_reads_is_what_the_mixtures_write(name: str) -> None:
    text = (ROOT / "recipes" / f"{name}.toml").read_text()
    values = "\n".join(line.split("#")[0] for line in text.splitlines())
    read = set(re.findall(r'"(data/[^"]+)"', values))
    own = [path for path in MIXTURES if path.parent.name == name]
    written = {f"{load_recipe(path).mixture.folder}.parquet" for path in own}
    written.add("data/openvlthinker/validation.parquet")  # beside the held-out questions
    assert read <= written


def test_the_image_has_the_environment_before_the_rest_is_copied(tmp_path: Path) -> None:
    """A copy of what the Dockerfile copies before `make install` has the stamp of the whole."""
    text = (ROOT / "Dockerfile").read_text()
    first, _, rest = text.partition("RUN make install KIND=gpu FLASH=${FLASH}\n")
    assert "COPY . ." in rest
    for line in re.findall(r"^COPY (.*)", first, re.MULTILINE):
        *names, target = line.split()
        for name in names:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, tmp_path / target / "", dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / name, tmp_path / target)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"requirements", "csrc", "kernels", "ovlt", "recipes"} & set(ignored)

    def stamps(folder: Path) -> list[str]:
        command = ["make", "--dry-run", "install", "KIND=gpu", f"VENV={tmp_path / 'none'}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return re.findall(r"\.ovlt-stamp-gpu-[0-9a-f]+", done.stdout)

    assert stamps(tmp_path)
    assert stamps(tmp_path) == stamps(ROOT)
