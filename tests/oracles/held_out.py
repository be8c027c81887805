"""What held-out examples say of a profile, one fold and one example after another."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def held_out_oracle(
    folds: Sequence[int],
    trust: float,
    strengths: Sequence[float],
    learn: Callable[[list[int]], Array],
    answer: Callable[[Array, int], Array],
    labels: Sequence[int],
) -> list[tuple[float, float, bool, bool]]:
    """Returns nll without and with a profile, and whether each is right, of every example.

    Args:
        folds: The fold of each example.
        trust: Nats for strength 1 against 0.
        strengths: What is tried; one alone is used as it is.
        learn: Row numbers -> the profile learned from them, not rounded.
        answer: (profile, row number) -> probabilities under the profile as it is stored.
        labels: The label of each example.
    """
    every = range(len(folds))
    profiles = {fold: learn([row for row in every if folds[row] != fold]) for fold in set(folds)}

    def nll(share: float, row: int) -> float:
        return float(-np.log(answer(profiles[folds[row]] * share, row)[labels[row]]))

    def share_of(fold: int) -> float:
        """The expected strength by the examples of all other folds, each under its own fold's profile."""
        others = [row for row in every if folds[row] != fold]
        evidence = [trust * share - sum(nll(share, row) for row in others) for share in strengths]
        weights = np.exp(np.array(evidence) - max(evidence))
        found = float(weights @ np.array(strengths) / weights.sum())
        return found if found >= 0.05 else 0.0

    told = []
    for row in every:
        plain = answer(profiles[folds[row]] * 0, row)
        share = share_of(folds[row])
        own = answer(profiles[folds[row]] * share, row)
        right = [int(chances.argmax()) == labels[row] for chances in (plain, own)]
        told.append((nll(0.0, row), nll(share, row), right[0], right[1]))
    return told
