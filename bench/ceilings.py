"""``python bench/ceilings.py OUT.json [--small]``: what this device can do, before all else.

A copy in device memory (bytes read and written) and bfloat16 products: a large square one, and the
three of a training head. Everything else that runs in ``bench/on_gpu.sh`` is compared with these,
since two chips of one name differ, and so do an idle and a warm one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ovlt.system import env

env.apply(env.machine())

import torch
from machine import DEVICE, about, seconds_of, write_json

HEADS = {"3B": (16_384, 2048, 151_936), "7B": (16_384, 3584, 152_064)}  # N, H, V


def copy_rate(size: int) -> float:
    """Return bytes/s, read and written, of a copy of ``size`` bytes."""
    source = torch.empty(size // 4, dtype=torch.float32, device=DEVICE).normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source))


def product_rate(m: int, k: int, n: int) -> float:
    """Return FLOP/s of a bfloat16 product of random numbers, which are slower than zeros."""
    a = torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16)
    b = torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16)
    out = torch.empty(m, n, device=DEVICE, dtype=torch.bfloat16)
    return 2 * m * k * n / seconds_of(lambda: torch.mm(a, b.t(), out=out))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    options = parser.parse_args()
    side = 256 if options.small else 8192
    rows = 4096  # of one block of logits
    copied, product = (
        copy_rate((1 if options.small else 4096) << 20),
        product_rate(side, side, side),
    )
    record: dict[str, object] = {
        "about": about(),
        "copy_bytes_per_s": copied,
        "product_flops": product,
    }
    if not options.small:
        record["head_product_flops"] = {
            name: product_rate(rows, width, vocab) for name, (_, width, vocab) in HEADS.items()
        }
    if DEVICE.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        record["memory_bytes"] = {"free": free, "total": total}
    record["warm"] = about()["gpu"]  # clocks after the work
    write_json(options.out, record)
    print(
        f"copy {record['copy_bytes_per_s']:.3g} B/s, product {record['product_flops']:.3g} FLOP/s"
    )


if __name__ == "__main__":
    main()
