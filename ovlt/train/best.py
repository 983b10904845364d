"""The model of a stage's best validation, kept until the stage ends."""

from __future__ import annotations

import shutil
from pathlib import Path

from ovlt.model.packed_model import PackedModel
from ovlt.model.weights import export_folder, read_weights, to_masters
from ovlt.system.runtime import Runtime


class Best:
    """Model folders ``best/step_NNNNNN`` in a stage folder; every method is collective.

    A run that is killed goes on from a checkpoint, which may be older than the best model so far.
    So the checkpoint carries ``state``, and a model is deleted only after a checkpoint records a
    better one.
    """

    def __init__(self, runtime: Runtime, model: PackedModel, source: Path, stage: Path):
        self.runtime, self.model, self.source = runtime, model, source
        self.folder, self.result = stage / "best", stage / "model"
        self.state: dict[str, float] = {}  # step and value of the best validation; empty: none

    def offer(self, step: int, value: float) -> None:
        """Keep the model as it is now if ``value`` is the highest so far, or equal to it."""
        if self.state and value < self.state["value"]:
            return
        self.state = {"step": step, "value": value}
        if self.runtime.is_main:
            self.folder.mkdir(exist_ok=True)
        export_folder(self.model, self.source, self._path(step), is_main=self.runtime.is_main)
        self.runtime.barrier()

    def forget_others(self) -> None:
        """Delete all models but the best. Call it after a checkpoint has recorded the best."""
        if self.runtime.is_main and self.folder.is_dir():
            for folder in self.folder.iterdir():
                if not self.state or folder != self._path(int(self.state["step"])):
                    shutil.rmtree(folder)

    def restore(self) -> None:
        """Put the best weights into the model. Raises ValueError if they are gone."""
        folder = self._path(int(self.state["step"]))
        if not folder.is_dir():  # the stage has ended before: its model is the best one
            folder = self.result
        if not folder.is_dir():
            raise ValueError(
                f"{self._path(int(self.state['step']))}, the best model by validation, is gone: "
                "delete the stage's folder and start it again"
            )
        to_masters(self.model)
        read_weights(self.model, folder)

    def close(self) -> None:
        """Delete the folders of best models: the stage has its model."""
        if self.runtime.is_main:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"
