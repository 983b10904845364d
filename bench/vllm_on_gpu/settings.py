"""``settings.py MODULE [ARGUMENTS]``: run a command of ovlt with other settings of vLLM.

OVLT_VLLM holds them as JSON, for instance ``{"enforce_eager": true}``; they are put over ovlt's own
table. So a way around a failure can be tried on a GPU machine without a change of code:

    OVLT_VLLM='{"enforce_eager": true}' torchrun --standalone --nproc-per-node 1 \\
        bench/vllm_on_gpu/settings.py ovlt.grpo recipe.toml

What [engine] has keys for (eager, attention_backend, runner) needs none of this.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import Any

from ovlt.rollout import open as opening


def patch() -> dict[str, Any]:
    """Let engines open with the settings of OVLT_VLLM, and return these."""
    more: dict[str, Any] = json.loads(os.environ.get("OVLT_VLLM") or "{}")
    if not more:
        return {}
    table = opening.engine_settings
    opening.engine_settings = lambda *words, **named: table(*words, **named) | more
    if more.get("enable_sleep_mode") is False:  # then the engine stays awake
        from ovlt.rollout.vllm import VllmEngine

        VllmEngine.sleep = VllmEngine.wake = lambda self: None
    return more


if __name__ == "__main__":
    print("vLLM's settings over ovlt's:", patch(), flush=True)
    module, sys.argv = sys.argv[1], sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
