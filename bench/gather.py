"""``python bench/gather.py OUT``: join what the sections of bench/on_gpu.sh wrote into one file.

``python bench/gather.py RESULTS.json --add FOLDER`` adds what bench/vllm_on_gpu/run.sh wrote later.

Writes OUT/DATE-KIND.json in the form of pytest-benchmark, with ``ceilings``, ``step``, ``checks``,
``engine`` and ``sections`` beside its benchmarks, and prints a short table. What a section did not
write is left out; a file that is broken is named. bench/table.py makes the tables of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gpu_tables
import table

PARTS = ("ceilings", "step", "variants", "checks", "sanitizer", "engine", "speed")


def joined(folder: Path) -> dict[str, Any]:
    """Return the results that lie in ``folder``."""
    parts: dict[str, Any] = {}
    for name in PARTS:
        if (path := folder / f"{name}.json").is_file():
            try:
                parts[name] = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                print(f"{path} is broken: {error}")
    about = next((part["about"] for part in parts.values() if "about" in part), {})
    device = about.get("gpu", {}).get("name") or "cpu"
    results: dict[str, Any] = {
        "datetime": about.get("date", ""),
        "commit_info": {"id": about.get("commit", "unknown")},
        "machine_info": {"cpu": {"brand_raw": about.get("hardware", device)}},
        "about": about,
        "benchmarks": lines(folder / "kernels.jsonl"),
        "step": [case for name in ("step", "variants") for case in cases(parts.get(name))],
        "checks": [
            check | ({"check": f"{check['check']}, under {name}"} if name == "sanitizer" else {})
            for name in ("checks", "sanitizer", "engine")
            for check in parts.get(name, {}).get("checks", [])
        ],
        "sections": sections(folder / "sections.tsv"),
    }
    for section in results["sections"]:  # these speak by their exit status alone
        if section["name"] in ("tests", "loop", "sanitizer", "grpo-vllm"):
            passed = section["status"] == 0
            check = {"check": section["name"], "passed": passed}
            results["checks"].append(check | ({} if passed else {"error": "see log.txt"}))
    return results | {k: parts[k] for k in ("ceilings", "speed") if k in parts}


def cases(part: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the cases of a training step."""
    return list(part["cases"]) if part else []


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the benchmarks that were kept one by one; a line that was cut off is left out."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def sections(path: Path) -> list[dict[str, Any]]:
    """Return name, exit status and seconds of each section."""
    rows = [line.split("\t") for line in path.read_text().splitlines()] if path.is_file() else []
    return [{"name": n, "status": int(rc), "seconds": int(s)} for n, rc, s in rows]


def add(results: dict[str, Any], folder: Path) -> None:
    """Add the checks and the speed of an engine, and the loops that ran with it."""
    for path in sorted(folder.glob("*.json")):
        part = json.loads(path.read_text(encoding="utf-8"))
        if "steps" in part:
            results["speed"] = part
        for check in part.get("checks", []):
            results["checks"].append(check | {"check": f"{check['check']} ({path.stem})"})
    loops = folder / "loops.jsonl"
    for line in loops.read_text(encoding="utf-8").splitlines() if loops.is_file() else ():
        results.setdefault("loops", []).append(json.loads(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--add", type=Path, help="a folder of results, into the file OUT")
    words = parser.parse_args()
    if words.add is not None:
        results = json.loads(words.out.read_text(encoding="utf-8"))
        add(results, words.add)
        words.out.write_text(json.dumps(results), encoding="utf-8")
        table.trim(results, words.out)
        return
    folder = words.out
    results = joined(folder)
    kind = "gpu" if results["about"].get("gpu") else "cpu"
    path = folder / f"{results['datetime'][:10] or 'undated'}-{kind}.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    table.trim(results, path)
    print(gpu_tables.short(results))
    print(f"all figures: {path.name}; tables: python bench/table.py {path.name} --publish {kind}")


if __name__ == "__main__":
    main()
