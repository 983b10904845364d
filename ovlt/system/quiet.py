"""What libraries repeat at every start, silenced by name; everything else they say is shown.

``install`` covers Python's warnings and loggers. ``without_noise`` covers what C++ code writes to
file descriptor 2, while an engine is opened.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator

# Loggers of vLLM that report the same at each start or weight sync: that Triton has no CPU back
# end; modules that have nothing to load; the number of threads. ``rollout/sync.py`` proves more
# about a weight sync than such lines could.
LOGGERS = (
    "vllm.triton_utils.importing",
    "vllm.model_executor.model_loader.reload.layerwise",
    "vllm.v1.worker.cpu_worker",
)
# Deprecations inside libraries, by the start of their text (a regular expression).
WARNINGS = (
    r"`torch\.distributed\.reduce_op` is deprecated",  # vLLM looks at every attribute of torch
    r"builtin type [Ss]wig",
)
# Lines of C++ code: vLLM binds memory to the NUMA node of a CPU and says so on each rank.
LINES = (b"NUMA binding: Using MEMBIND policy",)


def install() -> None:
    """Silence LOGGERS and WARNINGS in this process."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in WARNINGS:
        warnings.filterwarnings("ignore", message=text)


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Drop LINES from what this process and its children write to file descriptor 2.

    Children keep the pipe: the thread that copies it ends when the last of them closes it.
    """
    read, write = os.pipe()
    kept = os.dup(2)
    copier = threading.Thread(target=_copy, args=(read, kept), daemon=True)
    copier.start()
    os.dup2(write, 2)
    os.close(write)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        copier.join(timeout=1.0)  # without children it ends at once


def _copy(read: int, write: int) -> None:
    """Copy whole lines from one descriptor to the other until the end of the pipe."""
    rest = b""
    while chunk := os.read(read, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        text = b"".join(line + b"\n" for line in lines if not any(x in line for x in LINES))
        if text:
            os.write(write, text)
    if rest and not any(x in rest for x in LINES):
        os.write(write, rest)
    os.close(read)
    os.close(write)
