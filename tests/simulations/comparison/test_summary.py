"""Figures of a comparison: equal to a slow twin, on the same people only, never made of what is missing."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.oracles import bootstrap as slow_bootstrap
from tests.oracles import comparison as oracle
from tests.simulations.comparison.example_comparison import (
    KINDS,
    cell,
    comparison,
    config,
    level,
    random_comparison,
)

from umbel.simulations.comparison.results import Cell, ComparisonError, Measured
from umbel.simulations.comparison.summary import Summary
from umbel.simulations.summary import clustered_bootstrap

DRAWS = 40


@settings(deadline=None)
@given(
    groups=st.lists(
        st.dictionaries(st.sampled_from("abcdef"), st.floats(-1, 1), min_size=1), min_size=1, max_size=3
    ),
    seed=st.integers(0, 5),
)
def test_the_bootstrap_over_groups_is_its_slow_twin(groups: list[dict[str, float]], seed: int) -> None:
    rows = [(list(group), list(group.values())) for group in groups]
    found = clustered_bootstrap([(users, np.array(values)) for users, values in rows], seed, DRAWS)
    assert found == pytest.approx(slow_bootstrap.clustered_bootstrap(rows, seed, DRAWS), abs=1e-12)


def test_the_same_people_under_three_seeds_are_no_more_evidence_than_under_one() -> None:
    users, gains = list("abcdefgh"), np.array([0.3, -0.1, 0.2, 0.0, -0.2, 0.4, 0.1, -0.3])
    once = clustered_bootstrap([(users, gains)], 0, 4000)
    thrice = clustered_bootstrap([(users, gains)] * 3, 0, 4000)
    assert thrice == pytest.approx(once)
    others = [([f"{user}{n}" for user in users], gains) for n in range(3)]
    low, high = clustered_bootstrap(others, 0, 4000)
    assert high - low < 0.75 * (once[1] - once[0])


def test_differences_between_seeds_are_not_in_the_interval() -> None:
    people = list("ab")
    groups = [(people, np.array([0.1, 0.1])), (people, np.array([0.5, 0.5]))]
    assert clustered_bootstrap(groups, 0, DRAWS) == pytest.approx((0.3, 0.3))
    nobody: tuple[list[str], Any] = ([], np.array([]))
    assert all(math.isnan(end) for end in clustered_bootstrap([groups[0], nobody], 0, DRAWS))
    assert all(math.isnan(end) for end in clustered_bootstrap([], 0, DRAWS))


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 1000),
    skip=st.lists(
        st.tuples(st.just("movielens"), st.sampled_from([0, 1, 2]), st.sampled_from(sorted(KINDS))),
        max_size=12,
    ),
    one=st.sampled_from(sorted(KINDS)),
    other=st.sampled_from(sorted(KINDS)),
    k=st.sampled_from([0, 4, 16, 32]),
)
def test_figures_are_those_of_the_slow_twin(
    seed: int, skip: list[tuple[str, int, str]], one: str, other: str, k: int
) -> None:
    made = random_comparison(seed, skip=skip)
    summary = Summary(made, draws=DRAWS)
    figures = summary.figures("movielens", one, k)
    expected = oracle.accuracy(made.cells, "movielens", one, k, (0, 1, 2))
    assert (figures is None) == (expected is None)
    if figures is not None:
        assert figures.accuracy == pytest.approx(expected, abs=1e-12)
    found = summary.difference("movielens", one, other, k)
    twin = oracle.difference(made.cells, "movielens", one, other, k, (0, 1, 2), DRAWS)
    assert (found is None) == (twin is None)
    if found is not None:
        assert (found.value, found.low, found.high) == pytest.approx(twin, abs=1e-12)


def test_further_people_count_only_where_both_sides_have_them() -> None:
    made = comparison(
        [
            cell("generic", {0: [500, 500, 0, 0]}),
            cell("shared-lora", {0: [500, 500, 0, 0]}),
            cell("shared-loratrf", {0: [500, 500, 1000, 1000]}),
            cell("plora", {4: [600, 800]}),
        ]
    )
    summary = Summary(made, draws=DRAWS)
    assert summary.people("movielens") == {0: 2}
    assert summary.more_people("movielens") == {0: 2}
    trf = summary.figures("movielens", "shared-loratrf", 4)
    assert trf is not None
    assert (trf.accuracy, trf.people) == (0.5, 2)
    shared = summary.difference("movielens", "shared-loratrf", "shared-lora", 0)
    assert shared is not None
    assert (shared.value, shared.people) == (0.5, 4)
    gain = summary.difference("movielens", "plora", "generic", 4)
    assert gain is not None
    assert gain.value == pytest.approx(0.2)
    assert gain.people == 2


def test_a_seed_counts_once_however_many_people_it_has() -> None:
    made = comparison([cell("plora", {4: level(0.5, 1)}), cell("plora", {4: level(0.9, 3)}, seed=1)])
    found = Summary(made, draws=DRAWS).figures("movielens", "plora", 4)
    assert found is not None
    assert found.accuracy == pytest.approx(0.7)
    assert (found.by_seed, found.people) == ({0: 0.5, 1: pytest.approx(0.9)}, 4)
    assert found.seconds == pytest.approx(0.6)  # between 0.1 and 1.1


def test_costs_and_losses_over_seeds() -> None:
    rows = [
        Measured(right=(1, 1, 9), asked=(10, 10, 10), nll=nll, seconds=seconds)
        for nll, seconds in (((0.2, 0.4, 9.0), 1.0), ((0.6, 0.8, 9.0), 5.0), ((1.0, 1.2, 9.0), 2.0))
    ]
    made = [
        cell("shared-lora", {0: [1, 1, 9]}, seed=seed, asked=[10] * 3, k={"0": row}, private_bytes=seed)
        for seed, row in enumerate(rows)
    ]
    others = [cell("plora", {4: [1, 1]}, seed=seed, asked=[10] * 2) for seed in range(3)]
    summary = Summary(comparison([*made, *others]), draws=DRAWS)
    found = summary.figures("movielens", "shared-lora", 4)
    assert found is not None
    assert (found.nll, found.seconds, found.accuracy) == pytest.approx((0.7, 2.0, 0.1))
    assert summary.entry("movielens", "shared-lora").private_bytes == 2


def test_a_pair_uses_the_seeds_that_both_have() -> None:
    made = comparison(
        [
            cell("generic", {0: level(0.5)}),
            cell("generic", {0: level(0.1)}, seed=1),
            cell("plora", {4: level(0.6)}),
            cell("plora", {4: level(0.9)}, seed=2),
        ],
        config({"movielens": (4,)}),
    )
    summary = Summary(made, draws=DRAWS)
    found = summary.difference("movielens", "plora", "generic", 4)
    assert found is not None
    assert found.value == pytest.approx(0.1)
    assert found.seeds == (0,)
    assert summary.difference("movielens", "plora", "lora", 4) is None
    assert summary.figures("movielens", "lora", 4) is None
    assert summary.entry("movielens", "lora").private_bytes is None
    assert ("movielens", "plora", (1,)) in summary.missing()
    assert ("movielens", "lora", (0, 1, 2)) in summary.missing()


def test_a_contestant_is_missing_only_where_it_takes_part() -> None:
    asked = config({"movielens": (4,), "crehate": (4,)})
    asked["contestants"]["plora"]["data"] = ["crehate"]
    summary = Summary(comparison([], asked), draws=DRAWS)
    assert [data for data, name, _ in summary.missing() if name == "plora"] == ["crehate"]
    asked["data"]["movielens"]["rivals"] = ["generic"]
    summary = Summary(comparison([], asked), draws=DRAWS)
    assert [data for data, name, _ in summary.missing() if name == "lora"] == ["crehate"]
    assert [data for data, name, _ in summary.missing() if name == "generic"] == ["movielens", "crehate"]


def test_people_who_were_asked_nothing_are_left_out() -> None:
    cells = [
        cell("generic", {0: [500, 0]}, asked=[1000, 0]),
        cell("plora", {4: [700, 0]}, asked=[1000, 0]),
    ]
    summary = Summary(comparison(cells), draws=DRAWS)
    found = summary.difference("movielens", "plora", "generic", 4)
    assert found is not None
    assert found.value == pytest.approx(0.2)
    assert found.people == 1


def test_the_possible_gain_begins_at_the_best_generic_answers() -> None:
    known: dict[str, Any] = {"best": (0.9, 0.9), "best_generic": (0.5, 0.7)}
    made = comparison([cell("generic", {0: [400, 400, 0]}, **known), cell("plora", {4: [700, 800]}, **known)])
    summary = Summary(made, draws=DRAWS)
    personal, generic = (summary.figures("movielens", name, 4) for name in ("plora", "generic"))
    assert personal is not None
    assert generic is not None
    assert personal.share == pytest.approx((0.75 - 0.6) / (0.9 - 0.6))
    assert generic.share == pytest.approx((0.4 - 0.6) / (0.9 - 0.6))
    plain = Summary(comparison([cell("plora", {4: [700]})]), draws=DRAWS).figures("movielens", "plora", 4)
    assert plain is not None
    assert plain.share is None


def test_contestants_stand_by_group_and_in_the_configurations_order() -> None:
    summary = Summary(random_comparison(1), draws=DRAWS)
    assert [entry.contestant for entry in summary.entries("movielens")] == list(KINDS)
    assert summary.ks("movielens") == (0, 4, 16, 32)
    assert (summary.headline_k("movielens"), summary.headline_k("elsewhere")) == (16, 0)
    empty = Summary(comparison([], config({"movielens": (4, 8)})), draws=DRAWS)
    assert [entry.group for entry in empty.entries("movielens")] == [kind[0] for kind in KINDS.values()]
    assert empty.headline_k("movielens") == 8


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ([cell("plora", {4: [1]}), cell("plora", {4: [1]})], "is there twice"),
        ([cell("plora", {4: [1]}, asked=[5]), cell("lora", {4: [1]}, asked=[6])], "other people"),
        ([cell("plora", {4: [1]}), cell("lora", {4: [1]}, examples="others")], "other examples"),
        ([cell("plora", {4: [1]}), cell("lora", {4: [1]}, users=("9",))], "other examples or people"),
        ([cell("plora", {4: [0]}, asked=[0])], "nobody was asked"),
    ],
)
def test_cells_that_contradict_one_another_are_refused(cells: list[Cell], problem: str) -> None:
    with pytest.raises(ComparisonError) as caught:
        Summary(comparison(cells), draws=DRAWS)
    assert problem in str(caught.value) + str(caught.value.problems)


@pytest.mark.parametrize(
    ("right", "changes", "problem"),
    [
        ([1, 2], {"people": 3}, "not 3 people"),
        ([7], {"asked": [5]}, "more is right than was asked"),
        ([1], {"users": ("a", "b")}, "not 1 different ones"),
        ([1, 2], {"users": ("a", "a")}, "not 2 different ones"),
    ],
)
def test_a_cell_that_contradicts_itself_is_refused(
    right: list[int], changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        cell("plora", {4: right}, **changes)
