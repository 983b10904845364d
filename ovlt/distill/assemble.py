"""Of the answers to each question, the trace that is learned; the rows, and what was dropped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovlt.data.images import stored
from ovlt.data.writers import SHAREGPT_COLUMNS, write_rows
from ovlt.distill import summary, traces
from ovlt.distill.shards import Record

if TYPE_CHECKING:
    from ovlt.config import Recipe
    from ovlt.data.sources import Row


def assemble(recipe: Recipe, home: Path, rows: Sequence[Row], records: Sequence[Record]) -> None:
    """SFT rows; why each sample was kept or not; which questions gave no row, and why; and the
    summary. Raises ValueError without any row."""
    kept: list[tuple[Row, traces.Trace]] = []
    dropped: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    funnel = Counter({"questions": len(rows)})
    for record in records:
        row = rows[record["index"]]
        whose = {"id": row.id, "source": row.source}
        reasons = ["not correct: " + reason for reason in record.get("reasons", ())]
        try:
            kept.append((row, _one_trace(record, reasons, recipe, funnel)))
        except traces.NoTrace as reason:
            dropped.append(whose | {"reason": str(reason)} | record)
        samples += [whose | {"sample": j, "reason": reason} for j, reason in enumerate(reasons)]
    counts = [
        (rows[r["index"]].source, len(r["scores"]), sum(s >= 1.0 for s in r["scores"]))
        for r in records
        if r["texts"]
    ]
    steps = ("questions", "answered", "with a correct answer", "with a correct trace", "kept")
    funnel["kept"] = len(kept)
    why = Counter(one["reason"] for one in dropped)
    found = {
        "funnel": [(funnel[step], step) for step in steps],
        "dropped": [(count, reason) for reason, count in why.most_common()],
        "pass": summary.pass_rates(counts),
        "words": summary.histogram([trace.words for _, trace in kept]),
        "keywords": summary.keyword_rates([trace.think for _, trace in kept]),
    }
    (home / "summary.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    for name, lines in (("dropped", dropped), ("samples", samples)):
        with (home / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    print("\n".join(summary.lines(found)), flush=True)
    if not kept:
        rates = found["pass"].get("all", {})
        raise ValueError(
            f"no trace is left to learn from (pass rates: {rates or 'nothing was answered'}), most "
            f"often since {why.most_common(1)[0][0]}: see {home / 'dropped.jsonl'}"
        )
    path = home / "rows.parquet"
    form, suffix = recipe.distill.form, recipe.data.suffix
    learned = (sft_row(row, traces.assemble(trace, form), suffix) for row, trace in kept)
    write_rows(learned, path, SHAREGPT_COLUMNS)
    print(f"wrote {len(kept)} rows to {path}", flush=True)


def _one_trace(
    record: Record, reasons: list[str], recipe: Recipe, funnel: Counter[str]
) -> traces.Trace:
    """The trace of one question that is learned; ``reasons`` get what became of each of its correct
    samples. Raises NoTrace."""
    cfg = recipe.distill
    if record["dropped"]:
        raise traces.NoTrace(record["dropped"])
    funnel["answered"] += 1
    right = [j for j, score in enumerate(record["scores"]) if score >= 1.0]
    if not right:
        raise traces.NoTrace("no sample is correct")
    funnel["with a correct answer"] += 1
    parsed: dict[int, traces.Trace] = {}
    refused: Counter[str] = Counter()
    for j in right:
        try:
            parsed[j] = traces.parse(record["texts"][j], finished=record["finished"][j])
            reasons[j] = f"correct, but another is the {cfg.keep.replace('_', ' ')}"
        except traces.NoTrace as reason:
            reasons[j] = f"correct, but no trace: {reason}"
            refused[str(reason)] += 1
    if not parsed:
        raise traces.NoTrace(f"no correct sample is a trace: {refused.most_common(1)[0][0]}")
    funnel["with a correct trace"] += 1
    words = [trace.words for trace in parsed.values()]
    chosen = list(parsed)[traces.choose(words, cfg.keep)]
    try:
        trace = traces.keep(parsed[chosen], cfg.filter, cfg.max_words)
    except traces.NoTrace as reason:
        reasons[chosen] = f"correct, but {reason}"
        raise
    reasons[chosen] = f"kept: the {cfg.keep.replace('_', ' ')} of {len(parsed)} correct"
    return trace


def sft_row(row: Row, text: str, suffix: str) -> dict[str, Any]:
    """A question, its images as they are, and the ``text`` that is learned, as an SFT row."""
    return {
        "messages": [
            {"role": "user", "content": row.question + suffix},
            {"role": "assistant", "content": text},
        ],
        "images": [stored(ref, f"{row.id}-{i}") for i, ref in enumerate(row.images)],
        "source": row.source,
        "id": row.id,
    }
