"""Epsilon against dp-accounting's own accountant, and against the exact Gaussian where nothing is sampled."""

import math

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.privacy import gaussian_delta

from umbel.coordinator.federation.privacy.accountant import chance_of_deciding, epsilon


@pytest.mark.parametrize(
    ("rate", "multiplier", "rounds", "delta"),
    [(0.01, 1.0, 1, 1e-5), (0.01, 1.0, 1000, 1e-6), (0.25, 2.0, 20, 1e-6), (1.0, 4.0, 5, 1e-5)],
)
def test_epsilon_is_that_of_dp_accountings_own_accountant(
    rate: float, multiplier: float, rounds: int, delta: float
) -> None:
    """The same losses, composed by its public events; 1e-6 covers another order of convolution."""
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier))
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    expected = accountant.get_epsilon(delta)
    assert epsilon(rate, multiplier, rounds, delta) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(multiplier=st.floats(0.8, 8.0), rounds=st.integers(1, 30))
def test_without_sampling_it_is_the_exact_gaussian_rounded_up(multiplier: float, rounds: int) -> None:
    """T sums of multiplier z are one of z / sqrt(T); losses are rounded up by 1e-4 at most, T times."""
    found = epsilon(1.0, multiplier, rounds, 1e-6)
    exact = multiplier / rounds**0.5
    assert gaussian_delta(found, exact) <= 1e-6 * (1 + 1e-6)
    assert gaussian_delta(found * 0.995 - 1e-4 * rounds, exact) > 1e-6


def test_no_round_costs_nothing_and_each_costs_more() -> None:
    spent = [epsilon(0.1, 1.0, rounds, 1e-6) for rounds in range(5)]
    assert spent[0] == 0.0
    assert spent == sorted(set(spent))


@pytest.mark.parametrize(
    ("rate", "population", "least"), [(0.3, 9, 3), (0.05, 40, 5), (1.0, 5, 5), (0.9, 3, 5)]
)
def test_the_chance_that_one_device_decides_is_that_of_so_many_others(
    rate: float, population: int, least: int
) -> None:
    others = population - 1
    exactly = math.comb(others, least - 1) * rate ** (least - 1) * (1 - rate) ** max(0, others - least + 1)
    wanted = rate * exactly if others >= least - 1 else 0.0
    assert chance_of_deciding(rate, population, least) == pytest.approx(wanted)
