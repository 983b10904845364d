"""``ovlt COMMAND [RECIPE ...] [--table.key=value ...]``: the one entry to everything.

It reads the recipe, sets the environment (before torch is imported), starts as many ranks as the
machine has, and imports the command. ``torchrun -m ovlt.grpo`` and ``python -m ovlt.X`` come here
too. The demo world, base model and SFT model that a recipe lacks are made here, so the loops know
nothing of them.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from ovlt import __version__
from ovlt.config import Recipe
from ovlt.config.command_line import command_line
from ovlt.system import env, launch


class Command(NamedTuple):
    """One command of ovlt.

    ``run`` names its function: ``f(runtime, recipe)``, called on every rank, if ``ranks``, else
    ``f(argv)``. ``driver`` names a ``f(recipe)`` that starts ranks itself, several times over.
    ``tables`` are the recipe tables it reads, its own first; ``options`` what else it takes, and
    ``short`` names some of its keys shorter (``--model``: evaluate.model).
    ``--help`` is answered here, with ``summary`` (its first line is the command's in the list),
    unless the command has a ``--help`` of its own.
    """

    summary: str
    run: str
    tables: tuple[str, ...]
    ranks: bool = False
    driver: str = ""
    options: tuple[str, ...] = ()
    own_help: bool = False
    short: Mapping[str, str] = {}


EVALUATE_KEYS = {
    "--model": "evaluate.model",
    "--benchmark": "evaluate.benchmark.names",
    "--benchmark-data": "evaluate.benchmark.data",
    "--style": "evaluate.benchmark.style",
    "--settings": "evaluate.benchmark.settings",
    "--judge": "evaluate.benchmark.judge.url",
    "--judge-model": "evaluate.benchmark.judge.model",
    "--restyle": "evaluate.benchmark.restyle",
    "--expect": "evaluate.benchmark.expect",
    "--compare": "evaluate.benchmark.compare",
    "--out": "evaluate.benchmark.out",
    "--questions": "evaluate.benchmark.limit",
}
SHARED = ("run", "model", "data", "engine", "reward")
COMMANDS = {
    "sft": Command(
        "Fine-tune on sharegpt messages; loss on the assistant's tokens.",
        "ovlt.sft:train", ("sft", *SHARED, "evaluate"), ranks=True,
    ),
    "grpo": Command(
        "Sample groups of answers, grade them, update the policy, sync the weights.",
        "ovlt.grpo:train", ("grpo", *SHARED, "evaluate"), ranks=True,
    ),
    "evaluate": Command(
        "Measure a model folder on questions, or on public benchmarks with --benchmark.\n\n"
        "  --model=FOLDER          the model\n"
        "  --benchmark=NAMES       mathvista, mathverse, mathvision, emma, emma-mini,\n"
        "                          hallusionbench, mmmu-pro; NAME:SPLIT for another split\n"
        "  --benchmark-data=PATH   their files, if not from the Hub\n"
        "  --style=STYLE           official, openvlthinker, vlmevalkit\n"
        "  --settings=WORDS        variants of a style, like direct or cot\n"
        "  --judge=URL             an OpenAI-compatible endpoint (--judge-model=NAME)\n"
        "  --restyle=RESULT        score stored responses by --style; asks no model\n"
        "  --expect=MODEL          compare with the model's published scores\n"
        "  --compare=RESULT        paired comparison with another model's result\n"
        "  --questions=N           only a seeded choice of so many\n"
        "  --out=FOLDER            where results go\n",
        "ovlt.evaluate.command:evaluate", ("evaluate", *SHARED), ranks=True,
        options=("--model", "--benchmark", "--benchmark-data", "--style", "--settings", "--judge",
                 "--judge-model", "--restyle", "--expect", "--compare", "--questions", "--out"),
        short=EVALUATE_KEYS,
    ),
    "serve": Command(
        "Serve a model folder to other harnesses: vLLM's OpenAI server.",
        "ovlt.benchmarks.serve:main", (), own_help=True,
        options=("--name", "--host", "--port", "--style", "--max-tokens", "--max-images",
                 "--tensor-parallel"),
    ),
    "distill": Command(
        "Distil reasoning traces into SFT rows.",
        "ovlt.distill.command:work", ("distill", *SHARED), ranks=True,
        driver="ovlt.distill.command:drive",
    ),
    "cycle": Command(
        "Run SFT and GRPO in turns, each iteration on traces of the one before.\n\n"
        "  --dry-run       print the stages, what they need, and what is missing\n"
        "  --until=STAGE   stop after that stage\n"
        "  --seeds=0,1,2   one run for each; run.folder must hold {seed}\n"
        "  --controls      then the comparisons; --controls=rejection,filter only some of them:\n"
        "                  single (sft-only, rejection, rl-only), restart,\n"
        "                  filter (none, max_words, reflections)\n",
        "ovlt.cycle.command:main", ("cycle", "distill", "sft", "grpo", "evaluate", *SHARED),
        options=("--dry-run", "--until", "--seeds", "--controls"),
    ),
    "plan": Command(
        "Say whether a recipe fits and how long it takes, before anything is loaded.",
        "ovlt.plan.command:main", ("sft", "grpo", "distill", "evaluate", *SHARED),
        options=("--hardware", "--sizes"), own_help=True,
    ),
    "report": Command(
        "Write report.html of a run folder, or result.html of a benchmark result.",
        "ovlt.report.command:main", (), options=("--out", "--baseline", "--compare"),
        own_help=True,
    ),
    "prepare": Command(
        "Draw a mixture of public datasets into files of questions; --list shows what there is.",
        "ovlt.data.mixture.prepare:main", ("mixture",), options=("--list",),
    ),
    "demo": Command(
        "See it work: a world, a base model, SFT, GRPO, figures, report; --results: three seeds.",
        "ovlt.smoke.demo:main", ("demo", "synthetic", "base", "sft", "grpo"),
        options=("--results",),
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that ``argv`` names; without a name, list the commands."""
    try:
        _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough: `ovlt grpo --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python's own flush fails at the end


def _dispatch(words: list[str]) -> None:
    name = words.pop(0) if words else "--help"
    if name in ("-h", "--help", "help"):
        print(_usage())
    elif name == "--version":
        print(f"ovlt {__version__}")
    elif name == "completion":
        print(_completion(words))
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"commands: {', '.join(COMMANDS)}"
        print(f"ovlt: there is no command '{name}'; {hint}", file=sys.stderr)
        raise SystemExit(2)
    elif not COMMANDS[name].own_help and {"-h", "--help"} & set(words):
        _read(name, ["--help"])
    elif not COMMANDS[name].ranks:
        _run_alone(name, words)
    elif "RANK" in os.environ:  # torchrun -m ovlt NAME
        rank(name, words)
    elif COMMANDS[name].driver:
        _drive(name, words)
    else:
        _start_ranks(name, words)


def _run_alone(name: str, words: list[str]) -> NoReturn:
    """Run a command that starts no ranks. A user's mistake ends it with one sentence."""
    try:
        raise SystemExit(_function(COMMANDS[name].run)(words))
    except BrokenPipeError:  # main knows what to do
        raise
    except (ValueError, OSError) as error:
        raise SystemExit(f"ovlt {name}: {error}") from None


def rank(name: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command as one rank, alone or under torchrun: ``python -m ovlt.NAME``."""
    recipe = _read(name, sys.argv[1:] if argv is None else argv)
    env.apply(_device(recipe))
    # After the environment is set: these import torch.
    from ovlt.smoke.make import ensure_inputs
    from ovlt.system.runtime import leave, running

    with running(name, recipe.run) as runtime:
        ensure_inputs(runtime, recipe, name)
        _function(COMMANDS[name].run)(runtime, recipe)
    leave()


def _drive(name: str, words: list[str]) -> None:
    """Let a command start its ranks itself."""
    recipe = _read(name, words)
    env.apply(_device(recipe))
    _make_inputs(name, recipe, launch.default_ranks(_device(recipe)))
    try:
        _function(COMMANDS[name].driver)(recipe)
    except (ValueError, OSError) as error:
        raise SystemExit(f"ovlt {name}: {error}") from None


def _make_inputs(name: str, recipe: Recipe, ranks: int) -> None:
    """Create the inputs of the demo that the recipe names and that are not there yet."""
    from ovlt.smoke.make import make_missing  # seconds of imports, which --help does not need

    try:
        make_missing(recipe, name, ranks)
    except (ValueError, OSError) as error:
        raise SystemExit(f"ovlt {name}: {error}") from None


def _start_ranks(name: str, words: list[str]) -> NoReturn:
    """Replace this process by ``torchrun -m ovlt.NAME``, one rank per GPU (two on a CPU)."""
    count, words = _ranks(name, words)
    recipe = _read(name, words)  # a mistake in it is one sentence here, not one from each rank
    env.apply(_device(recipe))
    if name == "evaluate" and (
        recipe.evaluate.engine.tensor_parallel > 1 or recipe.evaluate.benchmark.restyle
    ):
        count = 1  # one engine takes all the GPUs, or none is needed
    count = count or launch.default_ranks(_device(recipe))
    _make_inputs(name, recipe, count)  # here, where no other rank waits for it in a collective
    try:
        launch.exec_ranks(f"ovlt.{name}", words, count)
    except ValueError as error:
        raise SystemExit(f"ovlt {name}: {error}") from None


def _ranks(name: str, words: Sequence[str]) -> tuple[int, list[str]]:
    """Take ``--ranks=N`` out of the words of a command; 0 if it is not there."""
    count, rest, left = 0, [], list(words)
    while left:
        word = left.pop(0)
        if word.partition("=")[0] != "--ranks":
            rest.append(word)
            continue
        value = word.partition("=")[2] if "=" in word else (left.pop(0) if left else "")
        if not value.isdecimal() or int(value) < 1:
            print(f"ovlt {name}: --ranks={value} should be like --ranks=2", file=sys.stderr)
            raise SystemExit(2)
        count = int(value)
    return count, rest


def _read(name: str, argv: Sequence[str]) -> Recipe:
    command = COMMANDS[name]
    words = [_spelled_out(word, command.short) for word in argv]
    return command_line(name, command.summary, command.tables, words, resume=command.ranks)


def _spelled_out(word: str, short: Mapping[str, str]) -> str:
    """Return ``--model=x`` as ``--evaluate.model=x``; any other word as it is."""
    name, equals, value = word.partition("=")
    return f"--{short[name]}{equals}{value}" if name in short else word


def _device(recipe: Recipe) -> env.Device:
    return "cpu" if recipe.run.device == "cpu" else env.machine()


def _function(place: str) -> Any:
    """Import ``module:function`` of a command; nothing heavy is imported before."""
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(module), function)


def _usage() -> str:
    lines = ["usage: ovlt COMMAND [RECIPE.toml ...] [--table.key=value ...]", ""]
    lines += [
        f"  {name:<10} {command.summary.splitlines()[0]}" for name, command in COMMANDS.items()
    ]
    return "\n".join(
        [
            *lines,
            "",
            "  ovlt COMMAND --help       its keys, with defaults and meaning",
            "  ovlt completion bash|zsh  completion for a shell: source <(ovlt completion bash)",
        ]
    )


def _completion(words: Sequence[str]) -> str:
    from ovlt.config.completion import SHELLS, script

    if len(words) != 1 or words[0] not in SHELLS:
        print(f"usage: ovlt completion {'|'.join(SHELLS)}", file=sys.stderr)
        raise SystemExit(2)
    described = {n: (c.summary.splitlines()[0], c.tables, c.options) for n, c in COMMANDS.items()}
    return script(words[0], described)


if __name__ == "__main__":
    main()
