"""Good rows are read from every form of file and image; bad ones are counted by reason."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny import random_image, tiny_folder
from PIL import Image

from ovlt.data.image_refs import BadImage
from ovlt.data.sources import (
    Limits,
    Row,
    Rows,
    bad_images,
    load_conversations,
    load_questions,
    to_prompt,
    to_sample,
)
from ovlt.data.tables import read_table
from ovlt.data.tokens import Tokens
from ovlt.data.worlds import synthetic
from ovlt.model.chat import Chat
from ovlt.system.scratch import Scratch

LIMITS = Limits(factor=28, min_pixels=3136, max_pixels=100352, max_tokens=300)
Load = Callable[..., Rows]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return tiny_folder(tmp_path_factory.mktemp("sources") / "model").chat


def pixels(seed: int, height: int = 84, width: int = 112) -> np.ndarray:
    return random_image(np.random.default_rng(seed), height, width)


def png(seed: int, height: int = 84, width: int = 112) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, height, width)).save(buffer, "PNG")
    return buffer.getvalue()


def question(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {"problem": f"How many bars in {number}?", "answer": str(number), **changes}


def talk(*turns: str, **changes: Any) -> dict[str, Any]:
    """Return a conversation in which user and assistant take turns."""
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": r, "content": c} for r, c in zip(roles, turns, strict=False)]
    return {"messages": messages, **changes}


def jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows as lines; a bytes object is a line as it is."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def parquet(path: Path, rows: list[dict[str, Any]], columns: dict[str, pa.DataType]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(columns.items()))), path)
    return path


IMAGE_COLUMN = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
TEXT = pa.string()


# --- every form of file and image -------------------------------------------------------------


def test_questions_from_parquet_with_image_bytes(tmp_path: Path, chat: Chat) -> None:
    rows = [
        question(1, images=[{"bytes": png(1), "path": "a.png"}], source="charts", kind="count"),
        question(2, images=[{"bytes": png(2, 57, 90), "path": None}] * 2, id="mine"),
        question(3, images=[]),
    ]
    columns = {"problem": TEXT, "answer": TEXT, "images": IMAGE_COLUMN}
    columns |= dict.fromkeys(("source", "kind", "id"), TEXT)
    loaded = load_questions(parquet(tmp_path / "q.parquet", rows, columns), chat, LIMITS)
    assert not loaded.bad
    one, two, three = loaded
    assert (one.id, one.source, one.kind, one.answer) == ("q/0", "charts", "count", "1")
    assert (two.id, two.source, two.kind) == ("mine", "q", "")
    assert one.grids == ((1, 6, 8),)
    assert two.grids == ((1, 4, 6),) * 2  # 57 x 90 becomes 56 x 84
    prompt = to_prompt(one, LIMITS)
    np.testing.assert_array_equal(prompt.images[0], pixels(1))
    assert prompt.image_paths == ("a.png",)
    assert prompt.question == "How many bars in 1?"
    assert prompt.token_ids.tolist() == chat.prompt_ids("How many bars in 1?", one.grids).tolist()
    assert [image.shape for image in to_prompt(two, LIMITS).images] == [(56, 84, 3)] * 2
    assert to_prompt(three, LIMITS).images == ()


def test_questions_from_jsonl_with_paths_beside_the_file(
    tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set" / "pictures").mkdir(parents=True)
    (tmp_path / "set" / "pictures" / "1.png").write_bytes(png(1))
    (tmp_path / "far.png").write_bytes(png(2))
    rows = [
        question(1, images=["pictures/1.png"]),
        question(2, images="pictures/1.png"),  # one path, no list
        question(3, images=[str(tmp_path / "far.png")]),  # an absolute path
        question(4, images=[{"bytes": None, "path": "pictures/1.png"}]),
        question(5, images=None),
        question(6),
    ]
    monkeypatch.chdir(tmp_path)  # relative to the file, not to where the command runs
    loaded = load_questions(jsonl(tmp_path / "set" / "q.jsonl", rows), chat, LIMITS)
    assert not loaded.bad
    images = [to_prompt(row, LIMITS).images for row in loaded]
    assert [len(i) for i in images] == [1, 1, 1, 1, 0, 0]
    for i, seed in ((0, 1), (1, 1), (2, 2), (3, 1)):
        np.testing.assert_array_equal(images[i][0], pixels(seed))


def test_json_holds_the_same_rows_as_jsonl(tmp_path: Path, chat: Chat) -> None:
    rows = [question(1), question(2, id=0)]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    listed = load_questions(tmp_path / "q.json", chat, LIMITS)
    lined = load_questions(jsonl(tmp_path / "q.jsonl", rows), chat, LIMITS)
    assert [r.token_ids.tolist() for r in listed] == [r.token_ids.tolist() for r in lined]
    assert [r.id for r in listed] == ["q/0", "0"]


def test_conversations_from_parquet_and_jsonl_are_the_same_samples(
    tmp_path: Path, chat: Chat
) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    turns = ("Ready?", "Yes.", "<image>How many?", "<think>2, 3.</think> 3")
    message = pa.struct([("role", TEXT), ("content", TEXT)])
    from_parquet = load_conversations(
        parquet(
            tmp_path / "t.parquet",
            [talk(*turns, images=[{"bytes": png(1), "path": None}])],
            {"messages": pa.list_(message), "images": IMAGE_COLUMN},
        ),
        chat,
        LIMITS,
    )
    from_jsonl = load_conversations(
        jsonl(tmp_path / "t.jsonl", [talk(*turns, images=["1.png"])]), chat, LIMITS
    )
    samples = []
    for rows in (from_parquet, from_jsonl):
        assert not rows.bad
        samples.append(to_sample(rows[0], LIMITS))
        assert samples[-1].num_response_tokens == rows[0].num_labels
    a, b = samples
    assert a.token_ids.tolist() == b.token_ids.tolist()
    assert a.loss_mask.tolist() == b.loss_mask.tolist()
    np.testing.assert_array_equal(a.prompt.images[0], b.prompt.images[0])
    response = chat.decode(a.token_ids[a.loss_mask])
    assert response == "Yes.<think>2, 3.</think> 3"
    assert a.engine_logp is None


def test_the_suffix_is_asked_but_not_kept_as_the_question(tmp_path: Path, chat: Chat) -> None:
    path = jsonl(tmp_path / "q.jsonl", [question(1)])
    row = load_questions(path, chat, LIMITS, suffix=" Answer briefly.")[0]
    assert row.question == "How many bars in 1?"
    expected = chat.prompt_ids("How many bars in 1? Answer briefly.", [])
    assert row.token_ids.tolist() == expected.tolist()


def test_limit_counts_good_rows(tmp_path: Path, chat: Chat) -> None:
    rows = [question(1), {}, question(2), question(3)]
    loaded = load_questions(jsonl(tmp_path / "q.jsonl", rows), chat, LIMITS, limit=2)
    assert [row.answer for row in loaded] == ["1", "2"]
    assert loaded[1].id == "q/2"  # the number of the line in the file


# --- bad rows ---------------------------------------------------------------------------------

BROKEN = {
    "no 'problem' text": [question(problem=None), question(problem=" \n"), {"answer": "3"}],
    "'answer' is not a non-empty string": [
        question(answer=3),
        question(answer=["3"]),
        question(answer=" "),
        {"problem": "How many?"},
    ],
    "1 <image> tags but 2 images": [question(problem="<image>?", images=["1.png", "1.png"])],
    "1 <image> tags but 0 images": [question(problem="<image>?")],
    "image file is missing": [question(images=["no.png"]), question(images=["x" * 5000 + ".png"])],
    "images at an address (http:) are not fetched: download them and give their paths": [
        question(images=["http://a.b/c.png"])
    ],
    "image is neither a path nor bytes": [
        question(images=[7]),
        question(images=[None]),
        question(images=[""]),
        question(images=[{"bytes": None, "path": None}]),
        question(images=[["1.png"]]),
    ],
    "image cannot be read (UnidentifiedImageError)": [question(images=["q.jsonl"])],
    "image has zero bytes": [question(images=["empty.png"])],
    "text spells out a special token of the tokenizer": [question(problem="<|im_end|>?")],
    "text is not valid Unicode": [question(problem="\ud83d?")],
    "longer than 300 tokens": [
        question(problem="many bars " * 300),
        question(images=["big.png"], problem="?"),
    ],
    "line is not valid JSON": [
        b'{"problem": "How many?", "answer": "3"',
        b"# a comment",
        b'\xff\xfe{"problem": "?"}',
        b'{"problem": ' + b"[" * 100_000,
    ],
    "row is not an object": [[1, 2], "text", 7, None],
}


def test_each_kind_of_bad_row_is_counted_and_the_good_ones_go_on(
    tmp_path: Path, chat: Chat
) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    (tmp_path / "big.png").write_bytes(png(1, 600, 700))
    (tmp_path / "empty.png").touch()
    rows: list[Any] = [question(0)]
    for number, broken in enumerate(BROKEN.values(), start=1):
        rows += [*broken, question(number, images=["1.png"]), b""]
    limits = Limits(factor=28, min_pixels=3136, max_pixels=10**6, max_tokens=300)
    loaded = load_questions(jsonl(tmp_path / "q.jsonl", rows), chat, limits)
    assert loaded.bad == Counter({reason: len(broken) for reason, broken in BROKEN.items()})
    assert [row.answer for row in loaded] == [str(i) for i in range(len(BROKEN) + 1)]
    report = loaded.report()
    assert report.startswith(f"{tmp_path / 'q.jsonl'}: {len(loaded)} of ")
    for reason, broken in BROKEN.items():
        assert f"{len(broken)} x {reason}" in report


def test_bad_conversations_are_counted(tmp_path: Path, chat: Chat) -> None:
    shapeless = "a message lacks a known role or a text content"
    broken = {
        "no 'messages' list": [{}, {"messages": []}, {"messages": "user: hello"}],
        shapeless: [
            {"messages": ["hello"]},
            {"messages": [{"role": "user", "content": 3}]},
            {"messages": [{"role": ["user"], "content": "hello"}]},
        ],
        "turns of role 'tool' are not read, only system, user and assistant": [
            {"messages": [{"role": "tool", "content": "3"}]}
        ],
        "conversation has no assistant turn": [
            talk("How many?"),
            {"messages": [{"from": "human", "value": "hello"}]},
        ],
        "conversation starts with the assistant": [
            {"messages": [{"role": "assistant", "content": "3"}]}
        ],
        "2 <image> tags but 1 images": [talk("<image><image>", "3", images=["1.png"])],
        "longer than 300 tokens": [talk("How many?", "many bars " * 300)],
        "text spells out a special token of the tokenizer": [talk("How many?", "3<|im_end|>")],
        "line is not valid JSON": [b"{"],
        "row is not an object": [[]],
    }
    (tmp_path / "1.png").write_bytes(png(1))
    rows = [talk("a", "b"), *(row for kind in broken.values() for row in kind), talk("c", "d")]
    loaded = load_conversations(jsonl(tmp_path / "t.jsonl", rows), chat, LIMITS)
    assert loaded.bad == Counter({reason: len(kind) for reason, kind in broken.items()})
    assert [row.question for row in loaded] == ["a", "c"]


def test_images_that_break_only_when_decoded_are_found_before_training(
    tmp_path: Path, chat: Chat
) -> None:
    rows = []
    for i in range(7):
        data = png(i)
        (tmp_path / f"{i}.png").write_bytes(data[:-4000] if i in (2, 5) else data)
        rows.append(question(i, images=[f"{(i + k) % 7}.png" for k in range(1 + i % 2)]))
    loaded = load_questions(jsonl(tmp_path / "q.jsonl", rows), chat, LIMITS)
    assert not loaded.bad  # the headers are whole
    bad = bad_images(loaded, LIMITS, workers=3)
    reasons = {index: str(error) for index, error in bad.items()}
    assert reasons == dict.fromkeys((1, 2, 5), "image cannot be decoded (OSError)")
    assert bad[1].detail == str(tmp_path / "2.png")
    with pytest.raises(BadImage):
        to_prompt(loaded[2], LIMITS)
    assert bad_images([loaded[0]], LIMITS, workers=1) == {}
    assert bad_images([], LIMITS, workers=1) == {}


# --- too much is bad --------------------------------------------------------------------------


def test_rows_are_a_sequence(tmp_path: Path, chat: Chat) -> None:
    path = jsonl(tmp_path / "q.jsonl", [question(i) for i in range(3)])
    rows = load_questions(path, chat, LIMITS)
    assert len(rows) == 3
    assert [row.answer for row in rows] == ["0", "1", "2"]
    assert (rows[-1].answer, [row.answer for row in rows[:2]]) == ("2", ["0", "1"])


def test_too_many_bad_rows_stop_the_run_with_share_and_limit(tmp_path: Path, chat: Chat) -> None:
    rows = [question(i) for i in range(37)] + [question(answer=3)] * 2 + [question(problem="")]
    loaded = load_questions(jsonl(tmp_path / "q.jsonl", rows), chat, LIMITS)
    assert loaded.require(0.08) is loaded
    assert loaded.require(0.075) is loaded  # 3 of 40: the limit itself is allowed
    with pytest.raises(ValueError, match="max_bad_share") as caught:
        loaded.require(0.02)
    message = str(caught.value)
    for part in (
        "q.jsonl: 37 of 40 rows are good",
        "2 x 'answer' is not a non-empty string",
        "1 x no 'problem' text",
        "7.5% of the rows are bad",
        "data.max_bad_share = 2.0%",
        "fix the file or raise the limit",
    ):
        assert part in message


def test_the_limit_itself_is_allowed_whatever_floats_do() -> None:
    row = Row("", "", "", "", "", Tokens.of(np.arange(1), None, Scratch()))
    for bad in range(1, 100):
        Rows("", [row] * (100 - bad), Counter(reason=bad)).require(float(f"0.{bad:02d}"))


def test_a_file_without_a_good_row_is_refused_at_any_limit(tmp_path: Path, chat: Chat) -> None:
    loaded = load_questions(jsonl(tmp_path / "q.jsonl", [{}, {}]), chat, LIMITS)
    with pytest.raises(ValueError, match=r"2 x no 'problem' text.*100\.0%"):
        loaded.require(1.0)


@pytest.mark.parametrize("load", [load_questions, load_conversations])
def test_an_empty_dataset_says_so(tmp_path: Path, chat: Chat, load: Load) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    (tmp_path / "b.json").write_text("[]")
    parquet(tmp_path / "c.parquet", [], {"problem": TEXT})
    for name in ("a.jsonl", "b.json", "c.parquet"):
        with pytest.raises(ValueError, match=rf"{name} has no rows: the dataset is empty"):
            load(tmp_path / name, chat, LIMITS).require(1.0)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.parquet", b"PAR1 and then something else PAR1", "is not a readable parquet file"),
        ("a.parquet", b"", "is not a readable parquet file"),
        ("a.json", b"[{", "is not valid JSON"),
        ("a.json", b'{"data": [{"problem": "?"}]}', "must hold a JSON list of rows.*'data'"),
        ("a.json", b'{"problem": ["?"], "answer": ["3"]}', "must hold a JSON list of rows"),
        ("a.json", b'["\xff"]', "is not valid JSON"),
        ("a.json", b"[" * 100_000, "is not valid JSON"),
        ("a.csv", b"problem,answer", r"read from .parquet, .jsonl or .json, not '.csv'"),
        ("a", b"", r"read from .parquet, .jsonl or .json, not ''"),
    ],
)
def test_a_file_that_is_no_table_is_named(
    tmp_path: Path, name: str, data: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=expected) as caught:
        list(read_table(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data file at .*no\.parquet"):
        list(read_table(tmp_path / "no.parquet"))
    with pytest.raises(ValueError, match="file of rows, only nothing"):
        list(read_table(tmp_path))


def test_a_parquet_file_cut_off_or_bent_in_the_middle(tmp_path: Path) -> None:
    rows = [question(i) for i in range(500)]
    path = parquet(tmp_path / "q.parquet", rows, {"problem": TEXT, "answer": TEXT})
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:100] + b"\xff" * 300 + whole[400:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is not a readable parquet file"):
            list(read_table(path))


def test_text_columns_that_hold_no_text(tmp_path: Path, chat: Chat) -> None:
    """Other writers put any bytes into a string column, and numbers where text belongs."""
    numbers = parquet(
        tmp_path / "n.parquet",
        [{"problem": "How many?", "answer": 3}],
        {"problem": TEXT, "answer": pa.int64()},
    )
    assert load_questions(numbers, chat, LIMITS).bad == {"'answer' is not a non-empty string": 1}
    raw = pa.array([b"\xff\xfe"], pa.binary()).view(TEXT)
    pq.write_table(pa.table({"problem": raw}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet is not a readable parquet file.*utf-8"):
        load_questions(tmp_path / "b.parquet", chat, LIMITS)


# --- whole files, as users have them ----------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_the_synthetic_world_comes_back_as_it_was_drawn(
    tmp_path: Path, chat: Chat, suffix: str
) -> None:
    items = list(synthetic.generate(["bars", "shapes"], "train", 5, 0, synthetic.WorldSpec(84)))
    path = tmp_path / f"world.{suffix}"
    synthetic.write_questions(items, path)
    rows = load_questions(path, chat, LIMITS).require(0)
    assert bad_images(rows, LIMITS, 1) == {}
    for row, item in zip(rows, items, strict=True):
        assert (row.id, row.source, row.kind) == (item.id, item.family, item.kind)
        assert row.question == f"<image>{item.problem}"
        assert row.answer == item.answer
        np.testing.assert_array_equal(to_prompt(row, LIMITS).images[0], np.asarray(item.image))
    traces = synthetic.trace_rows(items, {"direct": 1.0}, seed=0)
    synthetic.write_sft(traces, tmp_path / f"sft.{suffix}")
    loaded = load_conversations(tmp_path / f"sft.{suffix}", chat, LIMITS).require(0)
    assert len(loaded) == 5
    for row, item in zip(loaded, items, strict=True):
        assert row.loss_mask is not None
        response = chat.decode(row.token_ids[row.loss_mask])
        assert response.endswith(f"<answer>{item.answer}</answer>")


def test_ten_lines_of_your_own(tmp_path: Path, chat: Chat) -> None:
    """The example of the README: photographs in a folder and ten lines of text, nothing else."""
    for i in range(10):
        Image.fromarray(pixels(i, 90 + i, 130)).save(tmp_path / f"photo{i}.jpg")
    lines = [
        f'{{"problem": "How many cups are on the table?", "answer": "{i}", '
        f'"images": ["photo{i}.jpg"]}}'
        for i in range(10)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    rows = load_questions(tmp_path / "mine.jsonl", chat, LIMITS).require(0)
    assert rows.report() == f"{tmp_path / 'mine.jsonl'}: 10 rows"
    assert [row.answer for row in rows] == [str(i) for i in range(10)]
    assert {row.source for row in rows} == {"mine"}
    prompts = [to_prompt(row, LIMITS) for row in rows]
    for row, prompt in zip(rows, prompts, strict=True):
        height, width, _ = prompt.images[0].shape
        assert row.grids == ((1, height // 14, width // 14),)
        assert (prompt.token_ids == chat.image_id).sum() == height * width // 784


def test_grids_and_pixels_agree_for_any_image(tmp_path: Path, chat: Chat) -> None:
    """A sideways photograph has its sides exchanged in both; otherwise packing would fail."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(0, 60, 200)).save(tmp_path / "side.jpg", exif=exif)
    Image.fromarray(pixels(0, 3, 17)).save(tmp_path / "tiny.png")
    Image.fromarray(pixels(0, 10, 1900)).save(tmp_path / "sliver.png")
    limits = Limits(factor=28, min_pixels=3136, max_pixels=12544, max_tokens=300)
    names = ["side.jpg", "tiny.png", "sliver.png"]
    rows = [question(i, images=[name]) for i, name in enumerate(names)]
    loaded = load_questions(jsonl(tmp_path / "q.jsonl", rows), chat, limits)
    assert not loaded.bad
    shapes = [to_prompt(row, limits).images[0].shape for row in loaded]
    assert [row.grids for row in loaded] == [((1, h // 14, w // 14),) for h, w, _ in shapes]
    assert shapes[0][0] > shapes[0][1]
    assert all(3136 <= h * w <= 12544 for h, w, _ in shapes)


def test_labels_start_after_the_first_token() -> None:
    mask = np.array([True, False, True, True])
    row = Row("", "", "", "", "", Tokens.of(np.arange(4), mask, Scratch()))
    assert row.num_labels == 2
