"""Run by tests/system/test_runtime.py on two ranks: rank 1 comes late to everything."""

from __future__ import annotations

import time
from datetime import timedelta

from ovlt.system import env

env.apply("cpu")

import torch.distributed as dist

from ovlt.config import RunConfig
from ovlt.system import runtime as runtime_module
from ovlt.system.collectives import on_all_ranks
from ovlt.system.runtime import leave, start

LIMIT, LATE = 1.0, 2.5  # seconds

runtime_module.COLLECTIVE_LIMIT = timedelta(seconds=LIMIT)
runtime = start(RunConfig(device="cpu", timeout_hours=1 / 60))
dist.barrier()  # connects the ranks, of which one may have started later
for meet in (runtime.barrier, lambda: runtime.gather_json(1), lambda: on_all_ranks(lambda: 1)):
    if runtime.rank == 1:
        time.sleep(LATE)
    meet()
leave()
