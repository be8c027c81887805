"""Few-shot learning reaches the optimum that algebra gives, for every user of a batch."""

from collections.abc import Mapping

import numpy as np
import pytest
from tests.oracles.learning import quadratic_map

from umbel.shared.learning import minimise
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import generator

USERS, SIZE = 3, 4
RNG_PLACE = (0, 0, "", "quadratic")


def problem() -> tuple[FloatArray, FloatArray, FloatArray]:
    """Returns curvature (users, n, n), positive definite, target and origin (users, n)."""
    rng = generator(*RNG_PLACE)
    root = rng.normal(0, 1, (USERS, SIZE, SIZE))
    curvature = root @ root.transpose(0, 2, 1) + np.eye(SIZE)
    target, origin = rng.normal(0, 1, (2, USERS, SIZE))
    return curvature.astype(np.float32), target.astype(np.float32), origin.astype(np.float32)


@pytest.mark.parametrize("moment", ["tensor", "element"])
@pytest.mark.parametrize("prior", [0.0, 1.0, 30.0])
def test_a_quadratic_loss_gives_the_map_solution(moment: str, prior: float) -> None:
    curvature, target, origin = problem()

    def gradients_at(profile: Mapping[str, FloatArray]) -> tuple[FloatArray, dict[str, FloatArray]]:
        gap = profile["p"] - target
        pull = np.einsum("uij,uj->ui", curvature, gap)
        return 0.5 * (pull * gap).sum(1), {"p": pull}

    recipe = LearningRecipe(steps=3000, learning_rate=0.05, prior_strength=prior, second_moment=moment)
    found = minimise(gradients_at, {"p": origin}, recipe)["p"]
    for user in range(USERS):
        H, t, p0 = (array[user].astype(np.float64) for array in (curvature, target, origin))
        wanted = quadratic_map(H, t, prior, p0)
        assert found[user] == pytest.approx(wanted, abs=2e-3)


def test_every_step_is_told_with_the_mean_nll_before_it() -> None:
    def gradients_at(profile: Mapping[str, FloatArray]) -> tuple[FloatArray, dict[str, FloatArray]]:
        p = profile["p"]
        return np.array([p[0, 0], p[0, 0] + 2], np.float32), {"p": np.ones_like(p)}

    told: list[tuple[int, float]] = []
    recipe = LearningRecipe(steps=2, learning_rate=0.5, prior_strength=0.0)
    minimise(
        gradients_at, {"p": np.zeros((1, 1), np.float32)}, recipe, on_step=lambda n, x: told.append((n, x))
    )
    # The gradient is 1 throughout, so that the first step goes down by the rate.
    assert told == [(1, 1.0), (2, pytest.approx(0.5))]


def test_no_steps_give_the_origin() -> None:
    origin = {"p": np.ones((1, 2), np.float32)}
    assert minimise(lambda _: pytest.fail("called"), origin, LearningRecipe(steps=0)) == origin
