"""Episodes: who plays, what is known of each and what is asked; nothing of an answer is in what is known."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.coordinator.config import OnboardingConfig
from umbel.coordinator.onboarding.episodes import Episode, Players
from umbel.coordinator.training.data import Rows
from umbel.shared.onboarding import UNKNOWN
from umbel.shared.rng import generator

SMALL = OnboardingConfig.model_validate({"query": 3, "most_labelled": 6, "most_texts": 5})


def rows_of(counts: list[int], seed: int = 0) -> Rows:
    """Returns rows in random order, so many of each user; a row's text is its own number."""
    rng = generator(seed, 0, "", "rows")
    users = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return Rows(np.arange(len(users)), users, rng.integers(3, size=len(users)))


@st.composite
def populations(draw: st.DrawFn) -> tuple[Rows, list[int]]:
    """Users with 0 to 20 examples, of whom one at least can play."""
    counts = [*draw(st.lists(st.integers(0, 20), max_size=6)), draw(st.integers(2, 20))]
    counts = list(draw(st.permutations(counts)))
    return rows_of(counts, draw(st.integers(0, 99))), counts


configs = st.fixed_dictionaries(
    {"query": st.integers(1, 9), "most_labelled": st.integers(1, 9), "most_texts": st.integers(0, 9)}
).map(OnboardingConfig.model_validate)


def same(one: Episode, other: Episode) -> bool:
    parts = [(one.users, other.users)]
    for rows, wanted in ((one.support, other.support), (one.query, other.query)):
        parts += [(getattr(rows, name), getattr(wanted, name)) for name in ("text", "user", "label")]
    return all(np.array_equal(found, wanted) for found, wanted in parts)


@given(
    population=populations(), config=configs, most=st.integers(1, 8), seed=st.integers(), step=st.integers(0)
)
@settings(max_examples=200, deadline=None)
def test_an_episode(
    population: tuple[Rows, list[int]], config: OnboardingConfig, most: int, seed: int, step: int
) -> None:
    rows, counts = population
    players = Players(rows, len(counts))
    episode = players.episode(config, most, seed, step)
    able = {user for user, count in enumerate(counts) if count > 1}
    assert len(set(episode.users.tolist())) == len(episode.users) == min(most, len(able))
    assert set(episode.users.tolist()) <= able
    used = np.concatenate([episode.support.text, episode.query.text])
    assert len(set(used.tolist())) == len(used)
    for part in (episode.support, episode.query):
        assert np.array_equal(rows.user[part.text], episode.users[part.user])
        told = part.label != UNKNOWN
        assert np.array_equal(part.label[told], rows.label[part.text][told])
    assert (episode.query.label != UNKNOWN).all()
    for number, user in enumerate(episode.users):
        assert np.sum(episode.query.user == number) == min(config.query, counts[user] // 2)
        own = episode.support.label[episode.support.user == number]
        assert len(own) >= 1
        assert np.sum(own != UNKNOWN) <= config.most_labelled
        # One text is known, be it beyond what is given without a label.
        assert np.sum(own == UNKNOWN) <= max(config.most_texts, 1)


@given(population=populations(), config=configs, seed=st.integers(), step=st.integers(0))
@settings(max_examples=60, deadline=None)
def test_seed_and_step_say_everything(
    population: tuple[Rows, list[int]], config: OnboardingConfig, seed: int, step: int
) -> None:
    rows, counts = population
    players = Players(rows, len(counts))
    wanted = players.episode(config, 4, seed, step)
    players.episode(config, 4, seed, step + 1)
    assert same(players.episode(config, 4, seed, step), wanted)
    assert same(Players(rows, len(counts)).episode(config, 4, seed, step), wanted)


@pytest.mark.parametrize("other", [(1, 0), (0, 1)])
def test_another_seed_or_step_is_another_episode(other: tuple[int, int]) -> None:
    players = Players(rows_of([20] * 6), 6)
    assert not same(players.episode(SMALL, 4, 0, 0), players.episode(SMALL, 4, *other))


@given(population=populations(), config=configs, step=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_what_is_labelled(population: tuple[Rows, list[int]], config: OnboardingConfig, step: int) -> None:
    rows, counts = population
    episode = Players(rows, len(counts)).episode(config, 4, 0, step)
    found = episode.labelled()
    support = zip(episode.support.text, episode.support.user, episode.support.label, strict=True)
    wanted = [(text, user, label) for text, user, label in support if label >= 0]
    assert list(zip(found.text, found.user, found.label, strict=True)) == wanted


def test_users_with_a_single_example_or_none_never_play() -> None:
    players = Players(rows_of([1, 2, 0, 5, 1, 3]), 6)
    assert players.able.tolist() == [1, 3, 5]
    played = {user for step in range(50) for user in players.episode(SMALL, 2, 0, step).users.tolist()}
    assert played == {1, 3, 5}


def test_every_count_comes_up_as_often() -> None:
    """0, 1, 2, 4 and the most; 1200 draws of each of 5 counts, 240 to be expected, a deviation of 14."""
    players = Players(rows_of([30] * 3), 3)
    labelled: Counter[int] = Counter()
    further: Counter[int] = Counter()
    for step in range(400):
        support = players.episode(SMALL, 3, 0, step).support
        for number in range(3):
            own = support.label[support.user == number]
            k = int(np.sum(own != UNKNOWN))
            labelled[k] += 1
            if k:  # without any label, one text at least is known: 0 counts as 1 there
                further[len(own) - k] += 1
            else:
                assert 1 <= len(own) <= 5
    assert set(labelled) == {0, 1, 2, 4, 6}
    assert set(further) == {0, 1, 2, 4, 5}
    assert min(labelled.values()) > 180
    assert min(further.values()) > 140


def test_every_example_is_asked_and_known_at_some_time() -> None:
    players = Players(rows_of([7, 4]), 2)
    episodes = [players.episode(SMALL, 2, 0, step) for step in range(60)]
    for part in ("support", "query"):
        seen = {text for episode in episodes for text in getattr(episode, part).text.tolist()}
        assert seen == set(range(11))
