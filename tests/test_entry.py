"""``ovlt COMMAND``: the one entry, and what it says of old names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ovlt.__main__ import COMMANDS, main
from ovlt.system import env, launch
from ovlt.system.moved import GONE, MOVED, MovedFinder

REPOSITORY = Path(__file__).resolve().parents[1]


def run(*words: str, cwd: Path = REPOSITORY, **variables: str) -> subprocess.CompletedProcess[str]:
    """``python WORDS`` in a clean environment: none of the variables that a command sets."""
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "kernels")])
    keep = {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ}
    return subprocess.run(
        [sys.executable, *words],
        env=keep | {"PYTHONPATH": path} | variables,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)


def test_an_unknown_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["gpro"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "ovlt: there is no command 'gpro'; did you mean 'grpo'?\n"


@pytest.mark.parametrize("count", ["0", "two", ""])
def test_a_wrong_number_of_ranks_is_one_sentence(
    count: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)  # other tests of this process may be a rank
    with pytest.raises(SystemExit) as ended:
        main(["sft", f"--ranks={count}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"ovlt sft: --ranks={count} should be like --ranks=2\n"


def test_a_reader_that_has_seen_enough_ends_no_command_with_a_traceback() -> None:
    shell = f"{sys.executable} -m ovlt grpo --help | head -n 1"
    done = subprocess.run(
        ["bash", "-c", shell], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: ovlt grpo")
    assert done.stderr == ""


def test_the_environment_is_set_before_torch_for_every_way_in(tmp_path: Path) -> None:
    """A module of ovlt that is run by ``python -m`` finds the variables set and no torch loaded."""
    shown = run(
        "-c",
        "import os, runpy, sys\n"
        "sys.argv[0] = '-m'\n"
        "import ovlt\n"
        "print('torch' in sys.modules, os.environ.get('VLLM_ENABLE_V1_MULTIPROCESSING'))",
    )
    assert shown.stdout == "False 0\n"
    shown = run("-c", "import os, ovlt; print(os.environ.get('VLLM_ENABLE_V1_MULTIPROCESSING'))")
    assert shown.stdout == "None\n"  # a library that is imported sets nothing


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_keys(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", shell])
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "--grpo.loss.kl_coef" in script
    assert "--dry-run" in script
    if shell == "bash":
        done = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
        assert done.returncode == 0


def test_ranks_are_the_gpus_that_are_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\nfor i in 0 1 2 3; do echo "GPU $i: H100 (UUID: GPU-$i)"; done\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for visible, ranks in (
        (None, 4),
        ("0,2", 2),
        ("GPU-1", 1),
        ("3", 1),
        ("0,9,1", 1),
        ("1,-1,2", 1),
    ):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert len(env.gpus()) == launch.default_ranks("cuda") == ranks
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert env.gpus() == []
    assert launch.default_ranks("cpu") == min(2, env.usable_cores())  # whatever GPUs there are
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    monkeypatch.delenv("OVLT_DEVICE", raising=False)
    launch.check_ranks(2)
    with pytest.raises(ValueError, match=r"CUDA_VISIBLE_DEVICES=0,2 leaves 2: ask for at most 2"):
        launch.check_ranks(3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(ValueError, match="the machine has 4"):
        launch.check_ranks(5)
    monkeypatch.setenv("OVLT_DEVICE", "cpu")
    launch.check_ranks(5)


@pytest.mark.slow
def test_a_mistake_that_every_rank_sees_is_said_once_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        "run.folder = 'runs'\nrun.device = 'cpu'\nmodel.path = 'nowhere'\nsft.data = 'rows.jsonl'\n"
    )
    done = run("-m", "ovlt", "sft", "mine.toml", "--ranks=2", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("ovlt sft: no model folder at 'nowhere'") == 1
    assert done.stderr.count("\n") == 1


def test_what_libraries_repeat_is_dropped_and_a_crash_is_not() -> None:
    """Descriptor 2 goes through a filter while an engine opens; the last words arrive."""
    done = run(
        "-c",
        "import os\n"
        "from ovlt.system import quiet\n"
        "with quiet.without_noise():\n"
        "    os.write(2, b'before\\nWarning: NUMA binding: Using MEMBIND policy for this\\n')\n"
        "    os.system('echo of a child >&2')\n"
        "os.write(2, b'after\\n')\n"
        "with quiet.without_noise():\n"
        "    os.write(2, b'last words\\n')\n"
        "    os.abort()\n",
    )
    assert done.returncode != 0
    assert set(done.stderr.splitlines()) == {"before", "of a child", "after", "last words"}


def test_fla_is_imported_on_a_cpu_without_a_warning() -> None:
    """It says at its import that it found no GPU."""
    words = "from ovlt.system import env\nenv.apply('cpu')\nimport fla.utils"
    done = run("-c", words)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("machine", ["cpu", "cuda"])
def test_no_other_warning_of_triton_is_silenced_and_none_on_a_gpu(machine: str) -> None:
    texts = (
        "Triton is not supported on current platform, roll back to CPU.",
        "Triton is not supported on Windows",
    )
    warn = "".join(f"warnings.warn({text!r})\n" for text in texts)
    words = f"import warnings\nfrom ovlt.system import env\nenv.apply({machine!r})\n{warn}"
    shown = run("-c", words).stderr
    assert [text in shown for text in texts] == [machine == "cuda", True]


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_module_of_an_older_version_is_answered_with_its_new_place(old: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"{old} has moved: it is ".replace(".", r"\.")):
        MovedFinder.find_spec(old)


def test_a_command_that_is_gone_says_what_does_its_work() -> None:
    for old in GONE:
        with pytest.raises(ModuleNotFoundError, match=rf"{old} is gone: `ovlt "):
            __import__(old)
    with pytest.raises(ModuleNotFoundError, match=r"ovlt\.sampling has moved"):
        __import__("ovlt.sampling")  # by the import system itself
