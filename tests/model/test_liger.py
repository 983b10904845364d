"""Liger's operations in a tiny model against transformers' own modules: interpreted on a CPU, and
compiled where there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.tiny import tiny_folder
from safetensors.torch import load_file
from torch import Tensor, nn

from ovlt.config import ModelConfig
from ovlt.model import liger
from ovlt.model.families import family_named
from ovlt.model.packed_model import empty_model

pytestmark = pytest.mark.slow

FAMILY = family_named("qwen2_5_vl")
ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CASES = ["liger/decoder", "liger/tower", "checkpointed/decoder", "liger/whole"]


class Run(NamedTuple):
    device: str
    family: str
    values: dict[str, Tensor]
    facts: dict[str, Any]


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
CHANGED = {
    # Two layers with two norms each, two blocks with two, the final norm and the merger's.
    "qwen2_5_vl": {
        "Qwen2_5_VLRMSNorm": 10,
        "Qwen2MLP": 2,
        "Qwen2_5_VLMLP": 2,
        "Qwen2_5_VLAttention": 2,
    },
    # Two layers with four norms each, and the final norm; the tower has LayerNorm and GELU.
    "qwen3_vl": {"Qwen3VLTextRMSNorm": 9, "Qwen3VLTextMLP": 2, "Qwen3VLTextAttention": 2},
    # A recurrent layer, whose own norm is not Liger's, and a full one with norms of its heads.
    "qwen3_5": {"Qwen3_5RMSNorm": 7, "Qwen3_5MLP": 2, "Qwen3_5Attention": 1},
}


@pytest.fixture(scope="module", params=[(f, d) for f in CHANGED for d in DEVICES], ids=str)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    pytest.importorskip("liger_kernel")  # requirements/common.txt has it
    home = tmp_path_factory.mktemp("liger")
    family, device = request.param
    tiny_folder(home / "model", family=family)
    environment = {
        "PYTHONPATH": os.pathsep.join(str(p) for p in (ROOT, ROOT / "kernels", ROOT / "tests")),
        "OMP_NUM_THREADS": "1",
    }
    if device == "cpu":
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    worker = ROOT / "tests" / "workers" / "liger_worker.py"
    done = subprocess.run(
        [sys.executable, worker, home / "model", home, device],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads((home / "facts.json").read_text())
    return Run(device, family, load_file(home / "values.safetensors"), facts)


@pytest.mark.parametrize(
    "case", ["liger/decoder", "liger/tower", "checkpointed/decoder", "liger/whole"]
)
def test_output_and_gradients_equal_transformers(case: str, run: Run) -> None:
    """In float32 to 1e-5; "checkpointed" recomputes the layer in backward, "whole" is sharded."""
    values = run.values
    plain = f"plain/{case.split('/')[1]}/"
    names = [name.removeprefix(plain) for name in values if name.startswith(plain)]
    assert len(names) > 10
    assert any("norm" in name for name in names)
    assert {f"{case}/{name}" for name in names} == {n for n in values if n.startswith(f"{case}/")}
    for name in names:
        want = values[plain + name]
        if not ("visual" in name and case.endswith("whole")):  # its dummy image counts for nothing
            assert want.abs().max() > 1e-3, name
        difference = (values[f"{case}/{name}"] - want).abs().max()
        assert difference <= 1e-5 * max(1.0, float(want.abs().max())), (name, float(difference))


def test_numbers_are_rounded_where_transformers_rounds_them(run: Run) -> None:
    """float16, bitwise but for a few: a rounding left out or added would change a fifth of them.

    A GPU joins products and sums, so there it is two units of the last place of the largest.
    """
    for name in ("norm", "mlp", "q", "k"):
        plain, ours = (run.values[f"{which}/half/{name}"] for which in ("plain", "liger"))
        assert ours.dtype == torch.float16
        if run.device == "cpu":
            assert (ours == plain).double().mean() > 0.97, name
        assert (ours - plain).abs().max() <= 2**-9 * plain.abs().max(), name


def test_checkpointing_runs_the_layer_again(run: Run) -> None:
    facts = run.facts
    assert facts["plain/calls"] == facts["liger/calls"] == 1
    assert facts["checkpointed/calls"] == 2


def test_it_was_liger_that_computed(run: Run) -> None:
    facts = run.facts
    three = ["LigerRMSNormFunctionBackward", "LigerRopeFunctionBackward"]
    three.append("LigerSiLUMulFunctionBackward")
    assert facts["liger/decoder"] == facts["checkpointed/decoder"] == three
    assert facts["liger/whole"] == three
    assert facts["plain/whole"] == []
    in_tower = [three[0], three[2]] if run.family == "qwen2_5_vl" else []
    assert facts["liger/tower"] == in_tower
    assert facts["plain/decoder"] == facts["plain/tower"] == []


def test_every_module_is_changed_and_other_models_are_not(run: Run) -> None:
    assert run.facts["changed"] == CHANGED[run.family]
    assert run.facts["untouched"]


def test_transformers_own_rotation_stays_where_it_was() -> None:
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as theirs

    own, method = theirs.apply_rotary_pos_emb, theirs.Qwen2_5_VLAttention.forward
    liger.apply(nn.Module(), FAMILY)
    assert theirs.apply_rotary_pos_emb is own
    assert theirs.Qwen2_5_VLAttention.forward is method


def test_another_activation_is_refused(tmp_path: Path) -> None:
    model: Any = empty_model(tiny_folder(tmp_path / "m").config)
    model.model.language_model.layers[1].mlp.act_fn = nn.GELU()
    with pytest.raises(RuntimeError, match=r"GELU.*model\.liger='off'"):
        liger.apply(model, FAMILY)


def test_an_unknown_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as theirs

    monkeypatch.setattr(theirs.Qwen2_5_VLAttention, "forward", lambda self, x: x)
    with pytest.raises(RuntimeError, match=r"apply_rotary_pos_emb.*model\.liger='off'"):
        liger.apply(nn.Module(), FAMILY)


def test_auto_is_cuda_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ModelConfig().liger == "auto"
    monkeypatch.setattr(liger.importlib.util, "find_spec", lambda name: object())
    assert liger.should_apply("auto", CUDA)
    assert liger.should_apply("on", CUDA)
    assert not liger.should_apply("off", CUDA)
    assert not liger.should_apply("auto", CPU)
    with pytest.raises(ValueError, match="on CUDA and the model is on cpu: use 'auto'"):
        liger.should_apply("on", CPU)
    monkeypatch.setattr(liger.importlib.util, "find_spec", lambda name: None)
    assert not liger.should_apply("auto", CUDA)
    with pytest.raises(ValueError, match="liger-kernel is not installed"):
        liger.should_apply("on", CUDA)
