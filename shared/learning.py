"""Few-shot learning itself, whoever computes the gradients: onnxruntime on a device, torch elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
import numpy.typing as npt

from umbel.shared.adamw import AdamW
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe

Gradients = Callable[[Mapping[str, FloatArray]], tuple[FloatArray, dict[str, FloatArray]]]


@final
class Descent:
    """Few-shot learning of some users, one step at a time; `minimise` says what it minimises.

    Attributes:
        profile: What has been reached: name -> (users, *shape).
    """

    def __init__(self, origin: Mapping[str, FloatArray], recipe: LearningRecipe):
        """Begins at the origin, to which the prior pulls."""
        self.recipe = recipe
        self.profile: dict[str, FloatArray] = dict(origin)
        self._origin = origin
        self._optimizer = AdamW(recipe)

    @property
    def steps(self) -> int:
        """Steps that have been made."""
        return self._optimizer.step_count

    @property
    def finished(self) -> bool:
        """Whether the recipe's steps have been made."""
        return self.steps >= self.recipe.steps

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns what it takes to go on from here to the same numbers, each array by its name."""
        own = {f"profile/{name}": values for name, values in self.profile.items()}
        return {"steps": np.array([self.steps]), **own, **self._optimizer.state()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on from what `state` gave, of a learning with the same origin and recipe.

        Raises:
            KeyError: Something is missing in it.
        """
        self.profile = {name: state[f"profile/{name}"] for name in self._origin}
        self._optimizer.restore(int(state["steps"][0]), state)

    def step(self, gradients: Mapping[str, FloatArray]) -> None:
        """Makes a step by the gradients of the summed nll, each (users, *shape)."""
        pulled = {
            name: gradient + self.recipe.prior_of(name) * (self.profile[name] - self._origin[name])
            for name, gradient in gradients.items()
        }
        self.profile = self._optimizer.step(self.profile, pulled)


def minimise(
    gradients_at: Gradients,
    origin: Mapping[str, FloatArray],
    recipe: LearningRecipe,
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, FloatArray]:
    """Minimises, for each user, sum_i nll_i + prior_strength / 2 |profile - origin|^2.

    Args:
        gradients_at: profile -> (nll of every example (batch,), gradient of their sum for every tensor
            (users, *shape)).
        origin: What the prior pulls to, and where to start: (users, *shape).
        recipe: Steps, rates, prior.
        on_step: Called after every step with its number (from 1) and the mean nll before it.

    Returns:
        name -> (users, *shape) float32.
    """
    descent = Descent(origin, recipe)
    while not descent.finished:
        nll, gradients = gradients_at(descent.profile)
        descent.step(gradients)
        if on_step is not None:
            on_step(descent.steps, float(nll.mean()))
    return descent.profile
