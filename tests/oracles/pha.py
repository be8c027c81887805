"""PHA's equations and their gradients in plain numpy (Zhao et al., EMNLP 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tests.oracles.encoder import (
    Array,
    Arrays,
    IntArray,
    Method,
    Normal,
    layer_norm,
    layer_norm_back,
    linear,
    softmax,
    softmax_back,
)

TINY = {
    "width": 3,
    "prototype_size": 5,
    "layer_size": 4,
    "hidden": 16,
    "code_size": 12,
    "prototypes": 5,
    "embedding_scale": 1.0,
    "start_scale": 1.0,
}
"""Options of a small one, whose adapters are of full size from the start."""
PREFIX = "methods.pha."
NET = PREFIX + "hypernetwork."
EPSILON = 1e-5


@dataclass(slots=True)
class _Tape:
    """What the backward of one layer's adapter needs of its forward; a row is an example."""

    joined: Array  # [k ; layer] (batch, size + layer_size)
    hidden: Array  # before the ReLU
    code_norm: Normal
    u: Array
    input_norm: Normal
    n: Array  # LN(x)
    down: Array
    inner: Array  # before the ReLU
    up: Array


class Oracle(Method):
    """FFN(x) + relu(LN(x) W_down + b_down) W_up + b_up, where x is the input of the feed-forward block.

    k = softmax(a) K + T k_u;  u = LN(second relu(first [k ; layer] + .) + .);  W_up, W_down, b_up, b_down are
    H u with a head H each, rows of H in the order of a matrix's entries, row by row.
    """

    def __init__(self, weights: Arrays, options: Mapping[str, Any], owner: IntArray, profile: Arrays) -> None:
        super().__init__()
        self.weights = weights
        self.width = options["width"]
        self.owner = owner
        self.users = np.asarray(profile["pha.prototype"], np.float64)  # (users, size)
        self.shares = softmax(self._get(PREFIX + "bank_weights"))  # (prototypes,)
        generic = self.shares @ self._get(PREFIX + "bank")
        self.k = generic + self.users[owner] @ self._get(PREFIX + "basis").T  # (batch, size)
        self.block_inputs: dict[str, Array] = {}
        self.pending: dict[str, Array] = {}
        self.tapes: dict[str, _Tape] = {}
        names = [name for name in weights if name.startswith(PREFIX) and ".retriever." not in name]
        self.grads = {name: np.zeros(weights[name].shape) for name in names}
        self.grads["pha.prototype"] = np.zeros_like(self.users)

    def at_site(self, site: str, x: Array, h: Array) -> Array | None:
        """Returns the adapter's output (batch, seq, d), where the feed-forward block ends."""
        layer, role = _place(site)
        if role == "feed_forward_in":
            self.block_inputs[layer] = x
        if role != "feed_forward":
            return None
        x = self.block_inputs[layer]
        batch, _, d = x.shape
        code = self._get(NET + "layers")[int(layer)]
        joined = np.concatenate([self.k, np.tile(code, (batch, 1))], axis=1)
        hidden = linear(joined, self._get(NET + "first"), self._get(NET + "first_bias"))
        mixed = linear(np.maximum(hidden, 0), self._get(NET + "second"), self._get(NET + "second_bias"))
        u, code_norm = layer_norm(
            mixed, self._get(NET + "norm.weight"), self._get(NET + "norm.bias"), EPSILON
        )
        n, input_norm = layer_norm(
            x, self._get(f"{NET}inputs.{layer}.weight"), self._get(f"{NET}inputs.{layer}.bias"), EPSILON
        )
        up = (u @ self._get(NET + "up").T).reshape(batch, self.width, d)
        down = (u @ self._get(NET + "down").T).reshape(batch, d, self.width)
        up_bias, down_bias = (u @ self._get(NET + name).T for name in ("up_bias", "down_bias"))
        inner = np.einsum("bsd,bdw->bsw", n, down) + down_bias[:, None]
        self.tapes[layer] = _Tape(joined, hidden, code_norm, u, input_norm, n, down, inner, up)
        value: Array = np.einsum("bsw,bwd->bsd", np.maximum(inner, 0), up) + up_bias[:, None]
        return value

    def back_at_site(self, site: str, gradient: Array) -> tuple[Array | float, Array | float]:
        """At the block's end notes all gradients; at its beginning hands back that of x."""
        layer, role = _place(site)
        if role == "feed_forward":
            self._back_adapter(layer, gradient)
        return (self.pending.pop(layer) if role == "feed_forward_in" else 0.0), 0.0

    def _back_adapter(self, layer: str, gradient: Array) -> None:
        tape = self.tapes[layer]
        of_up = np.einsum("bsw,bsd->bwd", np.maximum(tape.inner, 0), gradient)
        of_inner = np.einsum("bsd,bwd->bsw", gradient, tape.up) * (tape.inner > 0)
        of_down = np.einsum("bsd,bsw->bdw", tape.n, of_inner)
        of_n = np.einsum("bsw,bdw->bsd", of_inner, tape.down)
        self.grads[f"{NET}inputs.{layer}.weight"] += (of_n * tape.input_norm[0]).sum((0, 1))
        self.grads[f"{NET}inputs.{layer}.bias"] += of_n.sum((0, 1))
        self.pending[layer] = layer_norm_back(of_n, self._get(f"{NET}inputs.{layer}.weight"), tape.input_norm)
        batch = len(gradient)
        of_u = np.zeros_like(tape.u)
        for name, written in (
            ("up", of_up.reshape(batch, -1)),
            ("down", of_down.reshape(batch, -1)),
            ("up_bias", gradient.sum(1)),
            ("down_bias", of_inner.sum(1)),
        ):
            self.grads[NET + name] += written.T @ tape.u
            of_u += written @ self._get(NET + name)
        self._back_code(int(layer), tape, of_u)

    def _back_code(self, layer: int, tape: _Tape, of_u: Array) -> None:
        self.grads[NET + "norm.weight"] += (of_u * tape.code_norm[0]).sum(0)
        self.grads[NET + "norm.bias"] += of_u.sum(0)
        of_mixed = layer_norm_back(of_u, self._get(NET + "norm.weight"), tape.code_norm)
        self.grads[NET + "second"] += of_mixed.T @ np.maximum(tape.hidden, 0)
        self.grads[NET + "second_bias"] += of_mixed.sum(0)
        of_hidden = of_mixed @ self._get(NET + "second") * (tape.hidden > 0)
        self.grads[NET + "first"] += of_hidden.T @ tape.joined
        self.grads[NET + "first_bias"] += of_hidden.sum(0)
        of_joined = of_hidden @ self._get(NET + "first")
        size = self.users.shape[1]
        self.grads[NET + "layers"][layer] += of_joined[:, size:].sum(0)
        self._back_prototype(of_joined[:, :size])

    def _back_prototype(self, of_k: Array) -> None:
        bank, basis = self._get(PREFIX + "bank"), self._get(PREFIX + "basis")
        self.grads[PREFIX + "basis"] += of_k.T @ self.users[self.owner]
        for row, user in enumerate(self.owner):
            self.grads["pha.prototype"][user] += of_k[row] @ basis
        of_generic = of_k.sum(0)
        self.grads[PREFIX + "bank"] += np.outer(self.shares, of_generic)
        self.grads[PREFIX + "bank_weights"] += softmax_back(bank @ of_generic, self.shares)

    def _get(self, name: str) -> Array:
        return np.asarray(self.weights[name], np.float64)


def _place(site: str) -> tuple[str, str]:
    """layer_0_feed_forward_in -> 0 and feed_forward_in."""
    _, layer, role = site.split("_", 2)
    return layer, role
