"""A linear layer in 8 bits, number by number, in the order of coordinator/graphs/quantized.py's equations."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """Returns y (tokens, out) of x (tokens, in), W (out, in) and b (out,)."""
    rows = [_row(token, weight, bias) for token in x]
    return np.array(rows, np.float32).reshape(len(x), len(weight))


def _row(token: Array, weight: Array, bias: Array) -> list[np.float32]:
    # Scales and quotients are float32, as in the graph: a tie that is rounded otherwise is another integer.
    scale = np.float32(max(float(np.abs(token).max()), 1e-9)) * np.float32(1 / 127)
    whole = [int(np.rint(value / scale)) for value in token.astype(np.float32)]
    found = []
    for row, offset in zip(weight, bias, strict=True):
        step = np.float32(np.abs(row).max() / np.float32(64)) or np.float32(1)
        levels = [int(np.clip(np.rint(value / step), -64, 64)) for value in row]
        total = sum(a * b for a, b in zip(whole, levels, strict=True))
        found.append(np.float32(total) * step * scale + offset)
    return found
