"""Cross-validated strength, one person, one fold, one strength after another."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def strength_oracle(
    count: int,
    folds: int,
    trust: float,
    strengths: Sequence[float],
    learn: Callable[[list[int]], Array],
    nll: Callable[[Array, int], float],
) -> float:
    """Returns the expected strength of one person's profile.

    Args:
        count: The person's examples.
        folds: Folds at most; example i is held out in fold i modulo their number.
        trust: Nats for strength 1 against 0.
        strengths: What is tried.
        learn: Row numbers -> the profile learned from them, not rounded.
        nll: (profile, row number) -> the example's nll under the profile as it is stored.
    """
    folds = min(folds, count)
    if folds < 2:
        return 1.0
    evidence = [trust * s for s in strengths]
    for fold in range(folds):
        profile = learn([row for row in range(count) if row % folds != fold])
        for row in range(fold, count, folds):
            for number, s in enumerate(strengths):
                evidence[number] -= nll(profile * s, row)
    weights = np.exp(np.array(evidence) - max(evidence))
    found = float(weights @ np.array(strengths) / weights.sum())
    return found if found >= 0.05 else 0.0
