"""The image families of the synthetic world, one file each."""

from __future__ import annotations

from typing import Any

from ovlt.data.worlds import bars, charts, geometry, maps, shapes, tables
from ovlt.data.worlds.base import Family

# Each image family has scenes with a content of its own type; here they are called by name.
FAMILIES: dict[str, Family[Any]] = {
    module.FAMILY.name: module.FAMILY for module in (shapes, bars, charts, geometry, tables, maps)
}
