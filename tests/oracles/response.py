"""What a start by responses is made of, the slow way: differences for derivatives, judgement by judgement."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def responses_oracle(logits: Callable[[Matrix], Matrix], width: int, step: float) -> npt.NDArray[np.float64]:
    """Returns (labels, d): how centred logits change per unit of a move (d,), by central differences."""
    columns = []
    for place in range(width):
        move = np.zeros(width)
        move[place] = step
        columns.append((logits(move) - logits(-move)) / (2 * step))
    found = np.stack(columns, 1)
    return np.asarray(found - found.mean(0))


def slopes_oracle(
    judgements: Sequence[tuple[int, int, int]],
    logits: Matrix,
    parts: Sequence[Matrix],
    coordinates: Matrix,
) -> list[float]:
    """Returns the Newton step of the summed nll in the parts' weights from zeros, by differences; 0 at least.

    Args:
        judgements: (text, user, label).
        logits: (texts, labels).
        parts: Of (texts, labels, q).
        coordinates: (users, q).
    """

    def nll(weights: Sequence[float]) -> float:
        total = 0.0
        for text, user, label in judgements:
            own = [
                float(logits[text, c])
                + sum(
                    w * float(part[text, c] @ coordinates[user])
                    for w, part in zip(weights, parts, strict=True)
                )
                for c in range(logits.shape[1])
            ]
            total += math.log(sum(math.exp(z) for z in own)) - own[label]
        return total

    count, step = len(parts), 1e-3
    unit = np.eye(count) * step
    gradient = np.array([(nll(unit[i]) - nll(-unit[i])) / (2 * step) for i in range(count)])
    curvature = np.array(
        [
            [
                (
                    nll(unit[i] + unit[j])
                    - nll(unit[i] - unit[j])
                    - nll(unit[j] - unit[i])
                    + nll(-unit[i] - unit[j])
                )
                / (4 * step**2)
                for j in range(count)
            ]
            for i in range(count)
        ]
    )
    found = np.zeros(count)
    pace = 1 / np.trace(curvature)
    for _ in range(20_000):  # downhill on the quadratic, turned back wherever it would leave the allowed side
        found = np.maximum(found - pace * (gradient + curvature @ found), 0.0)
    return [float(slope) for slope in found]
