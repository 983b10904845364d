"""``speed.py OUT.json [--layers 28] [--sequences 256]``: ms of a decoding step of 7B width.

Weights are vLLM's dummies, so texts mean nothing; times do not depend on them. ``ovlt plan``
assumes a figure (``decode_overhead``). Settings are ovlt's own (``engine_settings``).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from ovlt.system import env

env.apply(env.machine())
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import about, write_json
from settings import patch
from step_model import sized, tiny_folder
from vllm import LLM, SamplingParams

from ovlt.config import EngineConfig
from ovlt.rollout.vllm import BAN
from ovlt.rollout.vllm_settings import engine_settings

PROMPT = 300  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--write-only", type=Path, help="make the model's folder, and stop")
    words = parser.parse_args()
    home = words.write_only or Path(tempfile.mkdtemp())
    folder = tiny_folder(home)
    config = sized(folder, "7B", words.layers).config
    (folder.path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    for path in folder.path.glob("*.safetensors*"):
        path.unlink()
    if words.write_only:
        return
    engine = EngineConfig(max_sequences=words.sequences, gpu_memory=0.8)
    device = torch.device("cuda")
    settings = engine_settings(device, engine, None, max_model_len=2048)
    settings |= {"load_format": "dummy", "skip_mm_profiling": True, "enable_sleep_mode": False}
    settings |= {"max_num_batched_tokens": 8192} | patch()
    began = time.perf_counter()
    limits = {"image": 1, "video": 0}
    llm = LLM(model=str(folder.path), dtype="bfloat16", limit_mm_per_prompt=limits, **settings)
    print(f"SPEED start {time.perf_counter() - began:.0f} s", flush=True)
    prompts = [
        {"prompt_token_ids": [(7 * i + j) % 300 for j in range(PROMPT)]}
        for i in range(words.sequences)
    ]

    def seconds(count: int, **more: object) -> float:
        llm.reset_prefix_cache()
        params = [
            SamplingParams(
                temperature=1.0, seed=i, max_tokens=count, ignore_eos=True, detokenize=False, **more
            )
            for i in range(words.sequences)
        ]
        torch.cuda.synchronize()
        since = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - since

    bans = dict.fromkeys(range(151_660, 152_064), BAN)
    ways: dict[str, dict[str, object]] = {
        "as ovlt": {"logprobs": 0, "logit_bias": bans}, "no bias": {"logprobs": 0}, "bare": {},
    }  # fmt: skip
    steps: list[dict[str, object]] = []
    for what, more in ways.items():
        seconds(4, **more)
        short = seconds(4, **more)
        step = (seconds(4 + words.tokens, **more) - short) / words.tokens
        steps.append({
            "what": f"7B, {words.layers} layers, {what}", "sequences": words.sequences,
            "ms_per_step": 1e3 * step, "tokens_per_s": words.sequences / step, "prefill_s": short,
        })  # fmt: skip
        print(f"SPEED {what}: {1e3 * step:.2f} ms per step of {words.sequences}", flush=True)
        write_json(words.out, {"about": about(), "steps": steps})
    os._exit(0)  # an engine's threads may outlive it


if __name__ == "__main__":
    main()
