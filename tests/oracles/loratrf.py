"""LoRATRF's equation and its gradients in plain numpy, from the equation in docs/methods/loratrf.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tests.oracles.encoder import Array, Arrays, IntArray, Method

TINY = {"rank": 3, "alpha": 6.0, "filter_rank": 2, "beta": 1.5}
"""Options of a small one."""
PREFIX = "methods.loratrf."
EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class _Tape:
    """What the backward of one site needs of its forward; t is what is filtered, o the low-rank update."""

    x: Array
    h: Array
    low: Array  # A x
    o: Array
    t: Array
    xi: Array  # (batch, d)
    cosine: Array  # (batch, seq); of the sigmoid gate: unused
    f: Array  # (batch, seq)
    g: Array  # (batch,)


class Oracle(Method):
    """out = h + o + beta D C (g f(h, xi) t), o = s B A x, t = h or o, wherever the weights hold an A."""

    def __init__(self, weights: Arrays, options: Mapping[str, Any], owner: IntArray, profile: Arrays) -> None:
        super().__init__()
        self.weights = weights
        self.options = options
        self.scale = options["alpha"] / options["rank"]
        self.owner = owner
        self.key = f"loratrf.{options['private']}"
        self.users = np.asarray(profile.get(self.key, np.zeros((0, 0))), np.float64)
        self.tapes: dict[str, _Tape] = {}
        self.grads = {name: np.zeros(w.shape) for name, w in weights.items() if name.startswith(PREFIX)}
        if options["private"] != "none":
            self.grads[self.key] = np.zeros_like(self.users)

    def at_site(self, site: str, x: Array, h: Array) -> Array | None:
        if f"{PREFIX}projections.{site}.A" not in self.weights:
            return None
        A, B, C, D = (self._get(f"projections.{site}.{name}") for name in "ABCD")
        low = x @ A.T
        o = self.scale * low @ B.T
        t = h if self.options["on"] == "h" else o
        xi, g = self._vectors(site), self._gates(site)
        product = np.einsum("bsd,bd->bs", h, xi)
        cosine = product / (_length(h) * _length(xi)[:, None])
        if self.options["gate"] == "sigmoid":
            f = 1.0 / (1.0 + np.exp(-product / np.sqrt(h.shape[-1])))
        else:
            f = np.minimum(np.maximum(cosine, 0.0), 1.0)
        self.tapes[site] = _Tape(x, h, low, o, t, xi, cosine, f, g)
        filtered = g[:, None, None] * f[..., None] * t
        value: Array = o + self.options["beta"] * filtered @ C.T @ D.T
        return value

    def back_at_site(self, site: str, gradient: Array) -> tuple[Array | float, Array | float]:
        if site not in self.tapes:
            return 0.0, 0.0
        tape, place = self.tapes[site], f"projections.{site}."
        A, B, C, D = (self._get(place + name) for name in "ABCD")
        filtered = tape.g[:, None, None] * tape.f[..., None] * tape.t
        of_low_filtered = self.options["beta"] * gradient @ D  # (batch, seq, r')
        self._add(place + "D", self.options["beta"] * np.einsum("bso,bsr->or", gradient, filtered @ C.T))
        self._add(place + "C", np.einsum("bsr,bsd->rd", of_low_filtered, filtered))
        of_filtered = of_low_filtered @ C  # (batch, seq, d)
        along = (of_filtered * tape.t).sum(-1)  # (batch, seq): d loss / d (g f)
        self._back_gates(site, (along * tape.f).sum(1))
        of_t = tape.g[:, None, None] * tape.f[..., None] * of_filtered
        of_h, of_xi = self._back_relevance(tape, along * tape.g[:, None])
        self._back_vectors(site, of_xi)
        of_o = gradient
        if self.options["on"] == "h":
            of_h = of_h + of_t
        else:
            of_o = of_o + of_t
        of_low = self.scale * of_o @ B
        self._add(place + "B", self.scale * np.einsum("bso,bsr->or", of_o, tape.low))
        self._add(place + "A", np.einsum("bsr,bsi->ri", of_low, tape.x))
        return of_low @ A, of_h

    def _back_relevance(self, tape: _Tape, of_f: Array) -> tuple[Array, Array]:
        """Returns the gradients of h (batch, seq, d) and of each row's xi (batch, d)."""
        if self.options["gate"] == "sigmoid":
            of_product = of_f * tape.f * (1.0 - tape.f) / np.sqrt(tape.h.shape[-1])
            return of_product[..., None] * tape.xi[:, None], np.einsum("bs,bsd->bd", of_product, tape.h)
        of_cosine = of_f * ((tape.cosine >= 0.0) & (tape.cosine <= 1.0))
        lengths, length = _length(tape.h), _length(tape.xi)[:, None]
        of_product = of_cosine / (lengths * length)
        # |v| = sqrt(v.v + eps) has the gradient v / |v|, and 1 / |v| therefore -v / |v|^3.
        of_h = of_product[..., None] * tape.xi[:, None]
        of_h = of_h - (of_cosine * tape.cosine / lengths**2)[..., None] * tape.h
        of_xi = np.einsum("bs,bsd->bd", of_product, tape.h)
        of_xi = of_xi - (of_cosine * tape.cosine).sum(1)[:, None] * tape.xi / length**2
        return of_h, of_xi

    def _vector(self, site: str) -> str:
        layer = site.rpartition("_")[0]  # "layer_0_query" -> "layer_0"
        return {"projection": site, "layer": layer, "shared": "all"}[self.options["vectors"]]

    def _vectors(self, site: str) -> Array:
        """xi, or xi + S s_u, of every row: (batch, d)."""
        xi = self._get(f"xi.{self._vector(site)}")
        if self.options["private"] != "shift":
            return np.tile(xi, (len(self.owner), 1))
        S = self._get(f"S.{self._vector(site)}")
        return np.stack([xi + S @ self.users[user] for user in self.owner])

    def _back_vectors(self, site: str, of_xi: Array) -> None:
        self._add(f"xi.{self._vector(site)}", of_xi.sum(0))
        if self.options["private"] == "shift":
            S = self._get(f"S.{self._vector(site)}")
            for row, user in enumerate(self.owner):
                self._add(f"S.{self._vector(site)}", np.outer(of_xi[row], self.users[user]))
                self.grads[self.key][user] += S.T @ of_xi[row]

    def _gates(self, site: str) -> Array:
        """1 + (G g_u)_l of every row: (batch,)."""
        if self.options["private"] != "gates":
            return np.ones(len(self.owner))
        own = self._get("G")[int(site.split("_")[1])]
        return np.array([1.0 + own @ self.users[user] for user in self.owner])

    def _back_gates(self, site: str, gradient: Array) -> None:
        if self.options["private"] == "gates":
            layer = int(site.split("_")[1])
            for row, user in enumerate(self.owner):
                self.grads[PREFIX + "G"][layer] += gradient[row] * self.users[user]
                self.grads[self.key][user] += gradient[row] * self._get("G")[layer]

    def _add(self, name: str, gradient: Array) -> None:
        self.grads[PREFIX + name] += gradient

    def _get(self, name: str) -> Array:
        return np.asarray(self.weights[PREFIX + name], np.float64)


def _length(v: Array) -> Array:
    value: Array = np.sqrt((v * v).sum(-1) + EPSILON)
    return value
