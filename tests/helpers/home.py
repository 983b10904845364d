"""A folder with a recipe, and how a test starts commands on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers.commands import Command, Server, environment


class Home:
    """A folder with ``recipe.toml``, in whose text ``{home}`` stands for the folder.

    Each command gets a run folder of its own, ``runs/RUN``.
    """

    def __init__(self, folder: Path, recipe: str, server: Server):
        self.folder, self.server, self.started = folder, server, 0
        self.recipe = folder / "recipe.toml"
        self.recipe.write_text(recipe.replace("{home}", str(folder)))

    def arguments(self, run: str, *overrides: str) -> list[str]:
        return [str(self.recipe), f"--run.folder={self.run_folder(run)}", *overrides]

    def start(self, command: str, run: str, *overrides: str, ranks: int = 1) -> Command:
        """Start ``ovlt.COMMAND`` as forks of the server."""
        self.started += 1
        log = self.folder / f"{self.started}-{run}"
        argv = self.arguments(run, *overrides)
        return Command(self.server, f"ovlt.{command}", argv, ranks, log)

    def start_process(self, command: str, run: str, *overrides: str) -> subprocess.Popen[str]:
        """Start the real ``python -m ovlt.COMMAND``, with nothing imported before."""
        return subprocess.Popen(
            [sys.executable, "-m", f"ovlt.{command}", *self.arguments(run, *overrides)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run_folder(self, run: str) -> Path:
        return self.folder / "runs" / run

    def stage(self, stage: str, run: str) -> Path:
        return self.run_folder(run) / stage
