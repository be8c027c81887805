"""GELU and its derivative from one erf.

Predicting, onnxruntime has GELU in one operator. Learning wants its derivative too, which torch writes out
as if the two had nothing in common. With s = x / sqrt(2) and u = 1 + erf(s) = 2 Phi(x),

    gelu(x)  = x Phi(x) = s u / sqrt(2)
    gelu'(x) = Phi(x) + x phi(x) = (u + s exp(ln(2 / sqrt(pi)) - s^2)) / 2

The numbers that are left over go to the products of matrices beside them (scales.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from onnx import ModelProto
from onnx_ir import serde
from onnx_ir.passes import common

from umbel.coordinator.graphs.scales import fold_scales
from umbel.coordinator.graphs.values import number_of

_HALF_ROOT = math.sqrt(0.5)
_LOG = math.log(2.0 / math.sqrt(math.pi))
_DENSITY = 1.0 / math.sqrt(2.0 * math.pi)


def with_shared_erf(graphs: Mapping[str, bytes]) -> dict[str, bytes]:
    """Returns graphs by name, GELU and its derivative of one erf in those that have both."""
    return {name: _with_shared_erf(data) for name, data in graphs.items()}


def _with_shared_erf(data: bytes) -> bytes:
    model = serde.deserialize_model(ModelProto.FromString(data))
    if not share_erf(model):
        return data
    proto = serde.serialize_model(model)
    del proto.graph.value_info[:]
    made: bytes = proto.SerializeToString(deterministic=True)
    return made


def share_erf(model: ir.Model) -> bool:
    """Makes GELU and its derivative of one erf wherever a graph has both, in place.

    Returns:
        Whether there was any; if not, the graph is as it was.
    """
    from onnxscript.rewriter import RewriteRule

    if not RewriteRule(_derivative, _derivative_of_erf, _has_gelu).apply_to_model(model):
        return False
    RewriteRule(_gelu, _gelu_of_erf, _has_erf).apply_to_model(model)
    common.CommonSubexpressionEliminationPass()(model)
    fold_scales(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return True


def _derivative(op: Any, x: Any, g: Any) -> Any:
    """Returns the pattern of g gelu'(x), as torch writes it."""
    twice = op.Add(op.Erf(op.Mul(x, _HALF_ROOT)), 1.0)
    density = op.Mul(op.Exp(op.Mul(op.Mul(x, x), -0.5)), _DENSITY)
    return op.Mul(g, op.Add(op.Mul(twice, 0.5), op.Mul(x, density)))


def _derivative_of_erf(op: Any, x: Any, g: Any) -> Any:
    s, u = _shared(op, x)
    bell = op.Exp(op.Sub(_constant(op, _LOG), op.Mul(s, s)))
    # Last, so that all products that read it can take the number.
    return op.Mul(op.Mul(g, op.Add(u, op.Mul(s, bell))), _constant(op, 0.5))


def _gelu(op: Any, x: Any) -> Any:
    return op.Gelu(x, _outputs=["y"])


def _gelu_of_erf(op: Any, x: Any, **_: Any) -> Any:
    return op.Mul(op.Mul(*_shared(op, x)), _constant(op, _HALF_ROOT))


def _shared(op: Any, x: Any) -> tuple[Any, Any]:
    """Returns s and u."""
    s = op.Mul(x, _constant(op, _HALF_ROOT))
    return s, op.Add(op.Erf(s), _constant(op, 1.0))


def _constant(op: Any, number: float) -> Any:
    return op.Constant(value=ir.tensor(number, dtype=ir.DataType.FLOAT))


def _has_gelu(_: Any, x: ir.Value, **__: Any) -> bool:
    return any(_is_exact(node) for node in x.consumers())


def _has_erf(_: Any, x: ir.Value, y: ir.Value) -> bool:
    own = y.producer()
    return own is not None and _is_exact(own) and any(_is_scaled(node) for node in x.consumers())


def _is_exact(node: ir.Node) -> bool:
    """Says whether a node is GELU itself, not its approximation by tanh."""
    return node.op_type == "Gelu" and node.attributes.get_string("approximate", "none") == "none"


def _is_scaled(node: ir.Node) -> bool:
    """Says whether a node makes s of x."""
    factor = number_of(node.inputs[1]) if node.op_type == "Mul" else None
    return factor is not None and math.isclose(factor, _HALF_ROOT, rel_tol=1e-6)
