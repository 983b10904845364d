"""Started by tests/test_loops.py: runs ``python -m ovlt.STAGE`` as forks of a process that has the
slow imports behind it (ten seconds of CPU for each command otherwise).

One JSON request per line on stdin: ``{"module", "argv", "env", "stderr"}`` is answered with the
process id, ``{"wait": pid}`` with the exit status (minus the signal), or null while it runs.
A fork leaves the loop below and ends as any ``python -m`` does: its SystemExit, its traceback and
its exit handlers are the interpreter's own.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
from typing import Any

from ovlt.system import env

env.apply("cpu")

import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl  # noqa: F401
import vllm.model_executor.models.qwen2_5_vl
import vllm.v1.engine.core
import vllm.v1.worker.cpu_worker  # noqa: F401
from vllm import LLM  # noqa: F401

import ovlt.model.parallel
import ovlt.reward.pool
import ovlt.train.step  # noqa: F401  (no module that is itself a command)


def serve() -> dict[str, Any]:
    """Answer requests until stdin ends; in a fork, return what it is to run."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            done, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
        elif (answer := os.fork()) == 0:
            return request
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)


gc.freeze()
request = serve()
sys.stdin.close()
null = os.open(os.devnull, os.O_RDWR)
log = os.open(request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
for descriptor, target in ((null, 0), (null, 1), (log, 2)):
    os.dup2(descriptor, target)
os.environ.update(request["env"])
sys.argv = [request["module"], *request["argv"]]
runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
