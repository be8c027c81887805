"""AdamW in numpy, for many users at once: each user's numbers are those that they would have alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np

from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe


@final
class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) over tensors (users, *shape), with a rate that falls linearly to 0.

        m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
        x <- x - rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) - rate decay x

    With `second_moment = "tensor"`, g^2 is the mean of g^2 over one user's tensor. With "none", nothing
    divides the mean gradient: x <- x - rate m / (1 - b1^t) - rate decay x.
    """

    def __init__(self, recipe: LearningRecipe):
        self.recipe = recipe
        self.step_count = 0
        self._mean: dict[str, FloatArray] = {}
        self._square: dict[str, FloatArray] = {}

    def state(self) -> dict[str, FloatArray]:
        """Returns the moments of every tensor: "mean/<name>" and, where it has one, "square/<name>"."""
        found = {f"mean/{name}": values for name, values in self._mean.items()}
        return found | {f"square/{name}": values for name, values in self._square.items()}

    def restore(self, step_count: int, state: Mapping[str, FloatArray]) -> None:
        """Goes on after so many steps from what `state` gave then; other names in it are passed over."""
        self.step_count = step_count
        self._mean = {name[5:]: values for name, values in state.items() if name.startswith("mean/")}
        self._square = {name[7:]: values for name, values in state.items() if name.startswith("square/")}

    def step(
        self, values: Mapping[str, FloatArray], gradients: Mapping[str, FloatArray]
    ) -> dict[str, FloatArray]:
        """Returns the values after one step; the arrays given are left as they are."""
        share_left = max(0.0, 1.0 - self.step_count / max(self.recipe.steps, 1))
        self.step_count += 1
        return {
            name: self._moved(name, values[name], gradients[name], self.recipe.rate_of(name) * share_left)
            for name in values
        }

    def _moved(self, name: str, value: FloatArray, gradient: FloatArray, rate: float) -> FloatArray:
        recipe = self.recipe
        self._mean[name] = _mixed(self._mean.get(name), gradient, recipe.beta1)
        direction: FloatArray = self._mean[name] / np.float32(1 - recipe.beta1**self.step_count)
        if recipe.moment_of(name) != "none":
            direction = direction / (self._root(name, gradient) + np.float32(recipe.epsilon))
        direction = direction + np.float32(recipe.weight_decay) * value
        return np.asarray(value - np.float32(rate) * direction, np.float32)

    def _root(self, name: str, gradient: FloatArray) -> FloatArray:
        """Takes a squared gradient in; returns the root of their mean, one per value or one per tensor."""
        recipe = self.recipe
        square: FloatArray = np.square(gradient)
        if recipe.moment_of(name) == "tensor":
            square = np.mean(square, axis=tuple(range(1, gradient.ndim)), keepdims=True)
        self._square[name] = _mixed(self._square.get(name), square, recipe.beta2)
        root: FloatArray = np.sqrt(self._square[name] / np.float32(1 - recipe.beta2**self.step_count))
        return root


def _mixed(old: FloatArray | None, new: FloatArray, decay: float) -> FloatArray:
    """Returns decay * old + (1 - decay) * new; what was never seen counts as 0."""
    fresh: FloatArray = np.float32(1 - decay) * new
    return fresh if old is None else np.float32(decay) * old + fresh
