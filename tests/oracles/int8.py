"""A linear layer in 8 bits, there and back, number by number: the equations of graphs/quantized.py."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """Returns y (tokens, out) of x (tokens, in), W (out, in) and b (out,)."""
    steps, levels = _matrix(weight)
    rows = [
        [
            np.float32(total) * step * scale + offset
            for total, step, offset in zip(totals, steps, bias, strict=True)
        ]
        for scale, totals in (_row(token, levels) for token in x)
    ]
    return np.array(rows, np.float32).reshape(len(x), len(weight))


def back(g: Array, weight: Array) -> Array:
    """Returns the gradient (tokens, in) by x, of the gradient g (tokens, out) by y."""
    steps, levels = _matrix(weight)
    turned = [list(column) for column in zip(*levels, strict=True)]
    rows = [
        [np.float32(total) * scale for total in totals]
        for scale, totals in (_row(token * np.array(steps, np.float32), turned) for token in g)
    ]
    return np.array(rows, np.float32).reshape(len(g), weight.shape[1])


def _matrix(weight: Array) -> tuple[list[np.float32], list[list[int]]]:
    steps = [np.float32(np.abs(row).max() / np.float32(64)) or np.float32(1) for row in weight]
    levels = [
        [int(np.clip(np.rint(value / step), -64, 64)) for value in row]
        for row, step in zip(weight, steps, strict=True)
    ]
    return steps, levels


def _row(token: Array, levels: list[list[int]]) -> tuple[np.float32, list[int]]:
    # Scales and quotients are float32, as in the graph: a tie that is rounded otherwise is another integer.
    scale = np.float32(max(float(np.abs(token).max()), 1e-30)) * np.float32(1 / 127)
    whole = [int(np.rint(value / scale)) for value in token.astype(np.float32)]
    return scale, [sum(a * b for a, b in zip(whole, row, strict=True)) for row in levels]
