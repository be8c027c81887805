"""Who is helped and who is harmed: the paired test against coins that are counted one by one."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.oracles.bootstrap import paired_bootstrap
from tests.simulations.comparison.example_comparison import cell, comparison

from umbel.simulations.comparison.harm import LEVEL, discordant, gains, harm, harm_interval, size, tail
from umbel.simulations.comparison.results import Cell, Measured, hit_bits
from umbel.simulations.comparison.summary import Summary


def measured(hits: Sequence[Sequence[bool]]) -> Measured:
    return Measured(
        right=tuple(sum(own) for own in hits),
        asked=tuple(len(own) for own in hits),
        nll=(0.5,) * len(hits),
        seconds=0.1,
        hits=tuple(np.packbits(np.array(own, np.bool_)).tobytes().hex() for own in hits),
    )


def cells(generic: Sequence[Sequence[bool]], own: Sequence[Sequence[bool]], seed: int = 0) -> list[Cell]:
    asked = [len(row) for row in generic]
    right = {0: [sum(row) for row in generic]}
    return [
        cell(name, {k: right[0]}, seed=seed, asked=asked, k={str(k): measured(rows)}, seen=None)
        for name, k, rows in (("generic", 0, generic), ("plora", 4, own))
    ]


@pytest.mark.parametrize("count", range(9))
def test_tails_count_coins(count: int) -> None:
    falls = [sum(coins) for coins in product((0, 1), repeat=count)]
    for least in range(count + 2):
        assert tail(count, least) == pytest.approx(sum(heads >= least for heads in falls) / 2**count)
    found = [heads for heads in falls if tail(count, heads) <= LEVEL]
    assert size(count) == pytest.approx(len(found) / 2**count)


@given(st.integers(0, 300))
def test_chance_is_never_above_the_level(count: int) -> None:
    assert 0 <= size(count) <= LEVEL
    assert size(count) > 0.007 or count < 5


@given(st.lists(st.booleans(), max_size=40))
def test_bits_come_back(hits: list[bool]) -> None:
    row = measured([hits])
    assert row.hits is not None
    assert hit_bits(row.hits[0], len(hits)).tolist() == hits


def test_bits_that_do_not_fit_what_is_right_are_refused() -> None:
    row = measured([[True, False]]).model_dump()
    for wrong in (("c0",), ("8000",), (), ("zz",)):
        with pytest.raises(ValidationError):
            Measured.model_validate(row | {"hits": wrong})


def test_people_are_judged_one_by_one() -> None:
    right, wrong = [True] * 12, [False] * 12
    mixed = [True, False] * 6
    # Worse, better, as good by luck either way, and better by too little to say.
    generic = [right, wrong, mixed, right[:4]]
    own = [wrong, right, [not hit for hit in mixed], right[:4]]
    summary = Summary(comparison([*cells(generic, own), *cells(generic, own, seed=1)]), draws=10)
    by_seed = discordant(summary, "movielens", "plora", 4)
    assert [list(by_seed[seed].values()) for seed in (0, 1)] == [[(12, 0), (0, 12), (6, 6), (0, 0)]] * 2
    assert list(by_seed[0]) == list(summary.users("movielens", 0))
    found = harm(summary, "movielens", "plora", 4)
    assert found is not None
    assert (found.people, found.seeds, found.harmed, found.helped) == (8, 2, 0.25, 0.25)
    assert found.chance == pytest.approx(3 * size(12) / 4)
    assert found.beyond_chance == pytest.approx(0.25 - found.chance)
    low, high = harm_interval(summary, "movielens", "plora", 4)
    assert -size(12) <= low <= found.beyond_chance <= high <= 1
    assert gains(summary, "movielens", "plora", 4) == pytest.approx([-1, -1, 0, 0, 0, 0, 1, 1])
    assert harm(summary, "movielens", "plora", 16) is None


def test_the_interval_is_that_of_people() -> None:
    """Everybody alike leaves no width; one harmed person in four makes it as wide as drawing people does."""
    right, wrong = [True] * 12, [False] * 12
    for count in (0, 1, 4):
        own = [wrong if number < count else right for number in range(4)]
        summary = Summary(comparison(cells([right] * 4, own)), draws=400)
        low, high = harm_interval(summary, "movielens", "plora", 4)
        flags = [1 - size(12)] * count + [-size(0)] * (4 - count)
        assert (low, high) == pytest.approx(paired_bootstrap(flags, 0, 400), abs=0.01)
        assert (high - low < 1e-9) == (count in (0, 4))
