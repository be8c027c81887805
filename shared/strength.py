"""How much of a learned profile is used: as far as the owner's own examples bear it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from umbel.shared.profile import FloatArray

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of a profile that are tried; 0 is the generic model."""

_NOTHING = 0.05  # a smaller share is none: what is left changes no answer, and none is easier to explain

_Key = TypeVar("_Key", bytes, int)
Index = npt.NDArray[np.int64]


def fold_rows(keys: Sequence[_Key], folds: int) -> list[tuple[Index, Index]]:
    """Splits examples into folds: (rows to learn from, rows held out), each held out once.

    Examples of one text share a fold: what was learned from a text says nothing of how it does on others. The
    order in which examples come does not matter.

    Args:
        keys: What each example's text is known by; equal ones are the same text.
        folds: How many folds at most; there are no more than texts.

    Returns:
        Nothing where one fold would have nothing to learn from.
    """
    place = {key: number for number, key in enumerate(sorted(set(keys)))}  # numpy would cut zeros off bytes
    folds = min(folds, len(place))
    if folds < 2:
        return []
    number, rows = np.array([place[key] for key in keys]), np.arange(len(keys))
    return [(rows[number % folds != fold], rows[number % folds == fold]) for fold in range(folds)]


def expected_strength(nll: FloatArray, trust: float) -> float:
    """Returns the expected strength s under weights that are proportional to exp(trust s - nll(s)).

    Args:
        nll: (strengths,) the sum over held-out examples at each of `STRENGTHS`, in nats.
        trust: How many nats speak for the whole profile against none of it before anything is seen.

    Returns:
        Between 0 and 1; below 0.05 it is 0. 0 as well where a sum is not finite.
    """
    strengths = np.array(STRENGTHS)
    evidence = trust * strengths - np.asarray(nll, np.float64)
    if not np.isfinite(evidence).all():
        return 0.0
    weights = np.exp(evidence - evidence.max())
    found = float((weights * strengths).sum() / weights.sum())
    return found if found >= _NOTHING else 0.0
