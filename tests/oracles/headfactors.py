"""A private mix of shared heads and its gradients in plain numpy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tests.oracles.encoder import Array, Arrays, IntArray, Method

TINY = {"user_size": 5}
"""Options of a small one."""
PREFIX = "methods.headfactors."


class Oracle(Method):
    """z = z + sum_j p_u[j] (M_j e + m_j), p_u (d_u,) of the text's owner u, e (d,) its embedding."""

    def __init__(self, weights: Arrays, options: Mapping[str, Any], owner: IntArray, profile: Arrays) -> None:
        super().__init__()
        self.M = np.asarray(weights[PREFIX + "M"], np.float64)  # (d_u, labels, d)
        self.m = np.asarray(weights[PREFIX + "m"], np.float64)  # (d_u, labels)
        self.owner = owner
        self.users = np.asarray(profile["headfactors.user"], np.float64)  # (users, d_u)
        self.embedding = np.zeros((0, 0))

    def at_logits(self, logits: Array, embedding: Array) -> Array | None:
        """Returns sum_j p_u[j] (M_j e + m_j): (batch, labels)."""
        self.embedding = embedding
        added = np.zeros_like(logits)
        for row, user in enumerate(self.owner):
            for j, weight in enumerate(self.users[user]):
                added[row] += weight * (self.M[j] @ embedding[row] + self.m[j])
        return added

    def back_at_logits(self, gradient: Array) -> Array | float:
        """Fills the gradients of M, m and p; returns sum_j p_u[j] M_j^T of the gradient: (batch, d)."""
        of_users, of_heads, of_offsets = (np.zeros_like(part) for part in (self.users, self.M, self.m))
        of_embedding = np.zeros_like(self.embedding)
        for row, user in enumerate(self.owner):
            for j, weight in enumerate(self.users[user]):
                of_users[user, j] += gradient[row] @ (self.M[j] @ self.embedding[row] + self.m[j])
                of_heads[j] += weight * np.outer(gradient[row], self.embedding[row])
                of_offsets[j] += weight * gradient[row]
                of_embedding[row] += weight * (self.M[j].T @ gradient[row])
        self.grads = {"headfactors.user": of_users, PREFIX + "M": of_heads, PREFIX + "m": of_offsets}
        return of_embedding
