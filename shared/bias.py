"""The strongest cheap baseline: the generic model plus a private bias per label, fitted on own examples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from umbel.shared.profile import FloatArray
from umbel.shared.text import IntArray

_STEPS = 200
_HALVINGS = 40


def fit_bias(logits: FloatArray, labels: IntArray, prior: float) -> npt.NDArray[np.float64]:
    """Finds b (labels,) that minimises sum_i -log softmax(logits_i + b)[label_i] + prior / 2 |b|^2.

    Newton's method; a step that does not go down is halved.

    Args:
        logits: (k, labels) of the generic model on the user's examples.
        labels: (k,) label numbers.
        prior: Precision of the zero-mean Gaussian prior; above 0.

    Returns:
        The bias; zeros without examples.
    """
    count = logits.shape[1]
    bias = np.zeros(count)
    if not len(labels):
        return bias
    wanted = np.eye(count)[labels]  # (k, labels)
    for _ in range(_STEPS):
        probability = softmax(logits + bias)
        gradient = (probability - wanted).sum(0) + prior * bias
        hessian = np.diag(probability.sum(0) + prior) - probability.T @ probability
        moved = _lower(logits, wanted, prior, bias, np.linalg.solve(hessian, gradient))
        change = float(np.abs(moved - bias).max())
        bias = moved
        if change < 1e-10:
            break
    return bias


def _lower(
    logits: FloatArray,
    wanted: npt.NDArray[np.float64],
    prior: float,
    bias: npt.NDArray[np.float64],
    step: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Returns bias - size * step for the first size of 1, 1/2, 1/4, ... that goes down, or the bias."""
    start = _objective(logits, wanted, prior, bias)
    for halvings in range(_HALVINGS):
        moved = bias - step * 0.5**halvings
        if _objective(logits, wanted, prior, moved) < start:
            return moved
    return bias


def _objective(
    logits: FloatArray, wanted: npt.NDArray[np.float64], prior: float, bias: npt.NDArray[np.float64]
) -> float:
    z = logits + bias
    z = z - z.max(1, keepdims=True)
    nll = np.log(np.exp(z).sum(1)) - (z * wanted).sum(1)
    return float(nll.sum() + 0.5 * prior * (bias @ bias))


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Returns softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    weights = np.exp(shifted)
    return np.asarray(weights / weights.sum(-1, keepdims=True))
