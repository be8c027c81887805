"""Learning a graph run at a time: to the bit the plain loop, wherever it stops and goes on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device_client.test_learning import ENGINE, shared, spread
from tests.linear_engine import PRIVATE
from tests.oracles.whole_learning import Gradients, learned_in_a_loop

from umbel.device_client.caution import CautiousLearning
from umbel.device_client.learning import Encoded, ProfileLearning, State, learn_exactly, together
from umbel.device_client.states import packed, put, taken, unpacked
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe

RECIPE = LearningRecipe(steps=3, learning_rate=0.4, folds=3, second_moment="element")


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(any), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_it_is_the_plain_loop_to_the_bit(counts: list[int], seed: int) -> None:
    parts, values = spread(counts), shared(seed)
    known, owner = together(parts), np.repeat(np.arange(len(counts)), counts)

    def piece(index: np.ndarray) -> object:
        rows, who = known.rows(index), owner[index]

        def gradients(profile: Mapping[str, FloatArray]) -> Gradients:
            return ENGINE.learn(rows.tokens, rows.labels, who, profile, values)

        return gradients

    pieces = [piece(index) for index in known.tokens.like_length(32)]
    zeros = ENGINE.release.manifest.profile.zeros(len(counts))
    wanted, losses = learned_in_a_loop(zeros, RECIPE, pieces)  # type: ignore[arg-type]
    told: list[float] = []
    found = learn_exactly(ENGINE, parts, RECIPE, shared=values, on_step=lambda _, nll: told.append(nll))
    assert told == losses
    for user, count in enumerate(counts):
        own = wanted[PRIVATE][user] if count else zeros[PRIVATE][user]
        assert found[PRIVATE][user].tobytes() == own.tobytes()


def cautious(parts: list[Encoded], rows: int) -> CautiousLearning:
    return CautiousLearning(ENGINE, parts, RECIPE, shared=shared(), measured=True, rows=rows)


def outcome(learning: CautiousLearning, users: int) -> list[bytes]:
    held = [learning.held_out(user) for user in range(users)]
    numbers = [own.nll_personal.tobytes() for own in held if own is not None]
    return [learning.profiles()[PRIVATE].tobytes(), learning.strengths().tobytes(), *numbers]


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=2).filter(any),
    rows=st.integers(1, 5),
    stops=st.lists(st.integers(0, 25), max_size=8),
)
@settings(max_examples=25, deadline=None)
def test_stopped_anywhere_even_within_a_step_it_goes_on_to_the_same_bits(
    counts: list[int], rows: int, stops: list[int]
) -> None:
    parts = spread(counts)
    whole = cautious(parts, rows)
    while not whole.finished:
        whole.advance()
    learning = cautious(parts, rows)
    for stop in stops:
        for _ in range(stop):
            if not learning.finished:
                learning.advance()
        state = {part: unpacked(packed(arrays)) for part, arrays in learning.state().items()}
        learning = cautious(parts, rows)
        learning.restore(state)
    while not learning.finished:
        learning.advance()
    assert outcome(learning, len(counts)) == outcome(whole, len(counts))


def test_a_state_of_which_something_is_missing_is_refused() -> None:
    learning = ProfileLearning(ENGINE, spread([5]), RECIPE, shared=shared(), rows=2)
    learning.advance()
    state = learning.state()
    assert set(state) == {"step", "piece 0"}
    del state["step"]["profile/user.bias"]
    with pytest.raises(KeyError):
        ProfileLearning(ENGINE, spread([5]), RECIPE, shared=shared(), rows=2).restore(state)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_fewer_rows_change_a_profile_by_rounding_alone(rows: int) -> None:
    """Sums of float32 in another order: 1e-5 of values around 1 after three steps."""
    parts = spread([20, 7])
    recipe = replace(RECIPE, second_moment="tensor")
    found = []
    for size in (rows, None):
        learning = ProfileLearning(ENGINE, parts, recipe, shared=shared(), rows=size)
        while not learning.finished:
            learning.advance()
        found.append(learning.exact()[PRIVATE])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@given(st.dictionaries(st.text(max_size=5), st.lists(st.floats(width=32), max_size=4), max_size=3))
def test_arrays_come_back_as_they_were(own: dict[str, list[float]]) -> None:
    arrays: dict[str, Any] = {name: np.array(values, np.float32) for name, values in own.items()}
    arrays["counts"] = np.arange(6).reshape(2, 3).T
    found = unpacked(packed(arrays))
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        assert found[name].tobytes() == values.tobytes()


def test_states_within_states() -> None:
    inner: State = {"a": {"x": np.zeros(1)}, "b/c": {"y": np.ones(1)}}
    outer: State = {"z": {}}
    put(outer, "own", inner)
    assert set(outer) == {"z", "own/a", "own/b/c"}
    assert taken(outer, "own") == inner
    assert taken(outer, "ow") == {}
