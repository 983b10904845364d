"""Of the answers to each question, the trace that is learned; the rows, and what was dropped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovlt.data import synthetic
from ovlt.distillation import summary, traces
from ovlt.distillation.shards import Record

if TYPE_CHECKING:
    from ovlt.config import Recipe
    from ovlt.data.sources import Row


def assemble(recipe: Recipe, home: Path, rows: Sequence[Row], records: Sequence[Record]) -> None:
    """SFT rows, what was dropped and why, and the summary. Raises ValueError without any row."""
    kept: list[tuple[Row, traces.Trace]] = []
    dropped: list[dict[str, Any]] = []
    funnel = Counter({"questions": len(rows)})
    for record in records:
        row = rows[record["index"]]
        try:
            kept.append((row, _one_trace(record, recipe, funnel)))
        except traces.NoTrace as reason:
            dropped.append({"id": row.id, "source": row.source, "reason": str(reason)} | record)
    counts = [
        (rows[r["index"]].source, len(r["scores"]), sum(s >= 1.0 for s in r["scores"]))
        for r in records
        if r["texts"]
    ]
    steps = ("questions", "answered", "with a correct answer", "with a correct trace", "kept")
    funnel["kept"] = len(kept)
    reasons = Counter(one["reason"] for one in dropped)
    found = {
        "funnel": [(funnel[step], step) for step in steps],
        "dropped": [(count, reason) for reason, count in reasons.most_common()],
        "pass": summary.pass_rates(counts),
        "words": summary.histogram([trace.words for _, trace in kept]),
        "keywords": summary.keyword_rates([trace.think for _, trace in kept]),
    }
    (home / "summary.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    with (home / "dropped.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in dropped)
    print("\n".join(summary.lines(found)), flush=True)
    if not kept:
        rates = found["pass"].get("all", {})
        raise ValueError(
            f"no trace is left to learn from (pass rates: {rates or 'nothing was answered'}), most "
            f"often since {reasons.most_common(1)[0][0]}: see {home / 'dropped.jsonl'}"
        )
    path = home / "rows.parquet"
    synthetic.write_sft(_sft_rows(kept, recipe), path)
    print(f"wrote {len(kept)} rows to {path}", flush=True)


def _one_trace(record: Record, recipe: Recipe, funnel: Counter[str]) -> traces.Trace:
    """The trace of one question that is learned. Raises NoTrace."""
    cfg = recipe.distill
    if record["dropped"]:
        raise traces.NoTrace(record["dropped"])
    funnel["answered"] += 1
    right = [j for j, score in enumerate(record["scores"]) if score >= 1.0]
    if not right:
        raise traces.NoTrace("no sample is correct")
    funnel["with a correct answer"] += 1
    parsed, reasons = [], []
    for j in right:
        try:
            parsed.append(traces.parse(record["texts"][j], finished=record["finished"][j]))
        except traces.NoTrace as reason:
            reasons.append(str(reason))
    if not parsed:
        raise traces.NoTrace(
            f"no correct sample is a trace: {Counter(reasons).most_common(1)[0][0]}"
        )
    funnel["with a correct trace"] += 1
    best = parsed[traces.choose([trace.words for trace in parsed], cfg.keep)]
    return traces.keep(best, cfg.filter, cfg.max_words)


def _sft_rows(kept: Sequence[tuple[Row, traces.Trace]], recipe: Recipe) -> Iterator[dict[str, Any]]:
    for row, trace in kept:
        text = traces.assemble(trace, recipe.distill.form)
        yield {
            "messages": [
                {"role": "user", "content": row.question + recipe.data.suffix},
                {"role": "assistant", "content": text},
            ],
            "images": [ref.open() for ref in row.images],
            "source": row.source,
            "id": row.id,
        }
