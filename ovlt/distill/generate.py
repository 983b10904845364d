"""Answers to many questions, written batch by batch while the engine samples the next ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ovlt.data.loader import Loader
from ovlt.distill import traces
from ovlt.distill.shards import Record, Shards
from ovlt.model.chat import Chat
from ovlt.reward.failures import Failures
from ovlt.reward.pool import RewardPool
from ovlt.rollout.engine import Completion, Engine, Sampling, request_seeds
from ovlt.system.runtime import Runtime
from ovlt.types import Prompt

# Completes the records of a batch; the prompts are by the index of their question.
Grade = Callable[[list[Record], Mapping[int, Prompt]], list[Record]]


def as_they_are(records: list[Record], _: Mapping[int, Prompt]) -> list[Record]:
    """Return the records: only answers are graded."""
    return records


@dataclass(frozen=True)
class Task:
    """One phase: its prompts, how they are sampled, and where the records go.

    Attributes:
        chat: decodes the answers of the model that is asked.
        prompt: returns the prompt of a question by its index; its ValueError says why the question
            is dropped.
        num_questions: their indices are 0 to num_questions - 1.
        sampling: of each answer.
        seed: of all answers; a question's own seed follows from it and the index.
        shards: hold the records.
        grade: completes the records of a batch, while the engine samples the next one.
    """

    chat: Chat
    prompt: Callable[[int], Prompt]
    num_questions: int
    sampling: Sampling
    seed: int
    shards: Shards
    grade: Grade = as_they_are

    def prompt_or_reason(self, index: int) -> Prompt | str:
        """Return the prompt of a question, or why it is dropped."""
        try:
            return self.prompt(index)
        except ValueError as reason:
            return str(reason)

    def seeds(self) -> list[int]:
        """Return the seed of each question, the same for any number of ranks and after a kill."""
        count = self.num_questions
        return request_seeds(self.seed, count, range(count), self.sampling.n)

    def write(
        self, prompts: dict[int, Prompt], answers: list[list[Completion]], dropped: dict[int, str]
    ) -> None:
        """Write the records of a batch: the ``answers`` to ``prompts``, and dropped questions."""
        records: list[Record] = [
            {
                "index": index,
                "dropped": "",
                "texts": [self.chat.decode(c.token_ids.tolist()) for c in completions],
                "finished": [c.finished for c in completions],
                "tokens": [len(c.token_ids) for c in completions],
            }
            for index, completions in zip(prompts, answers, strict=True)
        ]
        for index, reason in dropped.items():
            records.append(
                {"index": index, "dropped": reason, "texts": [], "finished": [], "tokens": []}
            )
        self.shards.write(self.grade(records, prompts))


def generate(
    runtime: Runtime,
    task: Task,
    open_engine: Callable[[], Engine],
    *,
    batch_size: int,
    workers: int,
) -> None:
    """Ask every question that has no record yet, and write its record. Collective.

    The ranks share the questions. Each asks and writes ``batch_size`` of them at a time, with
    ``workers`` threads that make the prompts. To open vLLM is collective, so either all ranks open
    their engine, one without a question too, or none does, if no question is left. When this
    returns all ranks have written their records, and the process group is gone with the engine.
    """
    started = time.perf_counter()
    done = task.shards.done()
    runtime.barrier()  # every rank has read what there was before any rank writes more
    left = [i for i in range(task.num_questions) if i not in done]
    mine = left[runtime.rank :: runtime.world_size]
    if not left:
        return
    loader: Loader[Prompt | str] = Loader(task.prompt_or_reason, workers)
    batches = [mine[at : at + batch_size] for at in range(0, len(mine), batch_size)]
    if batches:
        loader.prefetch(batches[0])
    engine = open_engine()
    opened = time.perf_counter()
    engine_seconds = _ask(task, engine, loader, batches)
    seconds = time.perf_counter() - opened
    loader.close()
    runtime.barrier()
    engine.close()
    runtime.say(
        f"{task.shards.folder.name}: {len(mine)} questions on this rank in {seconds:.1f} s, "
        f"{engine_seconds / seconds:.0%} of it generation; the engine was open after "
        f"{opened - started:.1f} s"
    )


def _ask(
    task: Task, engine: Engine, loader: Loader[Prompt | str], batches: Sequence[Sequence[int]]
) -> float:
    """Ask the questions of ``batches``; return the seconds for which the engine sampled.

    While it samples one batch, the loader makes the prompts of the next and a thread grades and
    writes the answers of the last.
    """
    seeds, engine_seconds = task.seeds(), 0.0
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as background:
        for number, batch in enumerate(batches):
            items = dict(zip(batch, loader.get(batch), strict=True))
            if number + 1 < len(batches):
                loader.prefetch(batches[number + 1])
            prompts = {i: item for i, item in items.items() if not isinstance(item, str)}
            dropped = {i: item for i, item in items.items() if isinstance(item, str)}
            began = time.perf_counter()
            answers = engine.generate(
                list(prompts.values()), task.sampling, [seeds[i] for i in prompts]
            )
            engine_seconds += time.perf_counter() - began
            if writing is not None:
                writing.result()  # raises here what went wrong there
            writing = background.submit(task.write, prompts, answers, dropped)
        if writing is not None:
            writing.result()
    return engine_seconds


def verify(pool: RewardPool, records: list[Record], prompts: Mapping[int, Prompt]) -> list[Record]:
    """Return the records with the verdict on each text: ``scores``, 0 or 1, and ``reasons``."""
    scored = pool.score(
        [
            pool.input_of(traces.gradable(text), prompts[record["index"]])
            for record in records
            for text in record["texts"]
        ]
    )
    failures = Failures()
    failures.add(scored)
    failures.check("distillation", max_error_frac=pool.max_error_frac, timeout_s=pool.timeout_s)
    outputs = iter(scored)
    for record in records:
        verdicts = [next(outputs) for _ in record["texts"]]
        record["scores"] = [float(verdict.is_right) for verdict in verdicts]
        record["reasons"] = [verdict.reason for verdict in verdicts]
    return records
