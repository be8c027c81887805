"""The derivative of layer normalisation in fewer passes over memory.

With c = x - mean, r = 1 / sqrt(var + epsilon), and h the gradient times the weight, torch writes for each
row of d values

    dx = r / d (d h - sum h - c r sum(h c r))

This is the same, with the multiplication by d left out, and r where there is one number per row:

    dx = r (h - c (r^2 mean(h c)) - mean h)
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from umbel.coordinator.graphs.reshapes import dims_of
from umbel.coordinator.graphs.values import number_of


def shorten_norms(model: ir.Model) -> None:
    """Writes the derivatives of layer normalisation shortly, in place."""
    from onnxscript.rewriter import RewriteRule

    # What others read too, such as a weight's gradient, is kept: nodes that nobody reads are left out later.
    RewriteRule(_as_torch_writes_it, _shortly, _is_by_row, remove_nodes=False).apply_to_model(model)


def _as_torch_writes_it(
    op: Any, x: Any, mean: Any, r: Any, h: Any, d: Any, axis: Any, e: Any, last: Any
) -> Any:
    """Returns the pattern of dx; d and e, axis and last are the same number each."""
    normal = op.Mul(op.Sub(x, mean), r)
    across = op.ReduceSum(op.Mul(h, normal), axis, keepdims=1)
    plain = op.Sub(op.Mul(h, d), op.ReduceSum(h, last, keepdims=1))
    return op.Mul(op.Div(r, e), op.Sub(plain, op.Mul(normal, across)))


def _is_by_row(_: Any, h: ir.Value, **numbers: ir.Value) -> bool:
    width = (dims_of(h) or (None,))[-1]
    wanted = {"d": width, "e": width, "axis": -1, "last": -1}
    return all(number_of(numbers[name]) == number for name, number in wanted.items())


def _shortly(op: Any, x: Any, mean: Any, r: Any, h: Any, axis: Any, **_: Any) -> Any:
    c = op.Sub(x, mean)
    across = op.Mul(op.Mul(r, r), op.ReduceMean(op.Mul(h, c), axis, keepdims=1))
    centred = op.Sub(op.Sub(h, op.Mul(c, across)), op.ReduceMean(h, axis, keepdims=1))
    return op.Mul(r, centred)
