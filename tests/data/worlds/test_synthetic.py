"""The synthetic world: the same bytes again, disjoint splits, rows, files and command."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ovlt.data.worlds import synthetic
from ovlt.data.worlds.files import _png
from ovlt.data.worlds.synthetic import (
    FAMILIES,
    WorldSpec,
    base_rows,
    format_response,
    generate,
    split_of,
    trace_rows,
    vocabulary_corpus,
    write_questions,
    write_sft,
)

PAIRS = [(f.name, kind) for f in FAMILIES.values() for kind in f.kinds]
SHARES = {"tally": 0.4, "scan": 0.3, "direct": 0.3}


def items_of(family, n=20, size=224, **more):
    return list(generate([family], "train", n, 3, WorldSpec(size), **more))


def drafts(family, split="train", n=200, seed=3, kinds=None, levels=(1, 2, 3)):
    """Return items without their pictures, which take long to paint."""
    return list(synthetic._drafts([family], split, n, seed, WorldSpec(256), kinds, levels))


# --- determinism and splits --------------------------------------------------------------------


def test_same_arguments_give_the_same_bytes_whatever_n():
    spec = WorldSpec((231, 203), 2)
    long = list(generate({"shapes": 2, "bars": 1, "maps": 1}, "train", 24, 7, spec))
    short = list(generate({"shapes": 2, "bars": 1, "maps": 1}, "train", 9, 7, spec))
    assert long[:9] == short
    assert [_png(i.image) for i in long[:9]] == [_png(i.image) for i in short]
    moved = list(generate({"shapes": 2, "bars": 1, "maps": 1}, "train", 9, 8, spec))
    assert [i.key for i in moved] != [i.key for i in short]
    assert len({i.id for i in long}) == len(long)


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_scene_for_any_seed(family):
    keys = {
        split: {d.key for seed in (0, 1) for d in drafts(family, split, 100, seed)}
        for split in synthetic.SPLITS
    }
    for a, b in itertools.combinations(keys.values(), 2):
        assert not a & b
    assert all(split_of(key) == split for split, own_keys in keys.items() for key in own_keys)


def test_split_shares_are_80_10_10():
    drawn = Counter(split_of(f"{value:08x}ffffffff") for value in range(1000))
    assert drawn == {"train": 800, "validation": 100, "held_out": 100}


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_every_kind_reaches_every_split_and_level(family, kind):
    for split, level in itertools.product(synthetic.SPLITS, (1, 2, 3)):
        (draft,) = drafts(family, split, 1, 5, [kind], [level])
        assert (draft.family, draft.kind, draft.level) == (family, kind, level)


def test_look_does_not_move_a_scene_to_another_split():
    from ovlt.data.worlds.base import Scene

    assert Scene({"a": 1}, 5).key("bars") == Scene({"a": 1}, 6).key("bars")
    assert Scene({"a": 1}).key("bars") != Scene({"a": 1}).key("maps")


# --- rows and files ------------------------------------------------------------------------------


def test_trace_rows_end_in_the_right_answer_in_the_asked_shares():
    items = items_of("shapes", 400, 84)
    rows = list(trace_rows(items, SHARES, 1))
    assert rows == list(trace_rows(items, SHARES, 1))
    for item, row in zip(items, rows, strict=True):
        user, assistant = row["messages"]
        assert user == {"role": "user", "content": f"<image>{item.problem}"}
        assert assistant["content"] == format_response(
            item.traces[row["style"]], item.summary, item.answer
        )
        assert row["correct"]
        assert row["images"] == [item.image]
    styles = Counter(row["style"] for row in rows)
    assert all(abs(styles[s] / 400 - share) < 0.08 for s, share in SHARES.items())


def test_wrong_share_marks_its_rows():
    items = items_of("shapes", 150, 84) + items_of("charts", 50) + items_of("tables", 50)
    rows = list(trace_rows(items, SHARES | {"steps": 1.0}, 2, wrong_share=0.3))
    for item, row in zip(items, rows, strict=True):
        text = row["messages"][1]["content"]
        given = re.fullmatch(r"<think>.* (\S+)\.</think> .* (\S+)\. <answer>(\S+)</answer>", text)
        assert len(set(given.groups())) == 1
        assert (given[3] == item.answer) == row["correct"]
        assert row["id"].endswith("-wrong") != row["correct"]
    assert 0.2 < sum(not row["correct"] for row in rows) / len(rows) < 0.4


def test_style_that_a_family_lacks_becomes_steps():
    rows = list(trace_rows(items_of("maps", 60), {"tally": 0.5, "direct": 0.5}, 0))
    assert 15 < sum(row["style"] == "steps" for row in rows) < 45
    with pytest.raises(ValueError, match="add one of tally"):
        list(trace_rows(items_of("shapes", 1, 84), {"steps": 1.0}, 0))


def test_base_rows_know_nothing_of_the_format():
    shares = {"caption": 0.5, "short": 0.2, "text": 0.3}
    for family in FAMILIES:
        items = items_of(family, 24, 168)
        seen = Counter()
        for item, row in zip(items, base_rows(items, shares, 4), strict=True):
            user, assistant = (m["content"] for m in row["messages"])
            what = row["id"].rsplit("-", 1)[1]
            seen[what] += 1
            assert not re.search(r"</?(think|answer)>", user + assistant)
            assert user.count("<image>") == len(row["images"]) == (0 if what == "text" else 1)
            if what == "caption":
                assert assistant == item.caption
            elif what == "short":
                assert (user, assistant) == (f"<image>{item.problem}", item.short)
            else:
                assert item.caption in user
                assert item.problem in user
                assert assistant.endswith(item.short)
                assert len(assistant) > len(item.short) + 10
        assert set(seen) == set(shares)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_questions_survive_the_file(tmp_path, suffix):
    items = items_of("bars", 7, 91)
    path = tmp_path / "deep" / f"q.{suffix}"
    assert write_questions(items, path) == 7
    rows = read_rows(path)
    for item, row in zip(items, rows, strict=True):
        image = row.pop("images")
        assert row == {
            "problem": f"<image>{item.problem}",
            "answer": item.answer,
            "source": "bars",
            "id": item.id,
            "kind": item.kind,
        }
        assert np.array_equal(image[0], np.asarray(item.image))
    assert not list(path.parent.glob("*.tmp-*"))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_sft_rows_survive_the_file(tmp_path, suffix):
    rows = list(base_rows(items_of("shapes", 12, 84), {"caption": 1, "text": 1}, 0))
    assert write_sft(rows, tmp_path / f"s.{suffix}") == 12
    for row, read in zip(rows, read_rows(tmp_path / f"s.{suffix}"), strict=True):
        assert list(read) == ["messages", "images", "source", "id"]
        assert read["messages"] == row["messages"]
        assert read["id"] == row["id"]
        assert [i.shape for i in read["images"]] == [(84, 84, 3)] * len(row["images"])


def read_rows(path):
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row["images"] = [np.asarray(Image.open(io.BytesIO(i["bytes"]))) for i in row["images"]]
        return rows
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["images"] = [np.asarray(Image.open(path.parent / name)) for name in row["images"]]
    return rows


def test_failed_write_leaves_no_file(tmp_path):
    def broken():
        yield from items_of("bars", 1, 84)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        write_questions(broken(), tmp_path / "q.jsonl")
    assert not (tmp_path / "q.jsonl").exists()


# --- sizes, mistakes, command line ---------------------------------------------------------------


@pytest.mark.parametrize("size", [(197, 333), (301, 203), 280])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_size(family, size):
    for item in items_of(family, 3, size, levels=(1, 2, 3)):
        assert item.image.size == ((size, size) if isinstance(size, int) else size)
        assert item.image.mode == "RGB"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"families": ["shape"]}, "choose among shapes"),
        ({"families": "shapes"}, r"write \['shapes'\]"),
        ({"families": {"shapes": 0.0}}, "sum above 0"),
        ({"split": "test"}, "train, validation, held_out"),
        ({"kinds": ["tallest"]}, "it has count_all"),
        ({"levels": [4]}, "1, 2, 3"),
        ({"families": ["tables"]}, "at least 140 pixels"),
    ],
)
def test_mistakes_are_explained(change, text):
    good = {"families": ["shapes"], "split": "train", "n": 1, "seed": 0, "spec": WorldSpec(84)}
    with pytest.raises(ValueError, match=text):
        list(generate(**(good | change)))


def test_command_writes_questions_and_sheet(tmp_path, capsys):
    synthetic.main(
        [
            "--out",
            str(tmp_path),
            "--size",
            "224x196",
            "--families",
            "charts,maps",
            "--n",
            "5",
            "--split",
            "held_out",
            "--format",
            "jsonl",
            "--contact-sheet",
        ]
    )
    rows = read_rows(tmp_path / "held_out.jsonl")
    assert [row["images"][0].shape for row in rows] == [(196, 224, 3)] * 5
    assert Image.open(tmp_path / "contact_sheet.png").width > 800
    with pytest.raises(SystemExit):
        synthetic.main(["--out", str(tmp_path), "--families", "cats"])
    assert "choose among" in capsys.readouterr().err


def test_vocabulary_corpus_covers_the_words_of_held_out_items():
    corpus = list(vocabulary_corpus())
    assert corpus == list(vocabulary_corpus())
    vocabulary = set(re.findall(r"\w+|[^\w\s]", " ".join(corpus)))
    items = list(generate(["shapes", "bars"], "held_out", 150, 9))
    rows = [*trace_rows(items, SHARES, 0), *base_rows(items, {"short": 1, "text": 1}, 0)]
    text = " ".join(m["content"] for row in rows for m in row["messages"])
    assert set(re.findall(r"\w+|[^\w\s]", text.replace("<image>", ""))) <= vocabulary
