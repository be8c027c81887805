"""Changes for the tests of the rules: a few tensors with known values."""

from collections.abc import Iterable, Sequence

import numpy as np

from umbel.coordinator.federation.aggregation.base import AbstractRule
from umbel.shared.messages import Contribution
from umbel.shared.profile import FloatArray

SHAPES = {"matrix": (2, 2), "vector": (3,), "empty": (0,)}
SIZE = 7


def change_from(row: Sequence[float]) -> dict[str, FloatArray]:
    """Returns SIZE values as tensors."""
    values = np.array(row, np.float32)
    return {"matrix": values[:4].reshape(2, 2), "vector": values[4:], "empty": np.zeros(0, np.float32)}


def row_of(change: dict[str, FloatArray]) -> list[float]:
    """Returns tensors as SIZE values."""
    assert {name: values.shape for name, values in change.items()} == SHAPES
    assert {values.dtype for values in change.values()} == {np.dtype(np.float32)}
    return [float(x) for name in ("matrix", "vector") for x in change[name].ravel()]


def outcome(
    rule: AbstractRule, rows: Sequence[Sequence[float]], order: Iterable[int], examples: Sequence[int] = ()
) -> list[float]:
    """Returns what a rule makes of rows that arrive in an order; row i is device i's."""
    rule.begin(SHAPES)
    for device in order:
        count = examples[device] if examples else 1
        rule.add(device, Contribution("r", 1, change_from(rows[device]), count, 0.0))
    return row_of(rule.finish())
