"""PLoRA's equation and its gradients in plain numpy, in the order of the paper (Zhang et al., AAAI 2024)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tests.oracles.encoder import Array, Arrays, IntArray, Method

TINY = {"rank": 3, "alpha": 6.0, "user_size": 5}
"""Options of a small one."""
PREFIX = "methods.plora.projections."


class Oracle(Method):
    """h = W x + b + s B (A x + P p_u) wherever the weights hold an A, P and B for the site.

    Without dropout, as at evaluation and on devices.
    """

    def __init__(self, weights: Arrays, options: Mapping[str, Any], owner: IntArray, profile: Arrays) -> None:
        super().__init__()
        self.weights = weights
        self.scale = options["alpha"] / options["rank"]
        self.owner = owner
        self.users = np.asarray(profile["plora.user"], np.float64)  # (users, d_u)
        self.inputs: dict[str, Array] = {}
        self.grads = {"plora.user": np.zeros_like(self.users)}

    def at_site(self, site: str, x: Array, h: Array) -> Array | None:
        """Returns s B (A x + P p_u): (batch, seq, d_out)."""
        if not self._acts_at(site):
            return None
        A, P, B = self._get(site, "A"), self._get(site, "P"), self._get(site, "B")
        self.inputs[site] = x
        value: Array = self.scale * self._low_rank(x, A, P) @ B.T
        return value

    def back_at_site(self, site: str, gradient: Array) -> tuple[Array | float, Array | float]:
        """Notes the gradients of A, P, B and of each user's p; returns those of x and h."""
        if not self._acts_at(site):
            return 0.0, 0.0
        A, P, B = self._get(site, "A"), self._get(site, "P"), self._get(site, "B")
        x = self.inputs[site]
        of_low_rank = self.scale * gradient @ B  # (batch, seq, r)
        of_personal = of_low_rank.sum(1)  # (batch, r): p is the same for every token
        self.grads[f"{PREFIX}{site}.B"] = self.scale * np.einsum(
            "bso,bsr->or", gradient, self._low_rank(x, A, P)
        )
        self.grads[f"{PREFIX}{site}.A"] = np.einsum("bsr,bsi->ri", of_low_rank, x)
        self.grads[f"{PREFIX}{site}.P"] = np.einsum("br,bu->ru", of_personal, self.users[self.owner])
        for row, user in enumerate(self.owner):
            self.grads["plora.user"][user] += of_personal[row] @ P
        return of_low_rank @ A, 0.0

    def _low_rank(self, x: Array, A: Array, P: Array) -> Array:
        personal = self.users[self.owner] @ P.T  # (batch, r)
        value: Array = x @ A.T + personal[:, None, :]
        return value

    def _acts_at(self, site: str) -> bool:
        return f"{PREFIX}{site}.A" in self.weights

    def _get(self, site: str, name: str) -> Array:
        return np.asarray(self.weights[f"{PREFIX}{site}.{name}"], np.float64)
