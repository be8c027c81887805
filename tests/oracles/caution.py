"""Cross-validated strength, one person, one fold, one strength after another."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def strength_oracle(
    texts: Sequence[bytes],
    folds: int,
    trust: float,
    strengths: Sequence[float],
    learn: Callable[[list[int]], Array],
    nll: Callable[[Array, int], float],
) -> float:
    """Returns the expected strength of one person's profile.

    Args:
        texts: What the text of each of the person's examples is known by.
        folds: Folds at most; the i-th text in order is held out in fold i modulo their number.
        trust: Nats for strength 1 against 0.
        strengths: What is tried.
        learn: Row numbers -> the profile learned from them, not rounded.
        nll: (profile, row number) -> the example's nll under the profile as it is stored.
    """
    if folds < 2 or not texts:
        return 1.0
    known = sorted(set(texts))
    folds = min(folds, len(known))
    evidence = [trust * s for s in strengths]
    for fold in range(folds) if folds > 1 else ():
        held = [row for row, text in enumerate(texts) if known.index(text) % folds == fold]
        profile = learn([row for row in range(len(texts)) if row not in held])
        for row in held:
            for number, s in enumerate(strengths):
                evidence[number] -= nll(profile * s, row)
    weights = np.exp(np.array(evidence) - max(evidence))
    found = float(weights @ np.array(strengths) / weights.sum())
    return found if found >= 0.05 else 0.0
