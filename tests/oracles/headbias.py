"""A private bias per label and its gradient in plain numpy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tests.oracles.encoder import Array, Arrays, IntArray, Method

TINY = {"scale": 0.7}
"""Options of a small one."""


class Oracle(Method):
    """z = z + scale b_u, b_u (labels,) of the text's owner u."""

    def __init__(self, weights: Arrays, options: Mapping[str, Any], owner: IntArray, profile: Arrays) -> None:
        super().__init__()
        self.scale = options["scale"]
        self.owner = owner
        self.users = np.asarray(profile["headbias.bias"], np.float64)  # (users, labels)
        self.grads = {"headbias.bias": np.zeros_like(self.users)}

    def at_logits(self, logits: Array, embedding: Array) -> Array | None:
        """Returns scale b_u: (batch, labels)."""
        return np.stack([self.scale * self.users[user] for user in self.owner])

    def back_at_logits(self, gradient: Array) -> Array | float:
        """The gradient of b_u is scale times the sum of the gradients of u's logits."""
        for row, user in enumerate(self.owner):
            self.grads["headbias.bias"][user] += self.scale * gradient[row]
        return 0.0
