"""X-PEFT's equations and their gradients in plain numpy, in the order of the paper (Kwak & Kim, 2024)."""

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
    gelu,
    gelu_back,
    layer_norm,
    layer_norm_back,
    softmax,
    softmax_back,
)

TINY = {"adapters": 7, "width": 8, "kept": 3, "temperature": 0.7, "spread": 0.1, "dead_zone": 0.0}
"""Options of a small one; LayerNorm over fewer values than 8 can take nearly equal ones apart by rounding.

Without a dead zone: in it all up-masks may be equal, and the mean of the B_i is zero but for rounding."""
PREFIX = "methods.xpeft.banks."


@dataclass(slots=True)
class _Tape:
    """What the backward of one layer needs of its forward."""

    h: Array
    masks: tuple[Array, Array]
    adapter: tuple[Array, Array]
    normal: Normal
    inner: Array


class Oracle(Method):
    """h + act(LN(h A_u)) B_u, A_u = sum_i Ma_i A_i, B_u = sum_i Mb_i B_i, wherever the weights hold a bank.

    The gradient of a hard mask is, by straight-through, that of the softmax of its logits.
    """

    def __init__(self, weights: Arrays, options: Mapping[str, Any], owner: IntArray, profile: Arrays) -> None:
        super().__init__()
        self.weights = weights
        self.options = options
        self.owner = owner
        self.logits = {name: np.asarray(profile[f"xpeft.{name}"], np.float64) for name in ("down", "up")}
        self.tapes: dict[str, _Tape] = {}
        self.grads = {f"xpeft.{name}": np.zeros_like(values) for name, values in self.logits.items()}

    def at_site(self, site: str, x: Array, h: Array) -> Array | None:
        """Returns act(LN(h A_u)) B_u, row by row: (batch, seq, d)."""
        if f"{PREFIX}{site}.down" not in self.weights:
            return None
        layer = int(site.split("_")[1])
        of_down = self._masks(self.logits["down"][self.owner, layer])  # (batch, N)
        of_up = self._masks(self.logits["up"][self.owner, layer])
        if self.options["bank"] == "random" and self.options["centred"]:
            of_up = of_up - of_up.mean(-1, keepdims=True)
        A = np.einsum("bn,ndw->bdw", of_down, self._get(site, "down"))
        B = np.einsum("bn,nwd->bwd", of_up, self._get(site, "up"))
        scaled, normal = layer_norm(
            np.einsum("bsd,bdw->bsw", h, A),
            self._get(site, "norm_weight"),
            self._get(site, "norm_bias"),
            1e-5,
        )
        self.tapes[site] = _Tape(h, (of_down, of_up), (A, B), normal, scaled)
        return np.asarray(np.einsum("bsw,bwd->bsd", self._act(scaled), B))

    def back_at_site(self, site: str, gradient: Array) -> tuple[Array | float, Array | float]:
        """Notes the gradients of the bank, of LayerNorm and of each user's logits; returns that of h."""
        if site not in self.tapes:
            return 0.0, 0.0
        tape = self.tapes[site]
        A, B = tape.adapter
        of_B = np.einsum("bsw,bsd->bwd", self._act(tape.inner), gradient)
        of_inner = self._act_back(np.einsum("bsd,bwd->bsw", gradient, B), tape.inner)
        of_low = layer_norm_back(of_inner, self._get(site, "norm_weight"), tape.normal)
        of_A = np.einsum("bsd,bsw->bdw", tape.h, of_low)
        self.grads[f"{PREFIX}{site}.norm_weight"] = (of_inner * tape.normal[0]).sum((0, 1))
        self.grads[f"{PREFIX}{site}.norm_bias"] = of_inner.sum((0, 1))
        for name, mask, of_mixed in zip(("down", "up"), tape.masks, (of_A, of_B), strict=True):
            self._back_mix(site, name, mask, of_mixed)
        return 0.0, np.einsum("bsw,bdw->bsd", of_low, A)

    def _back_mix(self, site: str, name: str, mask: Array, of_mixed: Array) -> None:
        bank, layer = self._get(site, name), int(site.split("_")[1])
        if self.options["bank"] == "trained":
            self.grads[f"{PREFIX}{site}.{name}"] = np.einsum("bn,bij->nij", mask, of_mixed)
        of_mask = np.einsum("nij,bij->bn", bank, of_mixed)
        for row, user in enumerate(self.owner):
            soft = softmax(self.logits[name][user, layer] / self.options["temperature"])
            of_logits = softmax_back(of_mask[row], soft) / self.options["temperature"]
            self.grads[f"xpeft.{name}"][user, layer] += of_logits

    def _masks(self, logits: Array) -> Array:
        """Returns a mask per row of (batch, N): a softmax, or equal shares where fewer than k are larger.

        Before that a hard mask takes logits for 0 that are nearer to it than the dead zone, in float32.
        """
        if self.options["mask"] == "soft":
            return softmax(logits / self.options["temperature"])
        masks = np.zeros_like(logits)
        zone = float(np.float32(self.options.get("dead_zone", 0.0)))
        for number, raw in enumerate(logits):
            row = [0.0 if -zone < value < zone else value for value in raw]
            chosen = np.array([sum(other > own for other in row) < self.options["kept"] for own in row])
            masks[number] = chosen / chosen.sum()
        return masks

    def _act(self, x: Array) -> Array:
        if self.options["activation"] == "gelu":
            return gelu(x)
        return np.asarray(np.maximum(x, 0.0) if self.options["activation"] == "relu" else np.tanh(x))

    def _act_back(self, gradient: Array, x: Array) -> Array:
        if self.options["activation"] == "gelu":
            return gelu_back(gradient, x)
        slope = x > 0 if self.options["activation"] == "relu" else 1.0 - np.tanh(x) ** 2
        return np.asarray(gradient * slope)

    def _get(self, site: str, name: str) -> Array:
        return np.asarray(self.weights[f"{PREFIX}{site}.{name}"], np.float64)


def grown(bank: Array, noise: Array) -> Array:
    """Returns a bank (N, *shape) and n adapters more: its mean, and noise of its spread that sums to zero."""
    mean = sum(adapter for adapter in bank) / len(bank)
    change = [each - sum(noise) / len(noise) for each in noise]
    spread = np.sqrt(sum(((adapter - mean) ** 2).sum() for adapter in bank) / bank.size)
    size = np.sqrt(sum((each**2).sum() for each in change) / noise.size)
    return np.array([*bank, *(mean + (each * spread / size if size else each) for each in change)])
