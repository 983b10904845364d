"""Started by tests/kernels/test_row_logp_triton.py with TRITON_INTERPRET=1, which must be set
before Triton is imported: runs the kernels on the cases of a file and saves what they gave."""

from __future__ import annotations

import sys

from safetensors.torch import load_file, save_file

from ovlt_kernels.row_logp_triton import row_grad_, row_stats

cases, results = load_file(sys.argv[1]), {}
for name in {key.split("/")[0] for key in cases}:
    case = {k.split("/")[1]: v for k, v in cases.items() if k.startswith(f"{name}/")}
    logits, target, t = case["logits"], case["target"], case["inv_temperature"]
    stats = row_stats(logits, target, t)
    results |= {f"{name}/{k}": v for k, v in zip(("logp", "entropy", "lse"), stats, strict=True)}
    results[f"{name}/grad"] = row_grad_(logits.clone(), target, stats, case["g"], case["h"], t)
save_file(results, sys.argv[2])
