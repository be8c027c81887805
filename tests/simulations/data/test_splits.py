"""Splits: deterministic, without leaks, and nested in k."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.shared.errors import ConfigError, ExampleError
from umbel.shared.examples import Example
from umbel.simulations.data.splits import Population, UserExamples, by_user, split_population

_examples = st.lists(
    st.builds(
        Example,
        st.sampled_from(["ann", "bob", "cem", "dee", "eve"]),
        st.sampled_from([f"text {i}" for i in range(30)] + ["Text  1", " text 2"]),
        st.sampled_from(["yes", "no"]),
    ),
    max_size=80,
)


def people(users: int = 20, each: int = 10) -> list[Example]:
    return [
        Example(f"u{u}", f"text {i}", "yes" if (u + i) % 3 else "no")
        for u in range(users)
        for i in range(each)
    ]


def everyone(population: Population) -> dict[str, UserExamples]:
    return {**population.seen, **population.unseen}


def key(text: str) -> str:
    return " ".join(text.split()).casefold()


@given(examples=_examples, seed=st.integers(0, 5), max_query=st.none() | st.integers(1, 9))
def test_split_keeps_everything_apart(examples: list[Example], seed: int, max_query: int | None) -> None:
    try:
        population = split_population(examples, seed=seed, max_query=max_query)
    except ExampleError:
        assert all(len(own) < 4 or len({key(e.text) for e in own}) < 2 for own in by_user(examples).values())
        return
    assert not set(population.seen) & set(population.unseen)
    assert {*everyone(population), *population.skipped} == {e.user for e in examples}
    for user, own in everyone(population).items():
        assert own.support
        assert own.query
        assert {e.user for e in own.support + own.query} == {user}
        assert not {key(e.text) for e in own.support} & {key(e.text) for e in own.query}
        given = [e for e in examples if e.user == user]
        if max_query is None:
            assert sorted(map(str, given)) == sorted(map(str, own.support + own.query))
        else:
            assert len(own.query) <= max_query


@given(
    orders=_examples.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))),
    seed=st.integers(0, 5),
)
def test_split_does_not_depend_on_the_order_of_rows(
    orders: tuple[list[Example], list[Example]], seed: int
) -> None:
    def split(rows: list[Example]) -> Population | str:
        try:
            return split_population(rows, seed=seed, labels=["no", "yes"])
        except ExampleError as error:
            return str(error)

    assert split(orders[0]) == split(orders[1])


def test_a_users_split_depends_on_that_user_alone() -> None:
    few, many = (everyone(split_population(people(users), seed=3)) for users in (5, 20))
    assert all(many[user] == own for user, own in few.items())


def test_seeds_differ() -> None:
    one, two = (split_population(people(), seed=seed) for seed in (0, 1))
    assert set(one.unseen) != set(two.unseen)
    assert everyone(one)["u0"].support != everyone(two)["u0"].support


@pytest.mark.parametrize(("share", "unseen"), [(0.0, 0), (0.01, 1), (0.3, 6), (0.99, 19), (1.0, 20)])
def test_share_of_unseen_users(share: float, unseen: int) -> None:
    assert len(split_population(people(), seed=0, unseen_share=share).unseen) == unseen


def test_query_share_and_the_most_query_examples() -> None:
    own = split_population(people(1), seed=0, unseen_share=0, query_share=0.4).seen["u0"]
    assert (len(own.support), len(own.query)) == (6, 4)
    capped = split_population(people(1), seed=0, unseen_share=0, query_share=0.4, max_query=2).seen["u0"]
    assert capped.query == own.query[:2]
    assert capped.support[:6] == own.support
    assert len(capped.support) == 8


def test_support_is_a_random_sample_in_its_first_places() -> None:
    first = [own.support[0].text for own in everyone(split_population(people(200), seed=0)).values()]
    counts = [first.count(f"text {i}") for i in range(10)]
    assert min(counts) >= 8  # 20 expected of each, standard deviation 4.2
    assert max(counts) <= 36


def test_users_who_are_skipped_are_told() -> None:
    few = [Example("few", f"text {i}", "yes") for i in range(3)]
    same = [Example("same", "One  text", "yes"), *[Example("same", "one text", "no")] * 4]
    single = [Example("single", f"text {i}", "yes") for i in range(4)]
    population = split_population([*few, *same, *single, Example("one", "a", "no")], seed=0)
    assert population.skipped == {
        "few": "3 examples, fewer than 4",
        "one": "1 example, fewer than 4",
        "same": "only one distinct text",
    }
    assert set(everyone(population)) == {"single"}
    assert population.labels == ("no", "yes")


def test_nobody_has_enough() -> None:
    with pytest.raises(ExampleError, match="2 users: 3 examples, fewer than 4"):
        split_population(people(2, 3), seed=0)
    with pytest.raises(ExampleError, match="Nobody"):
        split_population([], seed=0)


def test_labels_are_checked_without_being_shown() -> None:
    examples = [
        Example("ann", f"text {i}", label) for i, label in enumerate(["yes", "secret", "no", "secret"])
    ]
    with pytest.raises(ExampleError, match="user ann: 2 of 4 examples") as caught:
        split_population(examples, seed=0, labels=["yes", "no"])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"unseen_share": -0.1},
        {"unseen_share": 1.1},
        {"query_share": 0.0},
        {"min_examples": 1},
        {"max_query": 0},
    ],
)
def test_arguments_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is {next(iter(options.values()))}"):
        split_population(people(), seed=0, **options)


def test_by_user_sorts_users_and_orders_by_time_if_everyone_has_one() -> None:
    timed = [
        Example("b", "late", "1", 2.0),
        Example("b", "early", "1", 1.0),
        Example("b", "late too", "1", 2.0),
    ]
    untimed = [Example("a", "first", "1", 5.0), Example("a", "second", "1"), Example("a", "third", "1", 1.0)]
    groups = by_user(timed + untimed)
    assert list(groups) == ["a", "b"]
    assert [e.text for e in groups["a"]] == ["first", "second", "third"]
    assert [e.text for e in groups["b"]] == ["early", "late", "late too"]
