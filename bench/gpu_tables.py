"""Tables (Markdown) of what bench/on_gpu.sh measures beside the kernels: for bench/table.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]


def sections(results: Results) -> str:
    """Return the tables of ceilings, training step and checks, as far as there are results."""
    blocks = [ceilings(results), steps(results), memory(results), components(results)]
    blocks += [dearest(results), checks(results), speed(results), loops(results)]
    return "\n\n".join(block for block in blocks if block)


def short(results: Results) -> str:
    """Return the few lines that end a run: sections, ceilings, steps, checks that failed."""
    ran = [f"{s['name']:<14} rc {s['status']:<4} {s['seconds']:4d} s" for s in results["sections"]]
    blocks = ["\n".join(ran), ceilings(results), steps(results)]
    failed = [c for c in results["checks"] if not c["passed"]]
    passed = len(results["checks"]) - len(failed)
    blocks.append(f"checks: {passed} passed, {len(failed)} failed")
    blocks += [f"FAILED {c['check']}: {c.get('error', '')[:200]}" for c in failed]
    blocks.append(f"kernels: {len(results['benchmarks'])} lines")
    return "\n\n".join(block for block in blocks if block)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; "" if it has no rows."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def ceilings(results: Results) -> str:
    """Return what the device can do, in one sentence."""
    found = results.get("ceilings")
    if not found:
        return ""
    heads = found.get("head_product_flops", {})
    shapes = "".join(f", {rate / 1e12:.1f} at the head of {name}" for name, rate in heads.items())
    return (
        f"Ceilings in the same run: a copy {found['copy_bytes_per_s'] / 1e12:.3f} TB/s (read and "
        f"written), a bfloat16 product {found['product_flops'] / 1e12:.2f} TFLOP/s{shapes}."
    )


def measured(results: Results) -> list[dict[str, Any]]:
    """Return the cases of the training step that have figures."""
    return [case for case in results["step"] if "error" not in case]


def steps(results: Results) -> str:
    """Return one line for each case of the training step."""
    rows: list[list[str]] = []
    for case in results["step"]:
        if "error" in case:
            rows.append([case["case"], *[""] * 8, case["error"]])
            continue
        layers, scaled = case["layers"], case["scaled"]
        predicted = scaled.get("predicted_s")
        fullest = case["memory"]["table"]["the fullest moment"]
        rows.append([
            case["case"], case["checkpointing"], f"{layers['measured']} of {layers['whole']}",
            f"{case['step_s']:.3f}", f"{case['tokens_per_s']:,.0f}",
            f"{case['mfu']:.3f}" if "mfu" in case else "",
            f"{case['mfu_scaled']:.3f}" if "mfu_scaled" in case else "",
            f"{scaled['forward_backward_s'] + scaled['optimizer_s']:.3f}",
            f"{predicted:.3f}" if predicted else "",
            f"{fullest['measured_gib']:.1f} ({fullest['predicted_gib']:.1f})",
        ])  # fmt: skip
    header = (
        "training step", "recomputed", "layers", "s", "tokens/s", "MFU", "MFU, all layers",
        "s, all layers", "plan expects", "peak GiB (plan)",
    )  # fmt: skip
    return markdown(header, rows)


def memory(results: Results) -> str:
    """Return memory by item beside what ``ovlt plan`` counts."""
    cases = measured(results)[:2]
    items = list(cases[0]["memory"]["table"]) if cases else []
    rows = [
        [item]
        + [
            f"{case['memory']['table'][item]['measured_gib']:.2f} "
            f"({case['memory']['table'][item]['predicted_gib']:.2f})"
            for case in cases
        ]
        for item in items
    ]
    return markdown(["GiB, measured (plan)", *(case["case"] for case in cases)], rows)


def components(results: Results) -> str:
    """Return the seconds of the parts of a step."""
    cases = measured(results)
    parts = list(dict.fromkeys(part for case in cases for part in case["seconds"]))
    rows = [
        [case["case"], *(f"{1e3 * case['seconds'].get(part, 0.0):.1f}" for part in parts)]
        for case in cases
    ]
    return markdown(["ms", *parts], rows)


def dearest(results: Results) -> str:
    """Return the dearest operations of the cases that were profiled, and their idle time."""
    blocks: list[str] = []
    for case in measured(results):
        if (profile := case.get("profile")) is None:
            continue
        idle = ", ".join(
            f"{p['name']} {p['idle'] * 1e3:.1f} of {p['seconds'] * 1e3:.1f} ms"
            for p in profile["phases"]
        )
        rows = [
            [f"`{op['what'][:90]}`", f"{op['ms']:.2f}", str(op["calls"]), f"{op['share']:.1%}"]
            for op in profile["dearest"]
        ]
        title = f"{case['case']}: the device was idle in {idle}."
        blocks.append(title + "\n\n" + markdown(("operation", "ms", "calls", "share"), rows))
    return "\n\n".join(blocks)


def checks(results: Results) -> str:
    """Return what was proven, with its figures."""
    rows = [
        [
            check["check"],
            "passed" if check["passed"] else f"FAILED: {check.get('error', '')[:120]}",
            ", ".join(f"{k} {number(v)}" for k, v in check.get("figures", {}).items()),
        ]
        for check in results["checks"]
    ]
    return markdown(("check", "verdict", "figures"), rows)


def number(value: object) -> str:
    """Return a figure in few digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def speed(results: Results) -> str:
    """Return the engine's milliseconds for each decoding step."""
    rows = [
        [s["what"], f"{s['sequences']}", f"{s['ms_per_step']:.2f}", f"{s['tokens_per_s']:,.0f}"]
        for s in results.get("speed", {}).get("steps", [])
    ]
    return markdown(("engine", "sequences", "ms per step", "tokens/s"), rows)


def loops(results: Results) -> str:
    """Return seconds of the phases and the mismatch of the last step of each loop with vLLM."""
    last = {line["loop"]: line for line in results.get("loops", [])}
    phases = list(dict.fromkeys(p for line in last.values() for p in line["seconds"]))
    rows = [
        [
            name,
            *(f"{line['seconds'].get(phase, 0.0):.2f}" for phase in phases),
            number(line["metrics"].get("mismatch/kl", 0.0)),
            number(line["metrics"].get("mismatch/probe_mean", 0.0)),
        ]
        for name, line in last.items()
    ]
    return markdown(("GRPO with vLLM, s", *phases, "mismatch KL", "probe, mean"), rows)
