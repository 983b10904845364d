"""Silence messages that libraries print at every start, by name; all others are shown.

``install`` covers Python's warnings and loggers. ``without_noise`` covers what C++ code writes to
file descriptor 2, while an engine is opened.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
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
# Of fla, which Qwen3.5 imports. On a GPU it is news: Triton does not find it.
WARNINGS_ON_CPU = (r"Triton is not supported on current platform, roll back to CPU",)
# Lines of C++ code: vLLM binds memory to the NUMA node of a CPU and says so on each rank.
LINES = ("NUMA binding: Using MEMBIND policy",)


def install(*, cpu: bool) -> None:
    """Silence LOGGERS and WARNINGS in this process, and WARNINGS_ON_CPU on a CPU."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in WARNINGS + WARNINGS_ON_CPU * cpu:
        warnings.filterwarnings("ignore", message=text)


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Drop LINES from what this process and its children write to file descriptor 2.

    ``grep`` copies the rest, as a process of its own: what is written last before a crash is shown,
    and no lock of this process can hold it up. Without ``grep`` nothing is dropped.
    """
    if (grep := shutil.which("grep")) is None:
        yield
        return
    kept = os.dup(2)
    patterns = [word for line in LINES for word in ("-e", line)]
    command = [grep, "--line-buffered", "--fixed-strings", "--invert-match", *patterns]
    copier = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=kept)
    assert copier.stdin is not None
    os.dup2(copier.stdin.fileno(), 2)
    copier.stdin.close()  # descriptor 2 is the pipe's writer now, here and in children
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        # A child that lives on keeps the pipe open, and grep with it: that is not waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            copier.wait(timeout=1.0)
