"""The onboarding network's equations in plain float64 numpy: one user, text and prototype at a time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tests.oracles.encoder import softmax

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[Any]]

_EPSILON = 1e-5


def onboarding_oracle(
    parameters: Arrays,
    shapes: Mapping[str, tuple[int, ...]],
    embedding: Array,
    logits: Array,
    labels: IntArray,
    owner: IntArray,
    owners: IntArray,
) -> tuple[dict[str, Array], Array]:
    """Returns the profiles of some users, and the weights of the prototypes.

    Args:
        parameters: The network's parameters by name.
        shapes: Private tensor -> its shape for one user.
        embedding: (texts, d).
        logits: (texts, labels).
        labels: (texts,) -1 where it is not known.
        owner: (texts,) whose each text is.
        owners: (users,) the users that are asked for.

    Returns:
        Name -> (users, *shape), and (users, prototypes).
    """
    weights = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    users = [_one_user(weights, embedding, logits, labels, np.flatnonzero(owner == user)) for user in owners]
    profile = {
        name: np.stack([code @ weights["heads." + name.replace(".", "__")].T for code, _ in users]).reshape(
            -1, *shape
        )
        for name, shape in shapes.items()
    }
    return profile, np.stack([shares for _, shares in users])


def _one_user(
    weights: Arrays, embedding: Array, logits: Array, labels: IntArray, own: Sequence[int] | IntArray
) -> tuple[Array, Array]:
    """Returns what the heads read (q,) and the prototypes' weights (prototypes,), from one user's texts."""
    size = weights["second"].shape[0]
    half_n, half_k, half_start = (math.exp(value) for value in weights["halves"])
    count = len(own)
    known = sum(1 for i in own if labels[i] >= 0)
    total = np.zeros(size)
    pull = np.zeros((logits.shape[1], size + 1))
    score = weights["prior"].copy()
    for i in own:
        z = _retrieved(weights, embedding[i])
        total += z
        if labels[i] >= 0:
            onehot = np.eye(logits.shape[1])[labels[i]]
            pull += np.outer(onehot - softmax(logits[i]), np.append(z, 1.0))
            for c in range(len(score)):
                score[c] += math.exp(weights["trust"][0]) * _evidence(weights, c, z, logits[i], labels[i])
    for c in range(len(score)):
        score[c] += weights["interest"][c] @ total / (count + half_n)
    shares = softmax(score)
    code = sum(
        (share * row for share, row in zip(shares, weights["prototypes"], strict=True)), np.zeros(size)
    )
    pull /= known + half_k
    # The network holds the columns that belong to z before the one that belongs to 1.
    summary = np.concatenate([code, pull[:, :-1].ravel(), pull[:, -1], total / (count + half_n)])
    hidden = np.maximum(weights["inner"] @ summary + weights["inner_bias"], 0)
    u = weights["skip"] @ summary + weights["outer"] @ hidden
    return count / (count + half_start) * u, shares


def _retrieved(weights: Arrays, embedding: Array) -> Array:
    """Returns z (q,): of mean 0 and variance 1."""
    hidden = np.maximum(weights["first"] @ embedding + weights["first_bias"], 0)
    z = weights["second"] @ hidden + weights["second_bias"]
    centred = z - z.mean()
    value: Array = centred / math.sqrt((centred**2).mean() + _EPSILON)
    return value


def _evidence(weights: Arrays, prototype: int, z: Array, logits: Array, label: int) -> float:
    """Returns log p_c(y) / p(y): how much better the prototype's answer fits the label than the model's."""
    added = weights["judge"][prototype] @ z / math.sqrt(len(z)) + weights["judge_bias"][prototype]
    return math.log(softmax(logits + added)[label]) - math.log(softmax(logits)[label])


def mixture_oracle(parameters: Arrays, shares: Array, embedding: Array, logits: Array, label: int) -> float:
    """Returns -log sum_c w_c p_c(y | i) of one text, with w = `shares` (prototypes,) of its person."""
    weights = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    z = _retrieved(weights, embedding)
    chance = 0.0
    for c, share in enumerate(shares):
        added = weights["judge"][c] @ z / math.sqrt(len(z)) + weights["judge_bias"][c]
        chance += share * softmax(logits + added)[label]
    return -math.log(chance)
