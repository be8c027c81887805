"""What examples say of profiles that were learned without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import numpy.typing as npt

from umbel.shared.bias import softmax
from umbel.shared.profile import FloatArray
from umbel.shared.strength import STRENGTHS, Index, expected_strength
from umbel.shared.text import IntArray

_LEAST = 1e-12  # of a probability, as wherever a loss is told


@final
@dataclass(frozen=True, slots=True)
class HeldOut:
    """One user's examples, each held out once, with and without the profile that their others gave.

    Single examples' numbers are left out of `repr`.

    Attributes:
        rows: (n,) place of each among the user's examples.
        nll_generic: (n,) nll without a profile, in nats.
        nll_personal: (n,) nll with the one learned from the other folds, used as far as they bear it out.
        right_generic: (n,) whether the most likely label is the owner's, without a profile.
        right_personal: (n,) the same with it.
    """

    rows: Index = field(repr=False)
    nll_generic: npt.NDArray[np.float64] = field(repr=False)
    nll_personal: npt.NDArray[np.float64] = field(repr=False)
    right_generic: npt.NDArray[np.bool_] = field(repr=False)
    right_personal: npt.NDArray[np.bool_] = field(repr=False)

    def figures(self) -> dict[str, Any]:
        """Returns how many there are, and the means of their losses and right answers."""
        return {
            "examples": len(self.rows),
            "nll_generic": float(self.nll_generic.mean()),
            "nll_personal": float(self.nll_personal.mean()),
            "accuracy_generic": float(self.right_generic.mean()),
            "accuracy_personal": float(self.right_personal.mean()),
        }


def compared(rows: Index, labels: IntArray, generic: FloatArray, personal: FloatArray) -> HeldOut:
    """Returns what logits (n, labels) without a profile and with one say of examples, in order of place."""
    order = np.argsort(rows, kind="stable")
    columns = [values[order] for values in (nll_of(generic, labels), nll_of(personal, labels))]
    right = [(logits.argmax(1) == labels)[order] for logits in (generic, personal)]
    return HeldOut(rows[order], columns[0], columns[1], right[0], right[1])


def nll_of(logits: FloatArray, labels: IntArray) -> npt.NDArray[np.float64]:
    """Returns each example's negative log-likelihood in nats: (n,)."""
    chance = softmax(logits)[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(chance, _LEAST)), np.float64)


def others_strengths(nll: npt.NDArray[np.float64], owners: IntArray, trust: float) -> FloatArray:
    """Returns the share of a profile that each fold's examples are held against: what its user's others say.

    Were it the share that all folds give, the examples would have had a say in what they are to judge.

    Args:
        nll: (strengths, folds) of each fold's held-out examples, summed, at each of `STRENGTHS`.
        owners: (folds,) whose each fold is.
        trust: As in `expected_strength`.

    Returns:
        (folds,) float32.
    """
    assert len(nll) == len(STRENGTHS)
    found = np.zeros(len(owners), np.float32)
    for fold, owner in enumerate(owners):
        others = (owners == owner) & (np.arange(len(owners)) != fold)
        found[fold] = expected_strength(nll[:, others].sum(1), trust)
    return found


def text_folds(texts: Sequence[str], folds: int) -> Index:
    """Returns the fold of each example, (n,), by its text alone: the same for any release.

    Equal texts share a fold. There are no more folds than texts.
    """
    place = {text: number for number, text in enumerate(sorted(set(texts)))}
    return np.array([place[text] % max(min(folds, len(place)), 1) for text in texts], np.int64)
