"""The exact sum and the mean against fractions, in any order."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.coordinator.aggregation.changes import SHAPES, SIZE, change_from, outcome
from tests.oracles.aggregation import mean_oracle

from umbel.coordinator.federation.aggregation.base import RuleOptions
from umbel.coordinator.federation.aggregation.exact import MOST_WEIGHT, ExactSum
from umbel.coordinator.federation.aggregation.mean import Mean, Total

BOUNDS = st.sampled_from([1e-9, 0.3, 1.0, 1.00001, 1e3, 1e9])


@st.composite
def rounds(draw: st.DrawFn) -> tuple[float, list[list[float]], list[int], list[int]]:
    """Returns a bound, rows within it, their weights and an order of arrival."""
    bound = draw(BOUNDS)
    largest = float(np.nextafter(np.float32(bound), np.float32(0)))
    value = st.floats(-largest, largest, width=32)
    rows = draw(st.lists(st.lists(value, min_size=SIZE, max_size=SIZE), min_size=1, max_size=6))
    weights = draw(st.lists(st.integers(1, 10**6), min_size=len(rows), max_size=len(rows)))
    return bound, rows, weights, draw(st.permutations(range(len(rows))))


@given(rounds())
def test_a_sum_is_within_its_error_bound_of_the_true_one(
    given: tuple[float, list[list[float]], list[int], list[int]],
) -> None:
    """Each term is off by weight 2^(e - 65) at most; one rounding to float64 comes on top."""
    bound, rows, weights, order = given
    total = ExactSum(SHAPES, bound)
    for device in order:
        total.add(change_from(rows[device]), weights[device])
    assert total.weight == sum(weights)
    error = sum(weights) * Fraction(2) ** (math.frexp(bound)[1] - 65)
    sums = total.sums()
    found = [*sums["matrix"].ravel(), *sums["vector"]]
    for one, mean in zip(found, mean_oracle(rows, weights), strict=True):
        expected = mean * sum(weights)
        assert abs(Fraction(float(one)) - expected) <= error + abs(expected) * Fraction(2) ** -52


@given(rounds(), st.sampled_from(["uniform", "examples"]))
def test_a_mean_is_the_true_one_rounded_and_the_same_in_any_order(
    given: tuple[float, list[list[float]], list[int], list[int]], weighting: str
) -> None:
    bound, rows, weights, order = given
    rule = Mean(RuleOptions(bound, weighting))
    found = outcome(rule, rows, order, weights)
    assert found == outcome(rule, rows, range(len(rows)), weights)
    used = weights if weighting == "examples" else [1] * len(rows)
    # Rounded to float32 (2^-24 relative) after the sum's error; below 2^-149 float32 ends.
    smallest = Fraction(2) ** (math.frexp(bound)[1] - 65) + Fraction(2) ** -149
    for one, expected in zip(found, mean_oracle(rows, used), strict=True):
        assert abs(Fraction(one) - expected) <= abs(expected) * Fraction(2) ** -23 + smallest


def test_a_float_sum_would_depend_on_the_order_and_this_one_does_not() -> None:
    rows = [[1.0] * SIZE, [2.0**-30] * SIZE, [-1.0] * SIZE]
    in_floats = {(np.float32(a[0]) + np.float32(b[0])) + np.float32(c[0]) for a, b, c in (rows, rows[::-1])}
    other = (np.float32(rows[0][0]) + np.float32(rows[2][0])) + np.float32(rows[1][0])
    assert other not in in_floats
    rule = Mean(RuleOptions(1.0))
    assert (
        outcome(rule, rows, [0, 1, 2])
        == outcome(rule, rows, [0, 2, 1])
        == [float(np.float32(2.0**-30 / 3))] * SIZE
    )


def test_digits_do_not_cancel_however_many_are_added() -> None:
    """The largest weight at both ends of the range: what is left is the third, to the last bit."""
    total = ExactSum({"x": (1,)}, 1.0)
    half = MOST_WEIGHT // 2 - 1
    for value, weight in ((1.0, half), (2.0**-40, 2), (-1.0, half)):
        total.add({"x": np.array([value], np.float32)}, weight)
    assert total.sums()["x"].tolist() == [2.0**-39]
    with pytest.raises(OverflowError, match="sum of the weights"):
        total.add({"x": np.zeros(1, np.float32)})


def test_a_rule_begins_anew_in_every_round() -> None:
    rule = Mean(RuleOptions(4.0))
    assert outcome(rule, [[1.0] * SIZE], [0]) == [1.0] * SIZE
    assert outcome(rule, [[3.0] * SIZE], [0]) == [3.0] * SIZE


def test_the_mean_of_a_sum_that_somebody_else_made() -> None:
    found = Total({"x": np.array([3.0, -6.0])}, 3).mean()
    assert found["x"].tolist() == [1.0, -2.0]
    assert found["x"].dtype == np.float32
