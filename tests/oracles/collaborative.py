"""Matrix factorisation of judgements, one judgement at a time."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def logits_oracle(
    trait: Array, taste: Array, worth: Array, lean: Array, base: Array, user: int, text: int
) -> list[float]:
    """Returns base_c + lean[u, c] + worth[t, c] + sum_r taste[u, c, r] trait[t, r] for every label c."""
    return [
        base[label]
        + lean[user, label]
        + worth[text, label]
        + math.fsum(taste[user, label, r] * trait[text, r] for r in range(trait.shape[1]))
        for label in range(len(base))
    ]


def nll_oracle(logits: Sequence[float], label: int) -> float:
    """Returns log sum_c exp(logits_c) - logits_label."""
    highest = max(logits)
    return highest + math.log(math.fsum(math.exp(value - highest) for value in logits)) - logits[label]


def trait_loss_oracle(
    embedding: Array,
    matrix: Array,
    offset: Array,
    target: dict[int, Array],
    weight: dict[int, float],
    text: Any,
) -> float:
    """Returns the mean over a batch of w_t |M e + m - target_t|^2; a text without a target counts 0."""
    parts = []
    for row, number in zip(embedding, text, strict=True):
        wanted = target.get(int(number))
        if wanted is None:
            parts.append(0.0)
            continue
        found = [math.fsum(m * x for m, x in zip(line, row, strict=True)) for line in matrix]
        gaps = [f + o - w for f, o, w in zip(found, offset, wanted, strict=True)]
        parts.append(weight[int(number)] * math.fsum(gap * gap for gap in gaps))
    return math.fsum(parts) / len(parts)
