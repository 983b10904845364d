"""Started by tests/model/test_delta.py, for a CPU with TRITON_INTERPRET=1, which must be set before
Triton is imported: runs the fla backend, and its statement in float64, and saves the results."""

from __future__ import annotations

import ast
import sys
from typing import Any

from triton.runtime import autotuner, interpreter


def fit_the_interpreter() -> None:
    """Two things that fla 0.6.0 asks of Triton and its interpreter lacks.

    Timing the configurations of a kernel, which needs a driver: the first is taken. And methods on
    whole numbers (``i_t.to(tl.int64)`` of a loop's variable), which are tensors when compiled.
    """
    run = autotuner.Autotuner.run

    def run_first(self: Any, *args: Any, **options: Any) -> Any:
        self.configs = self.configs[:1]
        return run(self, *args, **options)

    autotuner.Autotuner.run = run_first

    class Transformer(interpreter.ASTTransformer):
        def visit_Assign(self, node: ast.Assign) -> Any:
            node.value = self.visit(node.value)
            return super().visit_Assign(node)

        def visit_Call(self, node: ast.Call) -> Any:
            self.generic_visit(node)
            if isinstance(node.func, ast.Attribute) and node.func.attr == "to":
                semantic = ast.Name("interpreter_semantic", ast.Load())
                convert = ast.Attribute(semantic, "to_tensor", ast.Load())
                node.func.value = ast.Call(convert, [node.func.value, ast.Constant(False)], [])
            return node

    interpreter.FunctionRewriter.ast_transformer = Transformer()


fit_the_interpreter()

import torch
from helpers.delta_inputs import conv_inputs, delta_inputs, results
from helpers.segments import segments_of_groups
from safetensors.torch import save_file

from ovlt.model import delta

LAYOUTS = {"alone": [(5, []), (70, []), (1, [])], "shared": [(66, [3, 65]), (9, []), (2, [20, 2])]}


def values_of(groups: list[tuple[int, list[int]]]) -> dict[str, list[torch.Tensor]]:
    row = segments_of_groups(groups)
    options = {"segments": row, "backend": "fla"}
    inputs, cotangent = delta_inputs(row.total, (1, 2), (16, 16), torch.float32)
    values = {
        "fla/delta": results(lambda *x: delta.gated_delta(*x, **options), inputs, cotangent),
        "exact/delta": results(
            lambda *x: delta.gated_delta_reference(*x, row), inputs, cotangent, exact=True
        ),
    }
    inputs, cotangent = conv_inputs(row.total, 12, 4, torch.float32)
    return values | {
        "fla/conv": results(lambda *x: delta.causal_conv(*x, **options), inputs, cotangent),
        "exact/conv": results(
            lambda *x: delta.causal_conv_reference(*x, row), inputs, cotangent, exact=True
        ),
    }


save_file(
    {
        f"{case}/{name}/{i}": tensor.double().contiguous()
        for name, groups in LAYOUTS.items()
        for case, tensors in values_of(groups).items()
        for i, tensor in enumerate(tensors)
    },
    sys.argv[1],
)
