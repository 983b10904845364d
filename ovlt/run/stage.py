"""The folder of one stage and its ``stage.json``, which the report reads."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from ovlt.config import Recipe
from ovlt.run.folder import claim_run_folder
from ovlt.system.files import read_json, write_json
from ovlt.system.runtime import Runtime


class Stage:
    """The folder of one stage and its ``stage.json``, which the report reads."""

    def __init__(self, runtime: Runtime, recipe: Recipe, name: str, title: str, table: str):
        self.runtime, self.recipe = runtime, recipe
        self.folder = recipe.folder / name
        own = {k: recipe.resolved()[k] for k in ("run", "model", "data", table)}
        claim_run_folder(self.folder, own, recipe.run.resume)
        self.identity = own
        self._started = time.time()
        self._record = {
            "stage": table,
            "title": title,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "status": "running",
            "command": " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]]),
            "ranks": runtime.world_size,
            "order": int(time.time()),
        }
        old = self.folder / "stage.json"
        self._before = 0.0
        if old.is_file():
            earlier = read_json(old)
            self._record |= {k: earlier[k] for k in ("created", "order") if k in earlier}
            self._before = float(earlier.get("seconds", 0.0))
        self.update(steps=0)

    def update(self, **values: Any) -> None:
        """Merge values into stage.json (rank 0)."""
        self._record |= values
        self._record["seconds"] = round(self._before + time.time() - self._started, 1)
        if self.runtime.is_main:
            write_json(self.folder / "stage.json", self._record)
