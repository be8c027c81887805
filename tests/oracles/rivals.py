"""Slow twins of rivals that learn nothing by gradient: neighbours, and a bias per label."""

import math
from collections.abc import Sequence

Vector = Sequence[float]


def neighbours_oracle(
    query: Vector,
    support: Sequence[Vector],
    labels: Sequence[int],
    generic: Vector,
    temperature: float,
    share: float,
) -> list[float]:
    """Returns the probability of each label: share * votes of own examples + (1 - share) * generic."""
    weights = [math.exp(_cosine(query, one) / temperature) for one in support]
    found = [(1.0 - share) * probability for probability in generic]
    for weight, label in zip(weights, labels, strict=True):
        found[label] += share * weight / sum(weights)
    return found


def bias_oracle(logits: Sequence[Vector], labels: Sequence[int], prior: float) -> list[float]:
    """Returns the bias per label by many small steps of plain gradient descent."""
    bias = [0.0] * len(logits[0])
    for _ in range(20_000):
        slope = [prior * value for value in bias]
        for row, label in zip(logits, labels, strict=True):
            for number, probability in enumerate(softmax_oracle(_plus(row, bias))):
                slope[number] += probability - (number == label)
        bias = [value - 0.02 * down for value, down in zip(bias, slope, strict=True)]
        if max(map(abs, slope)) < 1e-9:
            break
    return bias


def softmax_oracle(logits: Vector) -> list[float]:
    """Returns probabilities."""
    weights = [math.exp(value - max(logits)) for value in logits]
    return [weight / sum(weights) for weight in weights]


def _plus(left: Vector, right: Vector) -> list[float]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _cosine(left: Vector, right: Vector) -> float:
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))
