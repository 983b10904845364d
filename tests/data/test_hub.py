"""Names on the Hub: rows from a server of its interface on loopback; else no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.hub_server import HubServer, hub_server
from helpers.row_forms import png
from helpers.tiny import tiny_folder

from ovlt.system.hub import HubName, hub_name

# What each name gives: the ids of its rows, or the error.
READ = """
import json, sys
from ovlt.data.sources import Limits, bad_images, load_questions, to_prompt
from ovlt.model.load import open_folder
folder, *names = sys.argv[1:]
chat = open_folder(folder).chat
for name in names:
    limits = Limits(factor=28, min_pixels=3136, max_pixels=100352, max_tokens=300)
    try:
        rows = load_questions(name, chat, limits).require(0)
        prompts = [to_prompt(row, limits) for row in rows]
        print(json.dumps([[p.id, p.question, len(p.images), dict(p.extra)] for p in prompts]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    data = root / "datasets" / "me" / "bars" / "data"
    data.mkdir(parents=True)
    for split, count in (("train", 3), ("test", 1)):
        rows = [
            {
                "problem": f"{split} {i}?",
                "answer": "3",
                "images": [{"bytes": png(i), "path": None}],
                "level": i,
            }
            for i in range(count)
        ]
        for number in range(2):
            table = pa.Table.from_pylist(rows)
            pq.write_table(table, data / f"{split}-{number:05d}-of-00002.parquet")
    configs = root / "datasets" / "me" / "parts"
    for name in ("easy", "hard (10 options)"):
        (configs / name).mkdir(parents=True)
        (configs / name / "rows.jsonl").write_text(f'{{"problem": "{name}?", "answer": "3"}}\n')
    listed = "".join(
        f'- config_name: "{name}"\n  data_files: "{name}/*.jsonl"\n'
        for name in ("easy", "hard (10 options)")
    )
    (configs / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    tiny_folder(root / "models" / "me" / "tiny")
    with hub_server(root) as server:
        yield server


def run(code: str, *words: str, environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.slow
def test_rows_come_from_a_name_on_the_hub_and_stay_when_it_is_gone(
    hub: HubServer, tmp_path: Path
) -> None:
    model = str(hub.folder / "models" / "me" / "tiny")
    names = [
        "hf://me/bars:train",
        "hf://me/bars@v1/default:test",
        "hf://me/parts/hard (10 options)",
        "hf://me/bars",
        "hf://me/none:train",
        "hf://me/parts",
    ]
    train, test, hard, *errors = map(
        json.loads, run(READ, model, *names, environment=hub.environment(tmp_path))
    )
    assert train == [[f"bars/{i}", f"train {i % 3}?", 1, {"level": i % 3}] for i in range(6)]
    assert [row[1] for row in test] == ["test 0?"] * 2
    assert [row[1] for row in hard] == ["hard (10 options)?"]
    assert "splits train, test: name one, as in hf://me/bars:train" in errors[0]
    assert "hf://me/none:train cannot be had from the Hugging Face Hub (Rep" in errors[1]
    assert "easy" in errors[2]
    # Without a network the copy in the cache is read, and what is not there is a sentence.
    gone = hub.environment(tmp_path) | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    offline = gone | {"HF_HUB_OFFLINE": "1"}
    asked = len(hub.requests)
    again, other = map(
        json.loads, run(READ, model, names[0], "hf://me/new:train", environment=offline)
    )
    assert again == train
    assert "HF_HUB_OFFLINE" in other
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://a/b", HubName("a/b")),
        ("hf:/a/b:x", HubName("a/b", split="x")),
        ("hf://datasets/a/b.c-d/e f (g):train", HubName("a/b.c-d", "", "e f (g)", "train")),
        ("hf://a/b@v1.0/c:d", HubName("a/b", "v1.0", "c", "d")),
        ("hf://a/b@refs%2Fconvert%2Fparquet:d", HubName("a/b", "refs/convert/parquet", "", "d")),
    ],
)
def test_the_parts_of_a_name(text: str, name: HubName) -> None:
    assert hub_name(text) == name


@pytest.mark.parametrize("text", ["hf://", "hf://a", "hf://a/b c", "hf:///x", "hf://a//b"])
def test_a_name_that_is_none_says_how_names_look(text: str) -> None:
    with pytest.raises(ValueError, match="write hf://owner/name"):
        hub_name(text)
