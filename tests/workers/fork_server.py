"""Run ``python -m MODULE`` or ``python SCRIPT`` as forks of one process, which has imported torch,
transformers and vLLM already: each command would need ten seconds of CPU for that. What a command
imports only when it needs it is imported here too, and half a second of each is saved.

Started by helpers/commands.py. A request is one line of JSON on stdin. The answer to ``{"target",
"argv", "env", "stdout", "stderr"}`` is the id of the new process, the answer to ``{"wait": pid}``
its exit status (minus the signal), or null while it runs.

A fork leaves the loop below and ends as any ``python -m`` does: its SystemExit, its traceback and
its exit handlers are the interpreter's own. The commands and ranks that a command starts by
``ovlt.system.launch`` are forks of that command.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from ovlt.system import env

env.apply("cpu")

import compressed_tensors.compressors  # noqa: F401
import PIL.Image
import torch
import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl
import transformers.tokenization_mistral_common  # noqa: F401
import vllm.model_executor.models.qwen2_5_vl
import vllm.v1.attention.backends.cpu_attn
import vllm.v1.core.sched.scheduler
import vllm.v1.engine.core
import vllm.v1.worker.cpu_worker  # noqa: F401
from transformers.models.auto.video_processing_auto import video_processor_class_from_name
from vllm import LLM  # noqa: F401
from vllm.platforms import current_platform

import ovlt.config.command_line
import ovlt.data.loader
import ovlt.evaluate.validator
import ovlt.model.families.qwen2_5_vl
import ovlt.model.parallel
import ovlt.reward.pool
import ovlt.rollout.groups
import ovlt.rollout.sync
import ovlt.rollout.vllm
import ovlt.run.profile
import ovlt.smoke.make
import ovlt.train.prompts
import ovlt.train.stage
import ovlt.train.step  # no module that is itself a command
from ovlt.system import launch


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


def redirect(path: str, *descriptors: int) -> None:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor in descriptors:
        os.dup2(file, descriptor)
    os.close(file)


def run(target: str, argv: list[str]) -> None:
    sys.argv = [target, *argv]
    if target.endswith(".py"):
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)


def fork_module(module: str, arguments: Sequence[str]) -> None:
    """Do what ``launch.python_module`` does, by forks: torchrun's ranks, or one other command."""
    target, argv = module, list(arguments)
    environments: list[dict[str, str]] = [{}]
    if module == "ovlt.system.torchrun":
        standalone, option, ranks, dash_m, target, *argv = arguments
        assert (standalone, option, dash_m) == ("--standalone", "--nproc-per-node", "-m"), arguments
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        environments = [shared | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(int(ranks))]
    sys.stdout.flush()
    pids = []
    for variables in environments:
        if (pid := os.fork()) == 0:
            os.environ.update(variables)
            os._exit(status_of(target, argv))
        pids.append(pid)
    # In order of their rank: one that fails ends the others, which wait for it in a collective.
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(codes):
        raise SystemExit(f"failed: python -m {module} {' '.join(arguments)}")


def status_of(target: str, argv: list[str]) -> int:
    """Run a command in this fork and return its exit status: the frames below are its parent's."""
    status = 1
    try:
        launch.die_with_parent(signal.SIGKILL)
        # A process of its own reads this when it loads libgomp.
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        run(target, argv)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def prepare() -> None:
    """Do once what each command would do with the same outcome: no fork repeats it."""
    for module in (launch, ovlt.smoke.make):  # which has a name of its own for the function
        module.python_module = fork_module
    PIL.Image.init()
    video_processor_class_from_name("Qwen2VLVideoProcessor")  # looks through 40 modules
    # vLLM puts its CPU functions into every module that has imported a kernel. Older ones do it
    # elsewhere, by themselves.
    name = "register_triton_kernel_overrides"
    if register := getattr(current_platform, name, None):
        register()
        setattr(type(current_platform), name, staticmethod(lambda: None))
    gc.freeze()
    # vLLM unfreezes all and collects twice when it closes: one second, at the end of a process.
    gc.unfreeze = lambda: None


prepare()
request = serve()
sys.stdin.close()
redirect(os.devnull, 0)
redirect(request["stdout"], 1)
redirect(request["stderr"], 2)
os.environ.update(request["env"])
run(request["target"], request["argv"])
