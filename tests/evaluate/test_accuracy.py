"""An evaluation asks every question in turn and holds the pixels of few."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.row_forms import png
from helpers.tiny import tiny_folder

from ovlt.config import DataConfig, ModelConfig, RewardConfig, RunConfig
from ovlt.data.rows import GoodRows, RowReader
from ovlt.evaluate import accuracy
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Completion, Engine, Sampling
from ovlt.system.runtime import start
from ovlt.types import Prompt


class Echo(Engine):
    """Answers each question with a number that it spells, and looks at what is decoded by then."""

    def __init__(self, reader: RowReader):
        self.reader = reader
        self.decoded = self.most_ahead = 0

    def generate(
        self, prompts: Iterable[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        start, answers = self.decoded, []
        for taken, prompt in enumerate(prompts, start=1):
            assert prompt.images
            self.most_ahead = max(self.most_ahead, self.decoded - start - taken)
            number = prompt.question.split()[-1].rstrip("?")
            text = f"<think>.</think><answer>{number if int(number) % 2 else 'no'}</answer>"
            encoded = self.reader.folder.tokenizer.backend_tokenizer.encode(text)
            ids = np.asarray(encoded.ids)
            one = Completion(ids, np.zeros(len(ids), np.float32), finished=True)
            answers.append([one] * sampling.n)
        assert len(answers) == len(seeds)
        return answers

    def load(self, weights: object) -> None:
        """Nothing to load."""

    def close(self) -> None:
        """Nothing to close."""


def test_pixels_are_decoded_a_few_questions_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R8"""
    rows = []
    for number in range(60):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        rows.append({"problem": f"Say {number}?", "answer": str(number), "image": f"{number}.png"})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(accuracy, "_ASKED_AT_ONCE", 25)
    folder = tiny_folder(tmp_path / "model")
    runtime = start(RunConfig(device="cpu"))
    try:
        reader = RowReader(runtime, ModelConfig(path=str(folder.path)), DataConfig(), folder)
        good = reader.questions(str(path), max_tokens=300)
        engine = Echo(reader)
        decode = GoodRows.prompt

        def counted(self: GoodRows, index: int) -> Prompt:
            engine.decoded += 1
            return decode(self, index)

        monkeypatch.setattr(GoodRows, "prompt", counted)
        with RewardPool(RewardConfig()) as pool:
            sampling = Sampling(2, 0.7, 20)
            figures = accuracy.evaluate_rows(engine, reader, good, pool, sampling, seed=0)
    finally:
        runtime.close()
    assert figures["num_questions"] == 60
    assert figures["greedy"]["accuracy"] == figures["sampled"]["accuracy"] == 0.5
    assert figures["questions"]["id"] == [f"rows/{number}" for number in range(60)]
    assert engine.decoded == 120  # greedily and sampled
    assert 0 < engine.most_ahead <= 4 * DataConfig().workers + 1
