"""Asking: responses on disk as they come, the same whatever was killed and resumed before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import benchmark_files as files
from helpers.tiny import tiny_folder

from ovlt.benchmarks.ask import answered, ask, chosen_items, merge, seed_of
from ovlt.benchmarks.data import BenchmarkData, read_benchmark
from ovlt.benchmarks.items import BenchmarkItem
from ovlt.benchmarks.jobs import BenchmarkJob, prepare
from ovlt.benchmarks.measure import restyle, score_jobs
from ovlt.benchmarks.registry import chosen
from ovlt.benchmarks.results import read_head, read_items
from ovlt.config.benchmark import BenchmarkConfig
from ovlt.model.load import ModelFolder
from ovlt.rollout.engine import Completion, Engine, Sampling
from ovlt.types import Prompt


class Echo(Engine):
    """Answers with the seed and the sizes of the images, last prompt first; may die half-way."""

    def __init__(self, folder: ModelFolder, lives: int = 1000) -> None:
        self.folder, self.lives = folder, lives
        self.most_under_way = 0

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        groups: list[list[Completion]] = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            group: list[Completion] = []
            for i in range(sampling.n):
                text = f"{(seed + i) % 997} {len(prompt.token_ids)} {len(prompt.images)}"
                ids = self.folder.tokenizer.backend_tokenizer.encode(text).ids
                group.append(Completion(np.asarray(ids), np.zeros(len(ids), np.float32), True))
            groups.append(group)
        return groups

    def stream(
        self, prompts: Iterable[tuple[Prompt, int]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        waiting: list[tuple[int, Prompt, int]] = []
        for place, (prompt, seed) in enumerate(prompts):
            waiting.append((place, prompt, seed))
            self.most_under_way = max(self.most_under_way, len(waiting))
            if len(waiting) == 3:
                yield from self._finish(waiting, sampling)
        yield from self._finish(waiting, sampling)

    def _finish(
        self, waiting: list[tuple[int, Prompt, int]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        while waiting:
            place, prompt, seed = waiting.pop()
            if self.lives == 0:
                raise RuntimeError("killed")
            self.lives -= 1
            yield place, self.generate([prompt], sampling, [seed])[0]

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.write_all(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_folder(tmp_path_factory.mktemp("model"))


def config(root: Path, names: str, **more: object) -> BenchmarkConfig:
    fields = {"names": names, "data": str(root), "check_counts": False, "workers": 2,
              "max_response_tokens": 32, "max_pixels": 12544}  # fmt: skip
    return BenchmarkConfig.model_validate(fields | more)


def asked(job: BenchmarkJob, engine: Engine, folder: ModelFolder) -> None:
    items = [item for item in job.items if item.id not in answered(job.folder)]
    ask(engine, folder, job.data, items, job.asking, job.folder / "responses.rank0.jsonl")
    merge(job.folder, job.items)


DECIDING = (
    "style", "prompts", "image placement", "pixels", "decoding", "thoughts", "judge", "labels",
    "most response tokens", "decided by", "versions",
)  # fmt: skip
NAMES = "mathvista,mathverse,mathvision,emma,hallusionbench:all,mmmu-pro"


def test_every_benchmark_is_asked_and_scored(
    root: Path, folder: ModelFolder, tmp_path: Path
) -> None:
    settings = config(root, NAMES, expect="qwen2.5-vl-7b")
    jobs = prepare(settings, folder, tmp_path, 0, "test")
    for job in jobs:
        asked(job, Echo(folder), folder)
    lines = score_jobs(jobs, settings)
    assert sum("NOT reproduced" in line for line in lines) >= 5
    overall = "MMMU-Pro overall, mean of standard10 and vision"
    assert any(line.startswith(overall) for line in lines)
    for job in jobs:
        assert len(read_items(job.folder)) == len(job.items)
        head = read_head(job.folder)
        for key in DECIDING:
            assert key in head, key
        assert "| official |" in (job.folder / "styles.md").read_text()
    placements = {job.name: job.facts["image placement"] for job in jobs}
    assert placements["MMMU-Pro (standard10), style official"] == "after the text"
    assert placements["HallusionBench (all), style official"] == "first, no image"
    assert "at their tags" in str(placements["EMMA (test), style official"])


def test_a_killed_run_that_goes_on_writes_the_same_files(
    root: Path, folder: ModelFolder, tmp_path: Path
) -> None:
    settings = config(root, "mathverse", n=2, temperature=0.7)
    whole, parts = (prepare(settings, folder, tmp_path / name, 0, "test")[0] for name in "ab")
    asked(whole, Echo(folder), folder)
    with pytest.raises(RuntimeError, match="killed"):
        asked(parts, Echo(folder, lives=4), folder)
    path = parts.folder / "responses.rank0.jsonl"
    with path.open("a") as file:
        file.write('{"id": "3", "resp')  # the line that the kill cut short
    assert len(answered(parts.folder)) == 4
    asked(parts, Echo(folder), folder)
    for job in (whole, parts):
        score_jobs([job], settings)
    for name in ("responses.jsonl", "result.jsonl", "result.json", "result.md", "styles.md"):
        assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes(), name
    samples = read_head(whole.folder)["samples"]
    assert isinstance(samples, dict)
    assert set(samples) == {"mean@2", "pass@1", "pass@2"}


def test_a_folder_with_responses_asked_otherwise_is_refused(
    root: Path, folder: ModelFolder, tmp_path: Path
) -> None:
    prepare(config(root, "mathvision"), folder, tmp_path, 0, "test")
    with pytest.raises(ValueError, match=r"most response tokens was 32 and is 16; delete it"):
        prepare(config(root, "mathvision", max_response_tokens=16), folder, tmp_path, 0, "test")


def test_responses_of_other_weights_at_the_same_place_are_refused(
    root: Path, tmp_path: Path
) -> None:
    settings = config(root, "mathvision")
    prepare(settings, tiny_folder(tmp_path / "model", seed=1), tmp_path / "out", 0, "test")
    with pytest.raises(ValueError, match="model contents was"):
        prepare(settings, tiny_folder(tmp_path / "model", seed=2), tmp_path / "out", 0, "test")


def test_a_prompt_that_is_too_long_is_not_asked_and_counts_as_wrong(
    root: Path, folder: ModelFolder, tmp_path: Path
) -> None:
    settings = config(root, "mathvision", max_prompt_tokens=60)
    [job] = prepare(settings, folder, tmp_path, 0, "test")
    asked(job, Echo(folder), folder)
    assert any("questions not asked" in line for line in score_jobs([job], settings))
    assert "tokens, more than 60" in read_items(job.folder)[0].error


def test_greedy_samples_of_one_question_are_refused(
    root: Path, folder: ModelFolder, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="give a temperature"):
        prepare(config(root, "mathvision", n=4), folder, tmp_path, 0, "test")


def test_images_are_decoded_ahead_by_a_bounded_number(
    root: Path, folder: ModelFolder, tmp_path: Path
) -> None:
    rows = [files.MATHVISION[0] | {"id": str(i)} for i in range(300)]
    files.write(rows, tmp_path / "test.parquet")
    [job] = prepare(config(tmp_path, "mathvision"), folder, tmp_path / "out", 0, "test")
    engine = Echo(folder)
    asked(job, engine, folder)
    assert engine.most_under_way == 3
    assert [json.loads(line)["id"] for line in (job.folder / "responses.jsonl").open()] == [
        str(i) for i in range(300)
    ]


def test_a_seeded_subset_is_the_same_for_every_model_and_in_order() -> None:
    items = [BenchmarkItem(str(i), {}, (), i) for i in range(100)]
    subset = chosen_items(items, 10, seed=3)
    assert subset == chosen_items(list(reversed(items)), 10, seed=3)
    assert [item.place for item in subset] == sorted(item.place for item in subset)
    assert subset != chosen_items(items, 10, seed=4)
    assert seed_of(0, "a", 4) % 4 == 0


def test_stored_answers_are_scored_by_another_style_without_a_model(
    root: Path, folder: ModelFolder, tmp_path: Path
) -> None:
    settings = config(root, "mathvision")
    [job] = prepare(settings, folder, tmp_path, 0, "test")
    asked(job, Echo(folder), folder)
    score_jobs([job], settings)
    again = config(root, "", restyle=str(job.folder), style="openvlthinker")
    lines = restyle(again)
    assert lines[0].startswith("MathVision (test) by openvlthinker: accuracy")
    for item in read_items(job.folder / "by-openvlthinker"):
        assert item.samples[0].ruling.extracted == "Failed to extract."


def data_of(root: Path, name: str) -> BenchmarkData:
    [(benchmark, split)] = chosen(name)
    return read_benchmark(benchmark, split, str(root), strict=False)


@pytest.mark.parametrize("form", ["lines", "object"])
def test_a_shipped_output_file_is_scored_with_rows_of_its_own_or_of_the_benchmark(
    root: Path, tmp_path: Path, form: str
) -> None:
    if form == "lines":  # MATH-V's: id and response alone
        records = [{"id": item.id, "response": "so \\boxed{A}."}
                   for item in data_of(root, "mathvision").items]  # fmt: skip
        path, name = tmp_path / "out.jsonl", "mathvision"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:  # EMMA's: an object of whole rows
        path, name = tmp_path / "out.json", "emma"
        rows = {item.id: {**item.row, "response": "\\boxed{a}"}
                for item in data_of(root, "emma").items}  # fmt: skip
        path.write_text(json.dumps(rows))
    settings = config(root, name, restyle=str(path), out=str(tmp_path / "restyled"))
    if form == "lines":
        with pytest.raises(ValueError, match="expected"):  # the counts of the real benchmark
            restyle(settings.model_copy(update={"check_counts": True}))
    assert " on 5 questions" in restyle(settings)[0]


def test_restyle_says_what_a_file_lacks(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"id": "4", "text": "A"}\n')
    with pytest.raises(ValueError, match="record 0 has no response"):
        restyle(config(root, "mathvision", restyle=str(tmp_path / "x.jsonl")))
    with pytest.raises(ValueError, match="neither the folder of a result nor a file"):
        restyle(config(root, "mathvision", restyle=str(tmp_path / "none")))
