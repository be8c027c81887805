"""Attention by columns: what a head reads and gives is kept as (d, seq), not as (seq, d).

A model holds the states of all heads side by side, (batch, seq, heads * d), and products want them by head.
onnxruntime makes (batch, heads, seq, d) of them a short row at a time; (batch, heads * d, seq), in which each
head's (d, seq) lies by itself, is one transposition of a matrix and takes a quarter of the time. Products
read transposed matrices as they are: with the columns q, k, v and g of Q, K, V and G = dL/d(P V),

    Q K^T = q^T k    (P V)^T = v P^T    and on the way back
    G V^T = g^T v    (P^T G)^T = g P    (dS K)^T = k dS^T    (dS^T Q)^T = q dS
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import onnx_ir as ir

from umbel.coordinator.graphs.reshapes import Dims, Reshapes, dims_of
from umbel.coordinator.graphs.values import permutation_of, source_of

_BY_HEAD = [0, 2, 1, 3]
_TURNED = [0, 1, 3, 2]
_FLAT_TURNED = [0, 2, 1]


def by_columns(graph: ir.Graph) -> None:
    """Lets the products of attention read and give columns, in place; what they compute stays as it is."""
    reshapes = Reshapes(graph)
    for node in list(graph):
        dims = dims_of(node.outputs[0])
        if node.op_type == "MatMul" and dims is not None and len(dims) == 4:
            _Product(node, dims, reshapes).rewrite()


@final
@dataclass(frozen=True, slots=True)
class _Product:
    """A product of matrices (batch, heads, m, n).

    Attributes:
        node: Its node.
        dims: Sizes of what it gives.
        reshapes: Of its graph.
    """

    node: ir.Node
    dims: Dims
    reshapes: Reshapes

    def rewrite(self) -> None:
        """Makes the product of columns, where it reads or gives any."""
        given = self.node.outputs[0]
        rows = [reader.outputs[0] for reader in given.consumers()]
        if any(value.is_graph_output() for value in (given, *rows)):
            return
        if not rows or any(permutation_of(value) != _BY_HEAD for value in rows):
            if any(_rows_of(value) is not None for value in self.node.inputs):
                given.replace_all_uses_with(self._of_columns(self.dims))
            return
        batch, heads, length, width = self.dims
        if isinstance(heads, int) and isinstance(width, int):
            columns = self._of_columns((batch, heads, width, length), turned=True)
            flat = self._reshaped(columns, (batch, heads * width, length))
            whole = self._transposed(flat, _FLAT_TURNED)
            for value in rows:
                value.replace_all_uses_with(self._reshaped(whole, (batch, length, heads, width)))

    def _of_columns(self, dims: Dims, *, turned: bool = False) -> ir.Value:
        """Returns the product of what is cheap to read; with `turned` its transpose, B^T A^T."""
        left, right = (self._read(value, turned) for value in self.node.inputs)
        factors = [right, left] if turned else [left, right]
        return self.reshapes.inserted("MatMul", factors, dims, self.node, self.node.outputs[0])

    def _read(self, value: ir.Value | None, turned: bool) -> ir.Value:
        """Returns a factor, or its transpose: made of columns where it is a head's rows."""
        assert value is not None
        if permutation_of(value) == _TURNED:
            source = source_of(value, "Transpose")
            assert source is not None
            value, turned = source, not turned
        rows = _rows_of(value)
        if rows is not None:
            value, turned = self._columns(rows), not turned
        return self._transposed(value, _TURNED) if turned else value

    def _columns(self, rows: ir.Value) -> ir.Value:
        """Returns (batch, seq, heads, d) as (batch, heads, d, seq)."""
        batch, length, heads, width = dims_of(rows) or ()
        flat = self._reshaped(rows, (batch, length, int(heads) * int(width)))
        return self._reshaped(self._transposed(flat, _FLAT_TURNED), (batch, heads, width, length))

    def _reshaped(self, value: ir.Value, wanted: Dims) -> ir.Value:
        return self.reshapes.reshaped(value, wanted, self.node)

    def _transposed(self, value: ir.Value, order: list[int]) -> ir.Value:
        dims = dims_of(value) or ()
        turned = tuple(dims[axis] for axis in order)
        return self.reshapes.inserted("Transpose", [value], turned, self.node, value, {"perm": order})


def _rows_of(value: ir.Value | None) -> ir.Value | None:
    """Returns x (batch, seq, heads, d) where a value is x by head; None for all else."""
    rows = source_of(value, "Transpose") if permutation_of(value) == _BY_HEAD else None
    dims = dims_of(rows)
    if dims is None or not all(isinstance(dim, int) for dim in dims[2:]):
        return None
    return rows
