"""AdamW in numpy against the paper's algorithm in plain Python; torch's own is a test of the coordinator."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.numeric import assert_close_relative
from tests.oracles.adamw import adamw_oracle

from umbel.shared.adamw import AdamW
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import generator

recipes = st.builds(
    LearningRecipe,
    steps=st.integers(1, 12),
    learning_rate=st.sampled_from([0.001, 0.3, 2.0]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    beta1=st.sampled_from([0.0, 0.9]),
    beta2=st.sampled_from([0.0, 0.99]),
    epsilon=st.sampled_from([1e-8, 0.1]),
    second_moment=st.sampled_from(["tensor", "element", "none"]),
)


def run(recipe: LearningRecipe, start: FloatArray, gradients: list[FloatArray]) -> FloatArray:
    optimizer, values = AdamW(recipe), {"p": start}
    for gradient in gradients:
        values = optimizer.step(values, {"p": gradient})
    return values["p"]


def random_case(
    recipe: LearningRecipe, seed: int, users: int, shape: tuple[int, ...]
) -> tuple[FloatArray, list[FloatArray]]:
    rng = generator(seed, 0, "", "adamw")
    start = rng.normal(0, 1, (users, *shape)).astype(np.float32)
    return start, [rng.normal(0, 1, start.shape).astype(np.float32) for _ in range(recipe.steps)]


@given(
    recipe=recipes,
    seed=st.integers(0, 2**32),
    users=st.integers(1, 3),
    shape=st.sampled_from([(), (1,), (4,), (2, 3)]),
)
def test_each_user_has_the_numbers_of_the_oracle(
    recipe: LearningRecipe, seed: int, users: int, shape: tuple[int, ...]
) -> None:
    """1e-4: with beta 0 a step is g / |g|, and float32 rounds it at 1e-7 in each of 12 steps of size 2."""
    start, gradients = random_case(recipe, seed, users, shape)
    found = run(recipe, start, gradients)
    assert found.dtype == np.float32
    for user in range(users):
        rows = [gradient[user].ravel().tolist() for gradient in gradients]
        wanted = np.array(adamw_oracle(start[user].ravel().tolist(), rows, recipe))
        assert_close_relative(f"user {user}", found[user].ravel(), wanted, 1e-4)


@given(recipe=recipes, seed=st.integers(0, 2**32))
def test_users_in_one_batch_have_the_bits_that_they_have_alone(recipe: LearningRecipe, seed: int) -> None:
    start, gradients = random_case(recipe, seed, 3, (4,))
    together = run(recipe, start, gradients)
    alone = [run(recipe, start[u : u + 1], [g[u : u + 1] for g in gradients]) for u in range(3)]
    assert np.array_equal(together, np.concatenate(alone))


def test_one_second_moment_for_a_tensor_keeps_the_direction_of_the_gradient() -> None:
    start, gradient = np.zeros((1, 2), np.float32), np.array([[3.0, 0.04]], np.float32)
    straight = run(LearningRecipe(steps=1, second_moment="tensor"), start, [gradient])
    assert straight[0, 1] / straight[0, 0] == pytest.approx(0.04 / 3.0)
    # One for each value turns it towards the diagonal: the first step is rate * sign(g).
    bent = run(LearningRecipe(steps=1, second_moment="element"), start, [gradient])
    assert bent[0].tolist() == pytest.approx([-0.3, -0.3])


def test_without_a_second_moment_a_step_is_as_long_as_the_gradient() -> None:
    start, gradient = np.zeros((1, 2), np.float32), np.array([[3.0, 0.04]], np.float32)
    once = run(LearningRecipe(steps=1, second_moment="none"), start, [gradient])
    assert once[0].tolist() == pytest.approx([-0.9, -0.012])
    named = run(LearningRecipe(steps=1, moments={"p": "none", "q": "element"}), start, [gradient])
    assert np.array_equal(named, once)


def test_values_without_a_gradient_stay() -> None:
    start = np.array([[1.5, -2.0]], np.float32)
    for moment in ("tensor", "element", "none"):
        recipe = LearningRecipe(steps=2, second_moment=moment)
        assert np.array_equal(run(recipe, start, [np.zeros_like(start)] * 2), start)


def test_the_arrays_given_are_left_alone_and_further_steps_have_no_rate() -> None:
    recipe = LearningRecipe(steps=1)
    start, gradient = np.ones((1, 2), np.float32), np.ones((1, 2), np.float32)
    once = run(recipe, start, [gradient])
    assert np.array_equal(run(recipe, start, [gradient] * 3), once)
    assert (start == 1).all()
    assert (gradient == 1).all()
