"""The files of the smoke world: questions and traces, drawn as [synthetic] says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ovlt.config import SyntheticConfig, TeacherConfig
from ovlt.config.changes import changes_between
from ovlt.data.worlds import synthetic
from ovlt.system.files import locked, read_json, write_json


def make_once(folder: Path, is_made: Callable[[], bool], make: Callable[[], None]) -> None:
    """Make what is not there; of several processes that need it, one does and the others wait."""
    if not is_made():
        with locked(folder / "making.lock"):
            if not is_made():
                make()


def ensure_world(world: SyntheticConfig) -> None:
    """Write the files of the world unless they are there.

    Raises ValueError if they are there for other settings: models were made from them.
    """
    folder = Path(world.folder)
    record = folder / "world.json"
    settings = world.model_dump(mode="json", exclude={"folder"})

    def is_made() -> bool:
        if not record.is_file():
            return False
        before = {key: value for key, value in read_json(record).items() if key != "folder"}
        if changes := changes_between(before, settings):
            raise ValueError(
                f"{folder} holds a world drawn with other settings: synthetic."
                f"{'; synthetic.'.join(text for _, text in changes[:3])}: put them back, delete "
                "that folder, or give another --synthetic.folder"
            )
        return True

    def make() -> None:
        _draw(world)
        write_json(record, settings)

    make_once(folder, is_made, make)


def write_lessons(world: SyntheticConfig, teacher: TeacherConfig, path: Path) -> None:
    """Write captions and questions with traces, from which the teacher learns."""
    rows = synthetic.teacher_rows(
        _items(world, "train", teacher.rows, 7),
        teacher.styles,
        world.seed,
        teacher.wrong,
        teacher.reflections,
    )
    synthetic.write_sft(rows, path)


def _items(
    world: SyntheticConfig, split: str, count: int, stream: int, kinds: Sequence[str] | None = None
) -> Iterator[synthetic.Item]:
    """Yield items of the world, only those of ``kinds`` if given.

    Each file has a ``stream`` of its own, which seeds it, so the size of one changes no other.
    """
    families = {
        name: share
        for name, share in world.families.items()
        if kinds is None or set(kinds) & set(synthetic.FAMILIES[name].kinds)
    }
    spec = synthetic.WorldSpec(size=world.size)
    return synthetic.generate(families, split, count, world.seed * 1000 + stream, spec, kinds)


def _draw(world: SyntheticConfig) -> None:
    folder = Path(world.folder)
    print(f"drawing the synthetic world into {folder}", flush=True)
    items = _items(world, "train", world.base_rows, 1)
    rows = synthetic.base_rows(items, world.base_mixture, world.seed)
    synthetic.write_sft(rows, folder / "base.parquet")
    items = _items(world, "train", world.sft_rows, 2)
    rows = synthetic.trace_rows(items, world.styles, world.seed)
    synthetic.write_sft(rows, folder / "sft.parquet")
    synthetic.write_questions(_items(world, "train", world.grpo_rows, 3), folder / "grpo.parquet")
    for split, count, stream in (
        ("validation", world.validation_rows, 4),
        ("held_out", world.held_out_rows, 6),
    ):
        synthetic.write_questions(_items(world, split, count, stream), folder / f"{split}.parquet")
    if world.hard:
        _draw_levels(world)
    descriptions = (
        replace(item, problem=synthetic.DESCRIBE[0], answer=item.caption)
        for item in _items(world, "held_out", world.validation_rows, 5)
    )
    synthetic.write_questions(descriptions, folder / "captions.parquet")
    synthetic.contact_sheet(folder / "contact_sheet.png")


def _draw_levels(world: SyntheticConfig) -> None:
    """Write the questions by level, for ``ovlt cycle``; the level is their source."""
    every_kind = [kind for name in world.families for kind in synthetic.FAMILIES[name].kinds]
    if unknown := sorted(set(world.hard) - set(every_kind)):
        raise ValueError(f"synthetic.hard names {unknown}: choose among {', '.join(every_kind)}")
    kinds = {
        "medium": [kind for kind in every_kind if kind not in world.hard],
        "hard": [kind for kind in every_kind if kind in world.hard],
    }

    def level(item: synthetic.Item) -> str:
        return "hard" if item.kind in world.hard else "medium"

    def write(name: str, items: Iterable[synthetic.Item]) -> None:
        synthetic.write_questions(items, Path(world.folder) / f"{name}.parquet", level)

    write("seeds", _items(world, "train", world.seed_rows, 8))
    for stream, (name, of_level) in enumerate(kinds.items(), 9):
        write(name, _items(world, "train", world.level_rows, stream, of_level))
    for split, count, stream in (
        ("validation", world.level_validation_rows, 11),
        ("held_out", world.level_held_out_rows, 13),
    ):
        both = [_items(world, split, count, stream + n, k) for n, k in enumerate(kinds.values())]
        pairs = zip(*both, strict=True)  # in turns, so that any first part holds both
        write(f"{split}_levels", (item for pair in pairs for item in pair))
