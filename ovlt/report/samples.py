"""Which rollouts the report shows, within a budget of bytes, and their images as data: URIs."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path
from typing import Any

from ovlt.report.collect import number

GROUPS_PER_STEP = 6
SAMPLES_PER_GROUP = 16
BYTES_PER_STEP = 2 << 20  # text and images; three steps a stage
FOLD_CHARS = 4000  # what follows is behind a click
CUT_CHARS = 40_000  # what follows is left out
IMAGE_SIDE = 512  # pixels; larger images are shown smaller

_STEP_FILE = re.compile(r"step_(\d{6,})\.jsonl")
_IMAGE_NAME = re.compile(r"images/[0-9a-f]{16}\.png")


def rollout_steps(stage: Path) -> list[dict[str, Any]]:
    """The first, middle and last logged step of a stage folder, ready for the template.

    Each is ``{"step", "groups", "total", "damaged"}``: at most ``GROUPS_PER_STEP`` groups in the
    order of the file, fewer where ``BYTES_PER_STEP`` is reached; ``total`` counts all of them.
    """
    files = sorted(
        (int(match[1]), path)
        for path in (stage / "rollouts").glob("step_*.jsonl")
        if (match := _STEP_FILE.fullmatch(path.name))
    )
    chosen = sorted({0, len(files) // 2, len(files) - 1}) if files else []
    return [_read_step(stage, *files[index]) for index in chosen]


def _read_step(stage: Path, step: int, path: Path) -> dict[str, Any]:
    groups: list[dict[str, Any]] = []
    total = damaged = spent = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            total += 1
            if len(groups) >= GROUPS_PER_STEP or spent >= BYTES_PER_STEP:
                continue
            try:
                group = _group(json.loads(line), stage)
            except (ValueError, TypeError, AttributeError, RecursionError):
                total, damaged = total - 1, damaged + 1
                continue
            spent += group.pop("bytes")
            groups.append(group)
    return {"step": step, "groups": groups, "total": total, "damaged": damaged}


def _group(row: dict[str, Any], stage: Path) -> dict[str, Any]:
    samples = [_sample(sample) for sample in row["samples"][:SAMPLES_PER_GROUP]]
    images = [_image(stage, name) for name in row.get("images", [])]
    question = _text(row.get("question"))
    rewards = [s["reward"] for s in samples if s["reward"] is not None]
    size = sum(len(image["uri"]) for image in images) + sum(_size(s["text"]) for s in samples)
    return {
        "id": str(row.get("prompt_id", "")),
        "source": str(row.get("source", "")),
        "question": question,
        "answer": _text(row.get("answer")),
        "images": images,
        "samples": samples,
        "left_out": len(row["samples"]) - len(samples),
        "reward": math.fsum(rewards) / len(rewards) if rewards else None,
        "bytes": size + _size(question),
    }


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    advantage = number(row.get("advantage"))
    tokens = number(row.get("tokens"))
    parts = {str(name): number(value) for name, value in row.get("parts", {}).items()}
    text = _text(row.get("text"))
    return {
        "text": text,
        "preview": " ".join(text["head"][:400].split())[:140],
        "reward": number(row.get("reward")),
        "parts": parts,
        "reason": str(row.get("reason", "")),
        "advantage": advantage,
        "tone": "none" if not advantage else "good" if advantage > 0 else "bad",
        "tokens": None if tokens is None else int(tokens),
        "finished": row.get("finished", True) is not False,
    }


def _text(value: Any) -> dict[str, Any]:
    text = "" if value is None else str(value)
    head, rest = text[:FOLD_CHARS], text[FOLD_CHARS:CUT_CHARS]
    return {"head": head, "rest": rest, "cut": max(0, len(text) - CUT_CHARS)}


def _size(text: dict[str, Any]) -> int:
    return len(text["head"]) + len(text["rest"])


def _image(stage: Path, name: Any) -> dict[str, Any]:
    """``{"uri", "width", "height", "note"}``; an image that cannot be shown has a note, no uri."""
    missing = {"uri": "", "width": 0, "height": 0}
    if not isinstance(name, str) or not _IMAGE_NAME.fullmatch(name):
        return {**missing, "note": "image left out: its name is not images/<16 hex digits>.png"}
    from PIL import Image

    try:
        content = (stage / name).read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            width, height = picture.size
            kind = "png"
            if max(width, height) > IMAGE_SIDE or len(content) > 64 << 10:
                small = picture.convert("RGB")
                small.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
                buffer = io.BytesIO()
                small.save(buffer, format="JPEG", quality=85)
                content, kind = buffer.getvalue(), "jpeg"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return {**missing, "note": f"image {name} cannot be shown ({type(error).__name__})"}
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return {"uri": uri, "width": width, "height": height, "note": ""}
