"""Numbers beside a Gemm become its own: k (A B + c) is one Gemm, as (k A) B + c is.

onnxruntime scales what a product gives as it writes it, which takes no time; before or afterwards it takes
another pass over memory. It does the same by itself for a MatMul, but not for a Gemm.
"""

from __future__ import annotations

import onnx_ir as ir

from umbel.coordinator.graphs.values import made_by, number_of


def fold_scales(graph: ir.Graph) -> None:
    """Gives the numbers beside each Gemm to it, in place."""
    for node in list(graph):
        factor = number_of(node.inputs[1]) if node.op_type == "Mul" else None
        if factor is None or node.outputs[0].is_graph_output():
            continue
        if not _gave_to_its_maker(node, factor):
            _give_to_its_readers(node, factor)


def _gave_to_its_maker(node: ir.Node, factor: float) -> bool:
    """Makes k (A B + c) of A B + c, where nothing else reads it."""
    value = node.inputs[0]
    gemm = made_by(value, "Gemm")
    if gemm is None or value is None or len(value.uses()) != 1 or value.is_graph_output():
        return False
    if len(gemm.inputs) == 3:
        scaled = ir.node("Mul", [gemm.inputs[2], node.inputs[1]])
        gemm.prepend(scaled)
        gemm.replace_input_with(2, scaled.outputs[0])
    _scale(gemm, factor)
    node.outputs[0].replace_all_uses_with(value)
    return True


def _give_to_its_readers(node: ir.Node, factor: float) -> None:
    """Makes (k A) B + c of A B + c, for all that are such products; others read k A as before."""
    for use in list(node.outputs[0].uses()):
        if use.idx == 0 and use.node.op_type == "Gemm":
            use.node.replace_input_with(0, node.inputs[0])
            _scale(use.node, factor)


def _scale(gemm: ir.Node, factor: float) -> None:
    alpha = gemm.attributes.get_float("alpha", 1.0) * factor
    gemm.attributes["alpha"] = ir.AttrFloat32("alpha", alpha)
