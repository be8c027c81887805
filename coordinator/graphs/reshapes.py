"""Sizes of a graph's values, and reshapes that say their shape as shortly as can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import onnx_ir as ir

Size = int | str
"""A number, or the name of a size that varies."""
Dims = tuple[Size, ...]


def dims_of(value: ir.Value | None) -> Dims | None:
    """Returns the sizes of a value's axes; None where any is not known."""
    if value is None or value.shape is None:
        return None
    found = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    known = [dim for dim in found if dim is not None]
    return tuple(known) if len(known) == len(found) else None


@final
class Reshapes:
    """Makes reshapes: knows which sizes a graph can read off its inputs."""

    def __init__(self, graph: ir.Graph):
        """Looks which sizes the graph's inputs have."""
        self.graph = graph
        self._inputs = {
            dim: (value, axis)
            for value in reversed(graph.inputs)
            for axis, dim in enumerate(dims_of(value) or ())
            if isinstance(dim, str)
        }

    def can(self, source: Dims, wanted: Dims) -> bool:
        """Says whether a graph can make this reshape."""
        return self._parts(source, wanted) is not None

    def reshaped(self, value: ir.Value, wanted: Dims, before: ir.Node) -> ir.Value:
        """Returns a value in another shape that it `can` have, made before a node."""
        target = self.target(dims_of(value) or (), wanted, before)
        return self.inserted("Reshape", [value, target], wanted, before, value)

    def target(self, source: Dims, wanted: Dims, before: ir.Node) -> ir.Value:
        """Returns the input of a reshape that says its shape: a constant wherever that will do.

        Raises:
            ValueError: The reshape is not one that the graph `can` make.
        """
        parts = self._parts(source, wanted)
        if parts is None:
            raise ValueError(f"no target for a reshape from {source} to {wanted}")
        pieces: list[ir.Value] = []
        numbers: list[int] = []
        for part in parts:
            if isinstance(part, int):
                numbers.append(part)
                continue
            pieces += [self.constant(numbers, before)] if numbers else []
            pieces.append(self._size(part, before))
            numbers = []
        pieces += [self.constant(numbers, before)] if numbers else []
        if len(pieces) == 1:
            return pieces[0]
        return self.inserted("Concat", pieces, (len(wanted),), before, pieces[0], {"axis": 0})

    def inserted(
        self,
        op: str,
        inputs: Sequence[ir.Value],
        dims: Dims,
        before: ir.Node,
        like: ir.Value,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """Puts a node before another and returns its output, which has the type of `like`."""
        node = ir.node(op, inputs, attributes)
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(dims), like.type
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def constant(self, numbers: Sequence[int], before: ir.Node) -> ir.Value:
        """Returns whole numbers as a vector, made before a node."""
        tensor = ir.tensor(list(numbers), dtype=ir.DataType.INT64)
        node = ir.node("Constant", [], {"value": tensor})
        value = node.outputs[0]
        value.shape, value.type = ir.Shape([len(numbers)]), ir.TensorType(ir.DataType.INT64)
        value.const_value = tensor
        self.graph.insert_before(before, node)
        return value

    def _parts(self, source: Dims, wanted: Dims) -> list[Size] | None:
        """Returns a number or the name of a size for each axis: 0 is kept, -1, once, is worked out."""
        found: list[Size] = [
            0 if isinstance(dim, str) and axis < len(source) and source[axis] == dim else dim
            for axis, dim in enumerate(wanted)
        ]
        free = [axis for axis, dim in enumerate(found) if isinstance(dim, str)]
        unknown = [axis for axis in free if found[axis] not in self._inputs]
        if len(unknown) > 1:
            return None
        for axis in (unknown or free)[-1:]:
            found[axis] = -1
        return found

    def _size(self, dim: str, before: ir.Node) -> ir.Value:
        value, axis = self._inputs[dim]
        like = self.constant([0], before)
        return self.inserted("Shape", [value], (1,), before, like, {"start": axis, "end": axis + 1})
