"""Ranks, device and seeds of one process, and how a command starts and ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ovlt.config import RunConfig
from ovlt.config.places import PACKAGE
from ovlt.system import collectives, env
from ovlt.system.launch import die_with_parent
from ovlt.system.rng import seed_everything

# A collective of the training that takes longer hangs. Uneven work is waited for elsewhere.
COLLECTIVE_LIMIT = timedelta(minutes=30)
# What torchrun would say to the only rank; MASTER_PORT comes to it.
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
OTHERS_WAIT_S = 10.0  # in which rank 0 comes to the same mistake, and torchrun ends the others


@dataclass(frozen=True)
class Runtime:
    """Where a command runs: its rank and its device. Works without torchrun too."""

    rank: int
    world_size: int
    device: torch.device
    mesh: DeviceMesh
    _alone: bool = field(default=False, repr=False)  # torchrun's variables are ours
    _topics: set[str] = field(default_factory=set[str], repr=False)  # of say_once

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line once for all ranks."""
        if self.is_main:
            print(text, flush=True)

    def say_once(self, topic: str, text: str) -> None:
        """Print a line once for all ranks, the first time that something is said on ``topic``."""
        if topic not in self._topics:
            self._topics.add(topic)
            self.say(text)

    def barrier(self) -> None:
        """Wait for all ranks, up to run.timeout_hours."""
        collectives.barrier()

    def gather_bytes(self, payload: bytes) -> list[bytes]:
        """Return every rank's payload, in rank order, on every rank. Collective."""
        return collectives.gather_bytes(payload, self.device)

    def gather_json(self, value: Any) -> list[Any]:
        """Return every rank's JSON-able value, in rank order, on every rank. Collective."""
        return collectives.gather_json(value, self.device)

    def close(self) -> None:
        """Leave the process group. The next one, or a child process, finds no rank described."""
        if dist.is_initialized():
            dist.destroy_process_group()
        if self._alone:
            for name in (*ALONE, "MASTER_PORT"):
                os.environ.pop(name, None)


def start(config: RunConfig) -> Runtime:
    """Join the process group that torchrun describes, or make one of a single rank."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent(signal.SIGKILL)  # no rank goes on writing after torchrun was killed
    alone = "RANK" not in os.environ
    if alone:
        os.environ.update(ALONE)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    device = choose_device(config, int(os.environ.get("LOCAL_RANK", "0")))
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if alone:  # without a port: one that is free now may be another process's in a moment
        store = dist.HashStore()
        dist.init_process_group(
            backend, timeout=COLLECTIVE_LIMIT, store=store, rank=0, world_size=1
        )
    else:
        dist.init_process_group(backend, timeout=COLLECTIVE_LIMIT)
    collectives.open_waiting_group(timedelta(hours=config.timeout_hours))
    world_size = dist.get_world_size()
    mesh = init_device_mesh(device.type, (world_size,), mesh_dim_names=("dp",))
    seed_everything(config.seed + 7919 * dist.get_rank())  # a prime: seeds of runs do not meet
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return Runtime(dist.get_rank(), world_size, device, mesh, alone)


def choose_device(config: RunConfig, local_rank: int) -> torch.device:
    """Return the device of a rank. Raises ValueError if there is a GPU that torch cannot use."""
    if config.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local_rank >= count:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise ValueError(
                f"rank {local_rank} of this machine has no GPU: torch sees {count} "
                f"(CUDA_VISIBLE_DEVICES={visible}); start at most {count} ranks here"
            )
        return torch.device("cuda", local_rank)
    if config.device == "cuda" or env.machine() == "cuda":
        raise ValueError(
            f"torch {torch.__version__} sees no CUDA device ({why_no_cuda()}); nvidia-smi lists "
            f"{len(env.gpus())}. run.device='cpu' runs without a GPU"
        )
    return torch.device("cpu")


def why_no_cuda() -> str:
    """Return torch's own reason, such as a driver that is older than its CUDA."""
    if torch.version.cuda is None:
        return "this torch is built for CPUs: make install KIND=gpu"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"it is built for CUDA {torch.version.cuda}: {error}"
    return f"it is built for CUDA {torch.version.cuda}"


@contextlib.contextmanager
def running(command: str, config: RunConfig) -> Iterator[Runtime]:
    """Yield the Runtime of a command. A user's mistake or a full disk ends it with one sentence."""
    try:
        runtime = start(config)
        try:
            yield runtime
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to be seen
                runtime.close()
            raise
        runtime.close()
    except Exception as error:
        if not (text := sentence_of(error)):
            raise
        if int(os.environ.get("RANK", "0")) > 0:
            # Most mistakes are seen by every rank, and rank 0 has said this one: torchrun ends the
            # others meanwhile.
            time.sleep(OTHERS_WAIT_S)
        raise SystemExit(f"ovlt {command}: {text}") from None


def sentence_of(error: Exception) -> str:
    """Return what to tell the user about an error; empty if it is a fault of ovlt's own.

    A mistake of the user (ValueError), an error of the file system, a lack of memory, or a
    RuntimeError that ovlt itself raises to stop a run which would go wrong.
    """
    if "No space left on device" in str(error):  # pyarrow and safetensors raise errors of their own
        return (
            f"{error}: make room and start the same command again (`ovlt sft` and `ovlt grpo` "
            "with --resume auto); what is finished stays"
        )
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return (
            f"{str(error).partition('. ')[0] or 'out of memory'}: lower token_budget, "
            "engine.gpu_memory or max_pixels, or set model.activation_checkpointing; `ovlt plan` "
            "says what needs how much"
        )
    if isinstance(error, RuntimeError):
        frames = traceback.extract_tb(error.__traceback__)
        ours = bool(frames) and Path(frames[-1].filename).is_relative_to(PACKAGE)
        return str(error) if type(error) is RuntimeError and ours else ""
    return str(error) if isinstance(error, ValueError | OSError) else ""


def leave() -> NoReturn:
    """End a process that has used gloo, with status 0 and without Python's finalisation.

    A thread of gloo may still hold the last reference to a collective and so to its tensors. Python
    3.11 ends a thread that asks for the interpreter while that is being finalised, and this end
    cannot pass gloo's frames: the process is aborted ("terminate called without an active
    exception"; two of eight runs of two ranks on a busy machine), though all its work is done.
    The group's own destructor would wait for the threads, but models and meshes keep it alive.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def compute_dtype(name: str, device: torch.device, hidden: int) -> torch.dtype:
    """Return the dtype of that name; 'auto' is bfloat16 if the hardware gains from it.

    On a CPU that needs AVX-512 BF16 or AMX *and* matrices of some size: on two cores of a Zen 5,
    products with a hidden size of 128 ran slower in bfloat16 than in float32 (bench/NOTES.md).
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16
    capable = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if capable and hidden >= 256 else torch.float32
