"""The SFT rows of a distillation, its summary, and why each sample was kept or dropped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ovlt.config import DistillConfig
from ovlt.data.image_refs import stored
from ovlt.data.sources import Row
from ovlt.data.writers import SHAREGPT_COLUMNS, write_rows
from ovlt.distill import summary, traces
from ovlt.distill.shards import Record

FUNNEL = ("questions", "answered", "with a correct answer", "with a correct trace", "kept")


def assemble(
    config: DistillConfig,
    home: Path,
    rows: Sequence[Row],
    records: Sequence[Record],
    *,
    suffix: str,
) -> None:
    """Write ``rows.parquet``, ``summary.json``, ``samples.jsonl`` and ``dropped.jsonl``.

    samples.jsonl says of each sample why it was kept or not, dropped.jsonl of each question
    without a row. ``suffix`` follows each question in a row. Raises ValueError if no row is left.
    """
    kept: list[tuple[Row, traces.Trace]] = []
    dropped: list[dict[str, object]] = []
    samples: list[dict[str, object]] = []
    funnel = Counter({"questions": len(rows)})
    for record in records:
        row = rows[record["index"]]
        origin: dict[str, object] = {"id": row.id, "source": row.source}
        reasons = ["not correct: " + reason for reason in record.get("reasons", ())]
        try:
            kept.append((row, _choose_trace(record, reasons, config, funnel)))
        except traces.NoTrace as reason:
            dropped.append({**origin, "reason": str(reason), **record})
        samples += [{**origin, "sample": j, "reason": text} for j, text in enumerate(reasons)]
    funnel["kept"] = len(kept)
    drops = Counter(str(line["reason"]) for line in dropped).most_common()
    figures: summary.Summary = {
        "funnel": [(funnel[name], name) for name in FUNNEL],
        "dropped": [(count, reason) for reason, count in drops],
        "pass": summary.pass_rates(
            (rows[record["index"]].source, len(scores), sum(score >= 1.0 for score in scores))
            for record in records
            if (scores := record.get("scores"))
        ),
        "words": summary.histogram([trace.words for _, trace in kept]),
        "keywords": summary.keyword_rates([trace.think for _, trace in kept]),
    }
    (home / "summary.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    for name, lines in (("dropped", dropped), ("samples", samples)):
        with (home / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    print("\n".join(summary.lines(figures)), flush=True)
    if not kept:
        rates = figures["pass"].get("all", {})
        raise ValueError(
            f"no trace is left to learn from (pass rates: {rates or 'nothing was answered'}), most "
            f"often since {drops[0][0]}: see {home / 'dropped.jsonl'}"
        )
    path = home / "rows.parquet"
    sft_rows = (sft_row(row, traces.assemble(trace, config.form), suffix) for row, trace in kept)
    write_rows(sft_rows, path, SHAREGPT_COLUMNS)
    print(f"wrote {len(kept)} rows to {path}", flush=True)


def _choose_trace(
    record: Record, reasons: list[str], config: DistillConfig, funnel: Counter[str]
) -> traces.Trace:
    """Return the trace of one question that is learned, and count how far the question comes.

    ``reasons`` are those of its samples; the reasons of correct ones are replaced. Raises NoTrace.
    """
    rule = config.keep.replace("_", " ")
    if record["dropped"]:
        raise traces.NoTrace(record["dropped"])
    funnel["answered"] += 1
    correct = [j for j, score in enumerate(record.get("scores", ())) if score >= 1.0]
    if not correct:
        raise traces.NoTrace("no sample is correct")
    funnel["with a correct answer"] += 1
    candidates: dict[int, traces.Trace] = {}  # by the number of the sample
    refusals: Counter[str] = Counter()
    for j in correct:
        try:
            candidates[j] = traces.parse(record["texts"][j], finished=record["finished"][j])
            reasons[j] = f"correct, but another is the {rule}"
        except traces.NoTrace as reason:
            reasons[j] = f"correct, but no trace: {reason}"
            refusals[str(reason)] += 1
    if not candidates:
        raise traces.NoTrace(f"no correct sample is a trace: {refusals.most_common(1)[0][0]}")
    funnel["with a correct trace"] += 1
    lengths = [trace.words for trace in candidates.values()]
    chosen = list(candidates)[traces.choose(lengths, config.keep)]
    try:
        trace = traces.keep(candidates[chosen], config.filter, config.max_words)
    except traces.NoTrace as reason:
        reasons[chosen] = f"correct, but {reason}"
        raise
    reasons[chosen] = f"kept: the {rule} of {len(candidates)} correct"
    return trace


def sft_row(row: Row, text: str, suffix: str) -> dict[str, object]:
    """Return a question, its images and the ``text`` that is learned as an SFT row."""
    return {
        "messages": [
            *(turn.message for turn in row.earlier),
            {"role": "user", "content": row.question + suffix},
            {"role": "assistant", "content": text},
        ],
        "images": [stored(ref, f"{row.id}-{i}") for i, ref in enumerate(row.images)],
        "source": row.source,
        "id": row.id,
    }
