"""The rules that look at each change: against plain Python, in any order, and against liars."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.coordinator.aggregation.changes import SIZE, outcome
from tests.oracles.aggregation import krum_oracle, mean_oracle, median_oracle, trimmed_mean_oracle

from umbel.coordinator.federation.aggregation import REGISTRY, rule_class
from umbel.coordinator.federation.aggregation.base import RuleOptions
from umbel.shared.errors import ConfigError
from umbel.shared.rng import generator

SHARE = 0.3
Oracle = Callable[[Sequence[Sequence[float]]], list[Fraction]]


def krum_mean(rows: Sequence[Sequence[float]], liars: int, kept: int) -> list[Fraction]:
    chosen = krum_oracle(rows, liars, kept)
    return mean_oracle([rows[number] for number in chosen], [1] * len(chosen))


ORACLES: dict[str, Oracle] = {
    "mean": lambda rows: mean_oracle(rows, [1] * len(rows)),
    "median": median_oracle,
    "trimmed-mean": lambda rows: trimmed_mean_oracle(rows, SHARE),
    "krum": lambda rows: krum_mean(rows, int(SHARE * len(rows)), 1),
    "multi-krum": lambda rows: krum_mean(rows, int(SHARE * len(rows)), len(rows) - int(SHARE * len(rows))),
}


def test_every_registered_rule_has_its_oracle() -> None:
    assert set(ORACLES) == set(REGISTRY)


@pytest.mark.parametrize("name", sorted(ORACLES))
@given(count=st.sampled_from([1, 5, 6, 7, 8, 9]), seed=st.integers(0, 10**6), data=st.data())
def test_a_rule_is_its_slow_twin_in_any_order(name: str, count: int, seed: int, data: st.DataObject) -> None:
    """Random rows; never 2 to 4, where two that are each other's nearest have one score.

    Tolerance: Flower adds up in float32, over at most 9 values of size 1.
    """
    normal = generator(seed, 0, "", "rows").normal(0, 0.3, (count, SIZE)).astype(np.float32)
    rows = normal.tolist()
    rule = rule_class(name)(RuleOptions(10.0, outlier_share=SHARE))
    found = outcome(rule, rows, data.draw(st.permutations(range(count))))
    assert found == outcome(rule, rows, range(count))
    np.testing.assert_allclose(found, [float(x) for x in ORACLES[name](rows)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_a_liar_moves_the_mean_and_no_robust_rule(name: str) -> None:
    honest = generator(0, 0, "", "honest").normal(0.5, 0.05, (9, SIZE)).tolist()
    rows = [*honest, [-100.0] * SIZE]
    options = RuleOptions(1e3, outlier_share=0.2)
    assert max(outcome(rule_class("mean")(options), rows, range(10))) < -5
    np.testing.assert_allclose(outcome(rule_class(name)(options), rows, range(10)), 0.5, atol=0.2)


def test_rules_say_whether_they_look_at_each_device() -> None:
    assert {name: rule_class(name).sees_each for name in REGISTRY} == {
        "mean": False, "median": True, "trimmed-mean": True, "krum": True, "multi-krum": True,
    }  # fmt: skip


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no rule 'best'"):
        rule_class("best")
