"""The families of the synthetic world, one file each."""

from __future__ import annotations

from ovlt.data.worlds import bars, charts, geometry, maps, shapes, tables
from ovlt.data.worlds.base import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (shapes, bars, charts, geometry, tables, maps)
}
