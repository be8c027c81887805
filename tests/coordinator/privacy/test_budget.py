"""What a private round tells: its noise's size, its denominator, its sample; and when the budget is spent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.privacy import clips_oracle, poisson_oracle

from umbel.coordinator.federation.aggregation.mean import Total
from umbel.coordinator.federation.privacy.accountant import epsilon
from umbel.coordinator.federation.privacy.budget import PrivacySettings, PrivateRounds, rounds_paid
from umbel.coordinator.federation.privacy.clipping import count_noise, sum_multiplier
from umbel.coordinator.federation.privacy.sources import Floats, KeySource, SeedSource
from umbel.coordinator.federation.sampling import Without
from umbel.shared.errors import ConfigError
from umbel.shared.norms import largest
from umbel.shared.rng import generator

KEY = KeySource(bytes(range(32)))
FIXED = PrivacySettings(noise_multiplier=0.5)
ADAPTIVE = PrivacySettings(noise_multiplier=0.5, clip_quantile=0.5)


class NoNoise:
    """A source whose noise is nought, to see what is below it."""

    def uniform(self, round_: int, purpose: str, subject: str, size: int) -> Floats:
        return KEY.uniform(round_, purpose, subject, size)

    def normal(self, round_: int, purpose: str, subject: str, size: int) -> Floats:
        return np.zeros(size)


def total(value: float, size: int = 100_000) -> Total:
    return Total({"x": np.full((2, size // 2), value)}, 7)


@pytest.mark.parametrize("settings", [FIXED, ADAPTIVE])
def test_the_noise_on_the_sum_is_the_multiplier_times_the_clip(settings: PrivacySettings) -> None:
    """10 expected of 40: the mean is the sum over 10 though 7 answered, its noise z C / 10."""
    rounds = PrivateRounds(settings, 10, 40, KEY)
    found = rounds.mean(total(3.0), 1, 2.0)["x"]
    assert found.dtype == np.float32
    z = 0.5 if settings is FIXED else (0.5**-2 - (2 * 1.0) ** -2) ** -0.5
    assert found.mean() == pytest.approx(0.3, abs=0.002)
    assert found.std() == pytest.approx(z * 2.0 / 10, rel=0.01)


def test_a_secure_sums_rounding_is_covered_by_the_noise() -> None:
    found = PrivateRounds(FIXED, 10, 40, KEY).mean(total(0.0), 1, 1.0, rounding=1.0)["x"]
    assert found.std() == pytest.approx(0.5 * 2.0 / 10, rel=0.01)


def test_another_sum_of_the_same_round_gets_another_noise_and_the_same_sum_the_same() -> None:
    """Or else who sees a round's outcome twice, with and without a device, could subtract the noise."""
    rounds = PrivateRounds(FIXED, 10, 40, KEY)
    one, again, other = (rounds.mean(total(x), 1, 1.0)["x"].astype(float) for x in (1.0, 1.0, 1.5))
    np.testing.assert_array_equal(one, again)
    assert (other - one).std() == pytest.approx(2**0.5 * 0.05, rel=0.02)


def test_what_comes_out_lies_on_a_grid_that_does_not_depend_on_the_sum() -> None:
    rounds = PrivateRounds(FIXED, 1, 4, KEY)
    spacing = (
        2.0**-25
    )  # the noise's deviation is just above 1/2, and so below 2^0: 2^(0 - 24), float32 holds it
    for value in (0.0, 1 / 3, np.pi):
        found = rounds.mean(total(value, 1000), 1, 1.0)["x"].astype(float)
        np.testing.assert_array_equal(found, np.rint(found / spacing) * spacing)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 100))
def test_devices_are_sampled_each_by_its_own_chance(expected: int, round_: int) -> None:
    rounds = PrivateRounds(FIXED, expected, 40, KEY)
    chosen = rounds.sampled(range(40), round_)
    assert chosen == sorted(set(chosen))
    # Who else is there changes nothing for a device.
    assert rounds.sampled(range(20), round_) == [client for client in chosen if client < 20]
    assert chosen == poisson_oracle(KEY, range(40), round_, expected / 40)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5000) | st.integers(2**62, 2**62 + 900), unique=True).map(sorted))
def test_a_sample_of_any_numbers_is_drawn_for_each_of_them(clients: list[int]) -> None:
    rounds = PrivateRounds(FIXED, 10, 40, KEY)
    expected = poisson_oracle(KEY, clients, 3, 0.25)
    assert rounds.sampled(clients, 3) == expected
    left_out = set(clients[::3])
    assert rounds.sampled(Without(clients, left_out), 3) == [n for n in expected if n not in left_out]


def test_a_million_devices_are_sampled_by_blocks_of_their_numbers() -> None:
    """Mean 100, standard deviation 10; and no device is looked at that is not drawn."""
    rounds = PrivateRounds(FIXED, 100, 1_000_000, KEY)
    found = rounds.sampled(range(1_000_000), 1)
    assert 60 < len(found) < 140
    assert rounds.sampled(range(400_000), 1) == [number for number in found if number < 400_000]


def test_samples_have_the_size_and_the_spread_of_poisson_sampling() -> None:
    """2,000 rounds of 40 devices at 1/4: mean 10, variance 40 * 1/4 * 3/4 = 7.5."""
    rounds = PrivateRounds(FIXED, 10, 40, KEY)
    sizes = np.array([len(rounds.sampled(range(40), number)) for number in range(2000)])
    assert sizes.mean() == pytest.approx(10, abs=0.3)
    assert sizes.var() == pytest.approx(7.5, rel=0.15)


def test_a_population_below_the_expected_is_asked_whole() -> None:
    rounds = PrivateRounds(FIXED, 10, 4, KEY)
    assert rounds.rate == 1.0
    assert rounds.sampled(range(4), 3) == [0, 1, 2, 3]


def test_the_budget_pays_for_as_many_rounds_as_it_says() -> None:
    """The dearest number of rounds within the budget, found by asking for each."""
    settings = PrivacySettings(noise_multiplier=2.0, epsilon_budget=3.0, delta=1e-5)
    rounds = PrivateRounds(settings, 50, 100, SeedSource(0))
    paid = [number for number in range(1, 15) if rounds.affords(number)]
    assert paid == list(range(1, len(paid) + 1))
    last = len(paid)
    assert epsilon(0.5, 2.0, last, 1e-5) <= 3.0 < epsilon(0.5, 2.0, last + 1, 1e-5)
    assert PrivateRounds(PrivacySettings(noise_multiplier=1.0), 10, 100, SeedSource(0)).affords(10**4)


def test_a_budget_below_one_round_and_an_unknown_population_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not pay for one round") as error:
        PrivateRounds(PrivacySettings(noise_multiplier=0.5, epsilon_budget=0.1), 10, 20, KEY)
    assert "the budget is 0.1" in error.value.problems[0]
    with pytest.raises(ConfigError, match="privacy needs the number of devices"):
        PrivateRounds(FIXED, 10, 0, KEY)


@given(
    st.lists(st.lists(st.floats(0.01, 10.0), min_size=6, max_size=6), min_size=1, max_size=8),
    st.floats(0.1, 0.9),
    st.floats(0.0, 1.0),
)
def test_the_clip_follows_its_quantile_as_in_the_paper(
    norms: list[list[float]], quantile: float, rate: float
) -> None:
    settings = PrivacySettings(noise_multiplier=1.0, clip_quantile=quantile, clip_rate=rate)
    rounds = PrivateRounds(settings, 6, 6, NoNoise())
    clip, found = 1.0, []
    for number, row in enumerate(norms, 1):
        within = sum(norm <= clip for norm in row)
        clip = rounds.next_clip(clip, rounds.share_within(within, len(row), number))
        found.append(clip)
    np.testing.assert_allclose(found, clips_oracle(norms, 1.0, quantile, rate), rtol=1e-9)


def test_the_clip_settles_at_the_quantile_in_spite_of_the_noise() -> None:
    """Log-normal norms, of which a half is below 1: from 20 down to about 1 in 60 rounds of 100 devices."""
    settings = PrivacySettings(noise_multiplier=1.0, clip_quantile=0.5)
    rounds, clip = PrivateRounds(settings, 100, 1000, KEY), 20.0
    for number in range(60):
        norms = generator(0, number, "", "norms").lognormal(0, 0.5, 100)
        clip = rounds.next_clip(clip, rounds.share_within(int((norms <= clip).sum()), 100, number))
    assert 0.8 < clip < 1.25


@given(st.floats(0.3, 20.0), st.floats(1.0, 1e5))
def test_both_noises_together_cost_the_multiplier(multiplier: float, expected: float) -> None:
    """Sums of multipliers a and b are one of (a^-2 + b^-2)^(-1/2); the count's sensitivity is 1/2."""
    spread = count_noise(multiplier, expected)
    own = sum_multiplier(multiplier, spread)
    assert (own**-2 + (spread / 0.5) ** -2) ** -0.5 == pytest.approx(multiplier, rel=1e-9)
    assert own <= 1.04 * multiplier


def test_the_bound_of_the_check_is_what_the_noise_covers() -> None:
    """A change may pass the check with a norm a little above the clip; the noise is as much larger."""
    rounds = PrivateRounds(FIXED, 1, 1, SeedSource(3))
    found = rounds.mean(total(0.0), 1, 1000.0)["x"].astype(float)
    noise = SeedSource(3).normal(1, "noise of x", "", 100_000).reshape(2, -1)
    np.testing.assert_allclose(found, 0.5 * largest(1000.0) * noise, atol=1e-4)


@pytest.mark.parametrize(("paid", "most"), [(5, 8), (8, 8), (5, 2), (0, 3)])
def test_so_many_rounds_are_paid_for_as_the_budget_lets_begin(paid: int, most: int) -> None:
    costs = [epsilon(0.25, 2.0, rounds, 1e-5) for rounds in range(most + 1)]
    budget = epsilon(0.25, 2.0, paid, 1e-5) + 1e-6
    own = PrivacySettings(noise_multiplier=2.0, epsilon_budget=budget, delta=1e-5)
    assert rounds_paid(own, 0.25, most) == sum(cost <= budget for cost in costs[1:]) == min(paid, most)


def test_without_a_budget_all_rounds_are_paid_for() -> None:
    assert rounds_paid(PrivacySettings(noise_multiplier=2.0), 0.25, 7) == 7
