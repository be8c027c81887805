"""Where the values of a graph come from."""

from __future__ import annotations

import onnx_ir as ir


def source_of(value: ir.Value | None, op: str) -> ir.Value | None:
    """Returns what a node of this kind makes a value of (its first input); None if another makes it."""
    node = made_by(value, op)
    return None if node is None else node.inputs[0]


def made_by(value: ir.Value | None, op: str) -> ir.Node | None:
    """Returns the node that makes a value, where it is of this kind."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op else None


def permutation_of(value: ir.Value | None) -> list[int]:
    """Returns the order of axes of the transpose that makes a value; [] if none does."""
    node = made_by(value, "Transpose")
    return [] if node is None else list(node.attributes["perm"].as_ints())


def number_of(value: ir.Value | None) -> float | None:
    """Returns the one number that a graph holds as a value; None for all else."""
    held = None if value is None else value.const_value
    return float(held.numpy().item()) if held is not None and held.size == 1 else None
