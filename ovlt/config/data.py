"""[data], [mixture]: where questions come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ovlt.config.fields import NonNegative, Place, Positive, Share, Table, field


class DataConfig(Table):
    """Files of rows: questions (problem, answer, images) as parquet or JSONL."""

    validation: Place = field("", "Questions measured during training; choices are made by them.")
    held_out: Place = field(
        "", "Questions measured once, when a stage has ended; no choice is made by them."
    )
    validation_questions: NonNegative = field(200, "Use this many validation questions; 0: all.")
    suffix: str = field("", "Text that follows every question, in every stage that asks.")
    ignore: tuple[str, ...] = field((), "Columns of rows that are left out, unread.")
    workers: Positive = field(2, "Threads per rank that decode and resize images.")
    max_bad_share: Share = field(0.02, "Stop when a larger share of a file's rows is bad.")


class MixtureSourceConfig(Table):
    """One source of a mixture: a dataset, and where it lies."""

    source: str = field("", "Name of the dataset; `ovlt prepare --list` has them.")
    path: Place = field("", "Folder or file of the dataset, as it was downloaded.")
    split: str = field("", "Split to read if there are several; empty: train.")
    subset: str = field("", "Subset to read if the path holds several.")
    share: Annotated[float, Field(ge=0)] | None = field(
        None, "Weight in the mixture; left out: that of mixture.name, or 1."
    )
    cap: NonNegative | None = field(
        None, "Most questions from it; left out: that of mixture.name; 0: no cap."
    )
    rating: float | None = field(None, "Rated difficulty, on any scale that all sources share.")
    error_rate: Share | None = field(None, "Share of its questions the base model gets wrong.")


class MixtureConfig(Table):
    """A mixture of datasets, written as files of questions by `ovlt prepare`."""

    name: str = field("", "A published mixture (--list has them) for sources, shares and total.")
    folder: Place = field("data/mixture", "Folder the files are written to.")
    total: NonNegative = field(
        0, "Questions to train on; 0: that of the name, or all up to the caps."
    )
    seed: NonNegative = field(0, "Seed of the draw.")
    validation: NonNegative = field(
        0, "Questions held back as validation.parquet; train asks nothing about their images."
    )
    images: Literal["bytes", "files"] = field(
        "bytes", "bytes: in parquet; files: JSONL with a folder of images."
    )
    sharegpt: bool = field(False, "Also write LLaMA-Factory's sharegpt files.")
    levels: tuple[Literal["easy", "medium", "hard"], ...] = field(
        (), "Only sources (or, with a pass_rate, questions) of these levels; empty: all."
    )
    pass_rates: tuple[Place, ...] = field(
        (), "evaluation.json of a model on these questions (ovlt.evaluate): pass rates of rows, "
        "by source and id, and the error_rate of sources that give none."
    )  # fmt: skip
    min_pass_rate: Share = field(0.0, "Leave out questions of a lower pass_rate.")
    max_pass_rate: Share = field(1.0, "Leave out questions of a higher pass_rate.")
    benchmarks: tuple[Place, ...] = field(
        (), "Benchmark files (parquet, JSON, JSONL) whose questions are left out."
    )
    overlap_bits: NonNegative = field(
        4, "Images whose 1024-bit hashes differ in at most so many bits count as the same."
    )
    max_bad_share: Share = field(
        0.9, "Stop when a larger share of a source's rows is bad; half of ScienceQA has no image."
    )
    sources: tuple[MixtureSourceConfig, ...] = field((), "The datasets: [[mixture.sources]].")
