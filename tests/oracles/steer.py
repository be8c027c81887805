"""Steer's equation and its gradients in plain numpy: the oracle of docs/adding_a_method.md's example."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tests.oracles.encoder import Array, Arrays, IntArray, Method

TINY = {"spread": 0.5}
"""Options of a small one."""


class Oracle(Method):
    """h = W x + b + g_u[l] v_l, where the feed-forward block of layer l ends."""

    def __init__(self, weights: Arrays, options: Mapping[str, Any], owner: IntArray, profile: Arrays) -> None:
        super().__init__()
        self.weights = weights
        self.owner = owner
        self.gains = np.asarray(profile["steer.gains"], np.float64)  # (users, L)
        self.grads = {"steer.gains": np.zeros_like(self.gains)}

    def at_site(self, site: str, x: Array, h: Array) -> Array | None:
        """Returns g_u[l] v_l: (batch, 1, d)."""
        if not site.endswith("_feed_forward"):
            return None
        gains = self.gains[self.owner, int(site.split("_")[1])]  # (batch,)
        value: Array = gains[:, None, None] * self._direction(site)
        return value

    def back_at_site(self, site: str, gradient: Array) -> tuple[Array | float, Array | float]:
        """Notes the gradients of v_l and of each user's g[l]; what was added depends on neither x nor h."""
        if site.endswith("_feed_forward"):
            layer, of_row = int(site.split("_")[1]), gradient.sum(1)  # (batch, d)
            self.grads[f"methods.steer.directions.{site}"] = self.gains[self.owner, layer] @ of_row
            np.add.at(self.grads["steer.gains"][:, layer], self.owner, of_row @ self._direction(site))
        return 0.0, 0.0

    def _direction(self, site: str) -> Array:
        return np.asarray(self.weights[f"methods.steer.directions.{site}"], np.float64)
