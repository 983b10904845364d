"""The folder of one stage and its ``stage.json``, which the report reads."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ovlt.config import Recipe
from ovlt.config.changes import MEASURES
from ovlt.run.folder import Contents, claim_run_folder
from ovlt.run.metrics import check_wandb
from ovlt.system.files import read_object, write_json
from ovlt.system.runtime import Runtime


class StageFolder:
    """Claims a stage's folder for one recipe and keeps its ``stage.json``.

    Until ``begin`` nothing of the folder changes. Collective; raises ValueError if it is another
    run's, or in use.

    Attributes:
        path: the folder.
        tables: the recipe tables that decide what the stage makes; a resumed run must agree.
    """

    def __init__(
        self, runtime: Runtime, recipe: Recipe, kind: str, *, name: str, title: str
    ) -> None:
        self.runtime = runtime
        self.path: Path = recipe.folder / name
        check_wandb(recipe.run.wandb)
        self.tables = recipe.decisive_tables(kind)
        chooses = kind == "grpo" and recipe.grpo.keep == "best"  # the model, by its validations
        self._accept = recipe.run.accept_changes
        self._claim = claim_run_folder(
            self.path,
            self.tables,
            recipe.run.resume,
            may_change=MEASURES if kind != "evaluate" and not chooses else (),
            result="evaluation.json" if kind == "evaluate" else "",
        )
        self._started = time.time()
        self._record: dict[str, object] = {
            "stage": kind,
            "title": title,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "status": "running",
            "command": " ".join([f"ovlt {kind}", *sys.argv[1:]]),
            "ranks": runtime.world_size,
            "order": int(time.time()),  # in which the report shows the stages
        }
        self._seconds_before = 0.0

    def compare(self, contents: Contents) -> None:
        """Raise ValueError if an earlier run of the folder was made with others. Collective."""
        self._claim.compare(contents, accept=self._accept)

    def begin(self) -> None:
        """Write recipe.json, contents.json and stage.json: everything is open. Collective."""
        self._claim.record()
        earlier = self.path / "stage.json"
        if earlier.is_file():
            record = read_object(earlier)
            self._record |= {k: record[k] for k in ("created", "order") if k in record}
            self._seconds_before = float(record.get("seconds", 0.0))
        self.update(steps=0)

    def update(self, **values: object) -> None:
        """Merge values into stage.json (rank 0)."""
        self._record |= values
        self._record["seconds"] = round(self._seconds_before + time.time() - self._started, 1)
        if self.runtime.is_main:
            write_json(self.path / "stage.json", self._record)
