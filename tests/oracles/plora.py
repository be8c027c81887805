"""PLoRA's equation and its gradients in plain numpy, in the order of the paper (Zhang et al., AAAI 2024)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tests.oracles.encoder import Array, IntArray

PREFIX = "methods.plora.projections."


class PLoRA:
    """h = W x + b + s B (A x + P p_u) wherever the weights hold an A, P and B for the site.

    Without dropout, as at evaluation and on devices. `grads` fills up during the backward pass.
    """

    def __init__(
        self, weights: Mapping[str, npt.NDArray[Any]], scale: float, owner: IntArray, users: Array
    ) -> None:
        """Takes every parameter by name, s, whose text each row is (batch,) and p (users, d_u)."""
        self.weights = weights
        self.scale = scale
        self.owner = owner
        self.users = users
        self.inputs: dict[str, Array] = {}
        self.grads: dict[str, Array] = {"plora.user": np.zeros_like(users)}

    def at_site(self, site: str, x: Array, h: Array) -> Array:
        """Returns s B (A x + P p_u): (batch, seq, d_out)."""
        if not self._acts_at(site):
            return np.zeros_like(h)
        A, P, B = self._get(site, "A"), self._get(site, "P"), self._get(site, "B")
        self.inputs[site] = x
        value: Array = self.scale * self._low_rank(x, A, P) @ B.T
        return value

    def back_at_site(self, site: str, gradient: Array) -> tuple[Array, Array]:
        """Notes the gradients of A, P, B and of each user's p; returns those of x and h."""
        if not self._acts_at(site):
            width_in = self.weights[self._path_of(site)].shape[1]
            return np.zeros((*gradient.shape[:2], width_in)), np.zeros_like(gradient)
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
        return of_low_rank @ A, np.zeros_like(gradient)

    def _low_rank(self, x: Array, A: Array, P: Array) -> Array:
        personal = self.users[self.owner] @ P.T  # (batch, r)
        value: Array = x @ A.T + personal[:, None, :]
        return value

    def _acts_at(self, site: str) -> bool:
        return f"{PREFIX}{site}.A" in self.weights

    def _path_of(self, site: str) -> str:
        _, layer, role = site.split("_", 2)
        kind = "output.dense" if role == "feed_forward" else f"attention.self.{role}"
        return f"encoder.encoder.layer.{layer}.{kind}.base.weight"

    def _get(self, site: str, name: str) -> Array:
        return np.asarray(self.weights[f"{PREFIX}{site}.{name}"], np.float64)
