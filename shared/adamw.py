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

    With `second_moment = "tensor"`, g^2 is the mean of g^2 over one user's tensor.
    """

    def __init__(self, recipe: LearningRecipe):
        self.recipe = recipe
        self.step_count = 0
        self._mean: dict[str, FloatArray] = {}
        self._square: dict[str, FloatArray] = {}

    def step(self, values: Mapping[str, FloatArray], gradients: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Returns the values after one step; the arrays given are left as they are."""
        rate = self.recipe.learning_rate * (1.0 - self.step_count / max(self.recipe.steps, 1))
        self.step_count += 1
        return {name: self._moved(name, values[name], gradients[name], rate) for name in values}

    def _moved(self, name: str, value: FloatArray, gradient: FloatArray, rate: float) -> FloatArray:
        recipe = self.recipe
        square = np.square(gradient)
        if recipe.second_moment == "tensor":
            axes = tuple(range(1, gradient.ndim))
            square = square.mean(axis=axes, keepdims=True)
        self._mean[name] = recipe.beta1 * self._mean.get(name, np.float32(0)) + (1 - recipe.beta1) * gradient
        self._square[name] = recipe.beta2 * self._square.get(name, np.float32(0)) + (1 - recipe.beta2) * square
        mean = self._mean[name] / (1 - recipe.beta1**self.step_count)
        root = np.sqrt(self._square[name] / (1 - recipe.beta2**self.step_count))
        moved = value - rate * mean / (root + recipe.epsilon) - rate * recipe.weight_decay * value
        return moved.astype(np.float32)
