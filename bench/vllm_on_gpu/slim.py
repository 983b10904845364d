"""``slim.py SOURCE TARGET [SM]``: a copy of a CUDA library with machine code for one chip only.

A library's section .nv_fatbin is a row of containers, one for each compiled source file; each holds
the same kernels for several chips, and the driver picks one by the entries' headers. Here every
container keeps its entries for SM (90: Hopper); if it has none, the newest PTX that the chip can
compile; if it has neither (kernels for other chips), its smallest entry, so that no container is
empty. Containers stay where they are, since the library points at them, and say a smaller size;
what follows is zeros, which compress to nothing. No host code is touched.
"""

from __future__ import annotations

import mmap
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator

MAGIC = b"\x50\xed\x55\xba"
PTX, ELF = 1, 2
Entry = tuple[int, int, int, int]
Container = tuple[int, int, int, list[Entry]]


def fatbin(path: str) -> tuple[int, int]:
    """Return (offset, size) of .nv_fatbin."""
    listed = subprocess.run(
        ["readelf", "-SW", path], capture_output=True, text=True, check=True
    ).stdout
    line = re.search(r"\]\s+\.nv_fatbin\s+\S+\s+[0-9a-f]+\s+([0-9a-f]+)\s+([0-9a-f]+)", listed)
    if line is None:
        raise SystemExit(f"{path} has no section .nv_fatbin: name a CUDA library")
    return int(line[1], 16), int(line[2], 16)


def containers(data: mmap.mmap, offset: int, size: int) -> Iterator[Container]:
    """Yield (start, header size, body size, [(entry start, kind, bytes with header, chip)])."""
    at, end = offset, offset + size
    while at < end:
        if data[at : at + 4] != MAGIC:
            at += 8
            continue
        _, _, header, body = struct.unpack_from("<IHHQ", data, at)
        entries: list[Entry] = []
        here = at + header
        while here < at + header + body:
            kind, _, own, payload = struct.unpack_from("<HHIQ", data, here)
            (chip,) = struct.unpack_from("<I", data, here + 28)
            entries.append((here, kind, own + payload, chip))
            here += own + payload
        yield at, header, body, entries
        at += header + body


def main() -> None:
    source, target = sys.argv[1:3]
    sm = int(sys.argv[3]) if len(sys.argv) > 3 else 90
    shutil.copyfile(source, target)
    offset, size = fatbin(source)
    whole = exact = compiled = foreign = 0
    with open(target, "r+b") as file:
        data = mmap.mmap(file.fileno(), 0)
        for at, header, body, entries in list(containers(data, offset, size)):
            whole += 1
            keep = [e for e in entries if e[1] == ELF and e[3] == sm]
            if keep:
                exact += 1
            elif ptx := [e for e in entries if e[1] == PTX and e[3] <= sm]:
                keep = [max(ptx, key=lambda e: e[3])]
                compiled += 1
            else:
                keep = [min(entries, key=lambda e: e[2])]
                foreign += 1
            body_kept = b"".join(bytes(data[e[0] : e[0] + e[2]]) for e in keep)
            rest = bytes(body - len(body_kept))
            data[at + header : at + header + body] = body_kept + rest
            struct.pack_into("<Q", data, at + 8, len(body_kept))
        data.flush()
    counts = f"{exact} with sm_{sm}, {compiled} by PTX, {foreign} for other chips"
    print(f"{target}: {whole} containers: {counts}")


if __name__ == "__main__":
    main()
