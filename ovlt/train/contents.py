"""What a stage is made with: digests of its rows, models and rewards, by name."""

from __future__ import annotations

from collections.abc import Mapping

from ovlt.data.digests import rows_digest
from ovlt.data.rows import GoodRows, RowReader
from ovlt.model.contents import model_contents
from ovlt.model.load import ModelFolder
from ovlt.reward.contents import reward_digest


def stage_contents(
    reader: RowReader,
    *,
    rows: Mapping[str, tuple[str, GoodRows]],
    models: Mapping[str, ModelFolder],
    reward: str = "",
) -> dict[str, str]:
    """Return the digests of rows (path and good rows by key), models and rewards. Collective."""
    runtime = reader.runtime
    contents = {
        f"rows of {key}": rows_digest(path, good, runtime, reader.data.workers)
        for key, (path, good) in rows.items()
    }
    for name, folder in models.items():
        contents |= model_contents(folder, name)
    return contents | ({"reward.function": reward_digest(reward)} if reward else {})
