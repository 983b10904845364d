"""GPUs that are known by name: what they hold and how fast they are. The one such table."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Peak dense bf16 FLOP/s, from the vendors' data sheets; MFU is a share of these.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}

# On an H200 a large bf16 product reached 790 of the data sheet's 989 TFLOP/s, and a copy 4.3 of 4.8
# TB/s (measured by this project). The other chips' data sheets are scaled by these shares.
_PRODUCT, _COPY = 790 / 989, 4.3 / 4.8


@dataclass(frozen=True)
class Gpu:
    """One chip. Rates are those of a large product or copy, not the data sheet's."""

    memory_gib: float  # what a process can have of it
    flops: float  # bf16 product, FLOP/s
    bandwidth: float  # of its memory, bytes/s
    link: float  # to the other GPUs of the node, bytes/s in one direction
    host: float  # to the host's memory, bytes/s in one direction


GPUS = {
    # 139 GiB, 790 TFLOP/s, 4.3 TB/s: measured. NVLink 4: 900 GB/s both ways; PCIe 5 x16: 64 GB/s.
    "h200": Gpu(139.0, 790e12, 4.3e12, 450e9, 64e9),
    # NVIDIA H100 SXM data sheet: 80 GB, 989 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s, PCIe 5.
    "h100": Gpu(79.0, 989e12 * _PRODUCT, 3.35e12 * _COPY, 450e9, 64e9),
    # NVIDIA A100 SXM data sheet: 80 or 40 GB, 312 TFLOP/s, 2,039 or 1,555 GB/s, NVLink 600 GB/s,
    # PCIe 4.
    "a100-80": Gpu(79.0, 312e12 * _PRODUCT, 2.039e12 * _COPY, 300e9, 32e9),
    "a100-40": Gpu(39.4, 312e12 * _PRODUCT, 1.555e12 * _COPY, 300e9, 32e9),
    # NVIDIA L40S data sheet: 48 GB, 362 TFLOP/s dense, 864 GB/s; no NVLink, PCIe 4.
    "l40s": Gpu(44.5, 362e12 * _PRODUCT, 0.864e12 * _COPY, 32e9, 32e9),
}
MOST = 8  # GPUs of one node: the links above do not hold between nodes


@dataclass(frozen=True)
class Node:
    """``count`` GPUs of one kind in one machine; one rank on each."""

    name: str
    gpu: Gpu
    count: int


def node(name: str) -> Node:
    """``h200x8`` -> eight of them; ``h200`` -> one. Raises ValueError that lists the known ones."""
    parts = re.fullmatch(r"(.+?)(?:x(\d+))?", name.lower())
    chip, count = (parts[1], int(parts[2] or 1)) if parts else ("", 0)
    if chip not in GPUS or not 1 <= count <= MOST:
        raise ValueError(
            f"unknown hardware '{name}': write CHIPxCOUNT with CHIP one of {', '.join(GPUS)} and "
            f"COUNT 1 to {MOST} (one node), e.g. --hardware=h100x8"
        )
    return Node(f"{chip}x{count}", GPUS[chip], count)
