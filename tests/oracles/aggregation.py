"""A round's outcome in plain Python: fractions, sorted lists and one value after another."""

from collections.abc import Sequence
from fractions import Fraction

Rows = Sequence[Sequence[float]]


def mean_oracle(rows: Rows, weights: Sequence[int]) -> list[Fraction]:
    """Returns the weighted mean of each column, without any rounding."""
    total = sum(weights)
    columns = list(zip(*rows, strict=True))
    return [
        sum((Fraction(x) * w for x, w in zip(c, weights, strict=True)), Fraction(0)) / total for c in columns
    ]


def median_oracle(rows: Rows) -> list[Fraction]:
    """Returns the median of each column; between the two in the middle, their mean."""
    found = []
    for column in zip(*rows, strict=True):
        ordered, half = sorted(column), len(rows) // 2
        middle = ordered[half : half + 1] if len(rows) % 2 else ordered[half - 1 : half + 1]
        found.append(sum(map(Fraction, middle), Fraction(0)) / len(middle))
    return found


def trimmed_mean_oracle(rows: Rows, share: float) -> list[Fraction]:
    """Returns the mean of each column without its floor(share n) smallest and largest."""
    cut = int(share * len(rows))
    kept = [sorted(column)[cut : len(rows) - cut] for column in zip(*rows, strict=True)]
    return [sum(map(Fraction, column), Fraction(0)) / len(column) for column in kept]


def krum_oracle(rows: Rows, liars: int, kept: int) -> list[int]:
    """Returns the numbers of the `kept` rows that lie nearest to their n - f - 2 nearest others, sorted."""
    nearest = max(1, len(rows) - liars - 2)
    scores = []
    for i, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        distances = sorted(sum((x - y) ** 2 for x, y in zip(row, other, strict=True)) for other in others)
        scores.append((sum(distances[:nearest]), i))
    return sorted(number for _, number in sorted(scores)[:kept])
