"""Learning in one plain loop: every piece of every step, nothing kept in between."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from umbel.shared.adamw import AdamW
from umbel.shared.recipe import LearningRecipe

Array = npt.NDArray[np.float32]
Gradients = tuple[Array, dict[str, Array]]


def learned_in_a_loop(
    origin: Mapping[str, Array],
    recipe: LearningRecipe,
    pieces: Sequence[Callable[[Mapping[str, Array]], Gradients]],
) -> tuple[dict[str, Array], list[float]]:
    """Returns profiles (users, *shape), and the mean nll before each step.

    Args:
        origin: Where to start, and what the prior pulls to.
        recipe: Steps, rates, prior.
        pieces: Each gives, at a profile, the nll of its examples and the gradients of their sum.
    """
    optimizer, profile, told = AdamW(recipe), dict(origin), []
    for _ in range(recipe.steps):
        found = [piece(profile) for piece in pieces]
        told.append(float(np.concatenate([nll for nll, _ in found]).mean()))
        total = {name: np.sum([part[name] for _, part in found], axis=0) for name in origin}
        pulled = {
            name: total[name] + recipe.prior_of(name) * (profile[name] - origin[name]) for name in origin
        }
        profile = optimizer.step(profile, pulled)
    return profile, told
