"""LoPA's prompt and its gradients in plain numpy, from the equations (Jain et al., NeurIPS 2024)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tests.oracles.encoder import Array, Arrays, IntArray, Method

TINY = {"rows": 3, "rank": 2, "width": 5}
"""Options of a small one."""
PREFIX = "methods.lopa."


class Oracle(Method):
    """Z = Z_S * 2 sigmoid(U_u (V + V_u S)^T + U(x) V(x)^T), or one of its two other forms.

    Add: Z_S + U_u (V + V_u S)^T + U(x) V(x)^T. Concat: Z_S * 2 sigmoid(U(x) V(x)^T), then the m rows
    Z_own + U_u (V + V_u S)^T. Which tensors there are says whether V_u and the heads are part of it.
    Without dropout, as at evaluation and on devices.
    """

    def __init__(self, weights: Arrays, options: Mapping[str, Any], owner: IntArray, profile: Arrays) -> None:
        super().__init__()
        own = {name: values for name, values in weights.items() if name.startswith(PREFIX)}
        self.shared = {n.removeprefix(PREFIX): np.asarray(v, np.float64) for n, v in own.items()}
        self.combine = options.get("combine", "product")
        self.standardise = options.get("standardise", True)
        self.owner = owner
        self.private = {n: np.asarray(v, np.float64) for n, v in profile.items() if n.startswith("lopa.")}
        self.grads = {name: np.zeros(values.shape) for name, values in {**own, **self.private}.items()}

    def prompt(self, embedded: Array, mask: IntArray) -> Array | None:
        """Returns the rows before each text: (batch, m, d), or (batch, 2 m, d) for concat."""
        self.rows = self.private["lopa.rows"][self.owner]  # U_u: (batch, m, r)
        self.basis = np.broadcast_to(self.shared["V"], (len(self.owner), *self.shared["V"].shape))
        if "lopa.columns" in self.private:
            self.basis = self.basis + self.private["lopa.columns"][self.owner] @ self.shared["S"]
        personal = np.einsum("bmr,bdr->bmd", self.rows, self.basis)
        instance = self._instance(embedded, mask)
        Z = self.shared["Z"]
        if self.combine == "add":
            return Z + personal + instance
        inner = instance if self.combine == "concat" else personal + instance
        self.gate = 2.0 / (1.0 + np.exp(-inner))
        if self.combine == "concat":
            return np.concatenate([Z * self.gate, self.shared["Z_own"] + personal], axis=1)
        return Z * self.gate

    def back_prompt(self, gradient: Array) -> None:
        """Notes the gradients of every shared tensor and of each user's factors."""
        Z = self.shared["Z"]
        if self.combine == "add":
            self._note("Z", gradient.sum(0))
            self._personal_back(gradient)
            self._instance_back(gradient)
            return
        of_rows = gradient[:, : len(Z)]
        self._note("Z", (of_rows * self.gate).sum(0))
        of_inner = of_rows * Z * self.gate * (1.0 - self.gate / 2.0)  # (2 s)' = 2 s (1 - s)
        self._instance_back(of_inner)
        if self.combine == "concat":
            self._note("Z_own", gradient[:, len(Z) :].sum(0))
            self._personal_back(gradient[:, len(Z) :])
        else:
            self._personal_back(of_inner)

    def _personal_back(self, gradient: Array) -> None:
        of_rows = np.einsum("bmd,bdr->bmr", gradient, self.basis)
        of_basis = np.einsum("bmd,bmr->bdr", gradient, self.rows)
        self._note("V", of_basis.sum(0))
        for row, user in enumerate(self.owner):
            self.grads["lopa.rows"][user] += of_rows[row]
            if "lopa.columns" in self.private:
                self.grads["lopa.columns"][user] += of_basis[row] @ self.shared["S"].T
                self._note("S", self.private["lopa.columns"][user].T @ of_basis[row])

    def _instance(self, embedded: Array, mask: IntArray) -> Array:
        """U(x) V(x)^T: (batch, m, d), zeros without heads."""
        m, d = self.shared["Z"].shape
        if "row_head.W1" not in self.shared:
            return np.zeros((len(embedded), m, d))
        means = [text[kept == 1].mean(0) for text, kept in zip(embedded, mask, strict=True)]
        e = np.stack(means)
        if self.standardise:
            e = (e - e.mean(1, keepdims=True)) / np.sqrt(e.var(1, keepdims=True) + 1e-6)
        self.e = e
        self.U = self._head("row_head").reshape(len(e), m, -1)
        self.V = self._head("column_head").reshape(len(e), d, -1)
        product: Array = np.einsum("bmr,bdr->bmd", self.U, self.V)
        return product

    def _instance_back(self, gradient: Array) -> None:
        if "row_head.W1" in self.shared:
            self._head_back("row_head", np.einsum("bmd,bdr->bmr", gradient, self.V))
            self._head_back("column_head", np.einsum("bmd,bmr->bdr", gradient, self.U))

    def _head(self, name: str) -> Array:
        W1, b1, W2, b2 = (self.shared[f"{name}.{part}"] for part in ("W1", "b1", "W2", "b2"))
        outputs: Array = np.tanh(self.e @ W1.T + b1) @ W2.T + b2
        return outputs

    def _head_back(self, name: str, gradient: Array) -> None:
        of_outputs = gradient.reshape(len(gradient), -1)  # (batch, outputs)
        hidden = np.tanh(self.e @ self.shared[f"{name}.W1"].T + self.shared[f"{name}.b1"])
        of_hidden = of_outputs @ self.shared[f"{name}.W2"] * (1.0 - hidden**2)
        self._note(f"{name}.W2", of_outputs.T @ hidden)
        self._note(f"{name}.b2", of_outputs.sum(0))
        self._note(f"{name}.W1", of_hidden.T @ self.e)
        self._note(f"{name}.b1", of_hidden.sum(0))

    def _note(self, name: str, gradient: Array) -> None:
        self.grads[PREFIX + name] += gradient
