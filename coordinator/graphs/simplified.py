"""Makes an exported graph small: much of what the exporter writes computes nothing.

Well-kept passes of onnx_ir and onnxscript fold constants and leave out what does nothing, is there twice or
is not used. Left are reshapes: torch flattens tokens before each product and folds them back after it. Here

- what works row by row is done on flat rows (tokens, d), so that most reshapes meet and cancel;
- products of attention are done on (batch, heads, n, d);
- transposes that undo each other are left out, those of weights included.

Numbers are computed as before, and the parity gate compares what they are with torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from umbel.coordinator.graphs.columns import by_columns
from umbel.coordinator.graphs.norms import shorten_norms
from umbel.coordinator.graphs.reshapes import Dims, Reshapes, Size, dims_of
from umbel.coordinator.graphs.values import permutation_of, source_of

_ELEMENTWISE = (
    *("Abs", "Add", "Cast", "Div", "Erf", "Exp", "Gelu", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Relu"),
    *("Sigmoid", "Sqrt", "Sub", "Tanh", "Where"),
)
_BY_AXIS = {"Concat": None, "LayerNormalization": -1, "Softmax": -1, "Split": 0}
"""What works row by row where its axis is the last: name -> axis where none is given."""
_REDUCING = ("ReduceMean", "ReduceSum")
_SWAPPED = ([0, 2, 1], [0, 1, 3, 2])
_MOST_PASSES = 16

Rule = Callable[[ir.Node, Reshapes], bool]


def simplify(model: ir.Model) -> None:
    """Makes a model smaller in place; its inputs, outputs and weights stay as they are."""
    _clean(model)
    reshapes = Reshapes(model.graph)
    for _ in range(_MOST_PASSES):
        changed = [rule(node, reshapes) for node in list(model.graph) for rule in _RULES if _is_used(node)]
        common.RemoveUnusedNodesPass()(model)
        if not any(changed):
            break
    by_columns(model.graph)
    for node in list(model.graph):
        _one_reshape(node, reshapes)
    shorten_norms(model)
    for node in list(model.graph):
        _say_shape_shortly(node, reshapes)
    _clean(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _clean(model: ir.Model) -> None:
    """Leaves out what is constant, does nothing, is there twice or is not used; folds no weight."""
    from onnxscript.optimizer import fold_constants_ir

    weights = set(model.graph.initializers)

    def should_fold(node: ir.Node) -> bool | None:
        return False if any(value is not None and value.name in weights for value in node.inputs) else None

    fold_constants_ir(model, onnx_shape_inference=False, should_fold=should_fold)
    for each in (
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        each(model)


def _one_reshape(node: ir.Node, reshapes: Reshapes) -> bool:
    """Reshape(Reshape(x)) is one reshape; one to the shape that x has is none."""
    wanted = dims_of(node.outputs[0])
    if node.op_type != "Reshape" or wanted is None:
        return False
    if dims_of(node.inputs[0]) == wanted:
        return _replace(node.outputs[0], node.inputs[0])
    first = source_of(node.inputs[0], "Reshape")
    source = dims_of(first)
    if first is None or source is None or not reshapes.can(source, wanted):
        return False
    return _replace(node.outputs[0], reshapes.reshaped(first, wanted, node))


def _no_transposes(node: ir.Node, _: Reshapes) -> bool:
    """Transpose(Transpose(x)) is x where the second undoes the first."""
    first = source_of(node.inputs[0], "Transpose") if node.op_type == "Transpose" else None
    if first is None:
        return False
    inner = permutation_of(node.inputs[0])
    undone = [inner[axis] for axis in permutation_of(node.outputs[0])] == sorted(inner)
    return undone and _replace(node.outputs[0], first)


def _transposed_product(node: ir.Node, reshapes: Reshapes) -> bool:
    """(A^T B)^T = B^T A: onnxruntime transposes what a product reads as it reads it, not what it gives."""
    given = node.inputs[0] if node.op_type == "Transpose" else None
    product = None if given is None or len(given.uses()) != 1 else given.producer()
    if product is None or product.op_type != "MatMul":
        return False
    left, right = product.inputs
    first, dims, turned = source_of(left, "Transpose"), dims_of(right), permutation_of(node.outputs[0])
    if (
        first is None
        or right is None
        or dims is None
        or turned not in _SWAPPED
        or permutation_of(left) != turned
    ):
        return False
    if len(dims) != len(turned):
        return False
    swapped = (*dims[:-2], dims[-1], dims[-2])
    other = reshapes.inserted("Transpose", [right], swapped, node, right, {"perm": turned})
    wanted = dims_of(node.outputs[0]) or ()
    return _replace(node.outputs[0], reshapes.inserted("MatMul", [other, first], wanted, node, right))


def _flat_rows(node: ir.Node, reshapes: Reshapes) -> bool:
    """f(x, y) on (batch, seq, d) is unflatten(f(flatten(x), flatten(y))) for f that works row by row.

    Done where an input is flat rows unflattened, or where whatever reads f flattens it.
    """
    if not _works_by_row(node) or any(value.is_graph_output() for value in node.outputs):
        return False
    wanted = [dims_of(value) or () for value in node.outputs if value.uses()]
    lead = wanted[0][:-1]
    rows = _rows_of_inputs(node, lead) or _rows_of_readers(node)
    if rows is None or len(lead) < 2:
        return False
    if not all(dims[:-1] == lead and reshapes.can((rows, dims[-1]), dims) for dims in wanted):
        return False
    flat = [_flattened(value, lead, rows, node, reshapes) for value in node.inputs]
    if any(value is None and given is not None for value, given in zip(flat, node.inputs, strict=True)):
        return False
    made = ir.node(node.op_type, flat, _of_last_axis(node), num_outputs=len(node.outputs))
    if node.op_type in _REDUCING:
        made.replace_input_with(1, reshapes.constant([-1], node))
    reshapes.graph.insert_before(node, made)
    for value, old in zip(made.outputs, node.outputs, strict=True):
        dims = dims_of(old)
        if dims is not None and old.uses():
            value.shape, value.type = ir.Shape((rows, dims[-1])), old.type
            _replace(old, reshapes.reshaped(value, dims, node))
    return True


def _flattened(
    value: ir.Value | None, lead: Dims, rows: Size, node: ir.Node, reshapes: Reshapes
) -> ir.Value | None:
    """Returns (*lead, d) as (rows, d), and what is the same for all rows as it is; None for all else."""
    dims = dims_of(value)
    if value is None or dims is None:
        return None
    if len(dims) <= 1:
        return value
    return reshapes.reshaped(value, (rows, dims[-1]), node) if dims[:-1] == lead else None


def _rows_of_inputs(node: ir.Node, lead: Dims) -> Size | None:
    """Returns how many rows x has, where an input is x (rows, d), unflattened to (*lead, d)."""
    for value in node.inputs:
        flat, dims = dims_of(source_of(value, "Reshape")), dims_of(value)
        if flat and dims and len(flat) == 2 and (*lead, flat[-1]) == dims:
            return flat[0]
    return None


def _rows_of_readers(node: ir.Node) -> Size | None:
    """Returns how many rows they make of a node's outputs, where all that read these flatten them."""
    found: set[Size | None] = set()
    for value in node.outputs:
        dims = dims_of(value)
        for reader in value.consumers():
            flat = dims_of(reader.outputs[0]) if reader.op_type == "Reshape" else None
            found.add(flat[0] if flat and dims and len(flat) == 2 and flat[-1] == dims[-1] else None)
    return found.pop() if len(found) == 1 else None


def _works_by_row(node: ir.Node) -> bool:
    """Says whether a row of the output depends on the same row of the inputs alone."""
    if node.op_type in _ELEMENTWISE:
        return True
    dims = dims_of(node.inputs[0]) if node.inputs else None
    if not dims:
        return False
    if node.op_type in _BY_AXIS:
        axis = node.attributes.get_int("axis", _BY_AXIS[node.op_type])
        return axis in (-1, len(dims) - 1)
    if node.op_type not in _REDUCING or len(node.inputs) < 2 or node.attributes.get_int("keepdims", 1) != 1:
        return False
    axes = node.inputs[1].const_value if node.inputs[1] is not None else None
    return axes is not None and axes.numpy().tolist() in ([-1], [len(dims) - 1])


def _of_last_axis(node: ir.Node) -> dict[str, Any]:
    """Returns a node's attributes, the axis, if it has one, counted from the end."""
    found: dict[str, Any] = dict(node.attributes)
    return {**found, "axis": -1} if "axis" in found or node.op_type in _BY_AXIS else found


def _by_head(node: ir.Node, reshapes: Reshapes) -> bool:
    """A product, or a transpose, of (batch * heads, n, d) is one of (batch, heads, n, d)."""
    wanted = dims_of(node.outputs[0])
    if node.op_type not in ("MatMul", "Transpose") or wanted is None or len(wanted) != 3:
        return False
    if node.op_type == "Transpose" and permutation_of(node.outputs[0]) != _SWAPPED[0]:
        return False
    inner = [source for value in node.inputs if (source := _heads(value)) is not None]
    leads = {dims[:2] for source in inner if (dims := dims_of(source)) is not None}
    if len(inner) != len(node.inputs) or len(leads) != 1:
        return False
    whole = (*leads.pop(), *wanted[1:])
    if not reshapes.can(whole, wanted):
        return False
    attributes = {"perm": _SWAPPED[1]} if node.op_type == "Transpose" else {}
    made = reshapes.inserted(node.op_type, inner, whole, node, node.outputs[0], attributes)
    return _replace(node.outputs[0], reshapes.reshaped(made, wanted, node))


def _heads(value: ir.Value | None) -> ir.Value | None:
    """Returns x (batch, heads, n, d) where a value is x as (batch * heads, n, d)."""
    source = source_of(value, "Reshape")
    whole, flat = dims_of(source), dims_of(value)
    if whole is None or flat is None or len(whole) != 4 or len(flat) != 3 or whole[2:] != flat[1:]:
        return None
    return source


def _say_shape_shortly(node: ir.Node, reshapes: Reshapes) -> None:
    """Gives a reshape the shortest target: most are constants then, all others the same few."""
    source, wanted = dims_of(node.inputs[0]) if node.inputs else None, dims_of(node.outputs[0])
    if node.op_type != "Reshape" or source is None or wanted is None or not reshapes.can(source, wanted):
        return
    node.replace_input_with(1, reshapes.target(source, wanted, node))
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _is_used(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)


def _replace(old: ir.Value, new: ir.Value | None) -> bool:
    """Lets everything that reads a value read another one, unless the graph gives the old one away."""
    if new is None or old.is_graph_output():
        return False
    old.replace_all_uses_with(new)
    return True


_RULES: tuple[Rule, ...] = (_one_reshape, _no_transposes, _transposed_product, _flat_rows, _by_head)
