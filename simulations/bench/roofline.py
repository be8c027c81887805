"""The matrix products of a person's part in a round: what they compute, and what they touch.

A product (m, k) x (k, n) computes 2 m k n FLOP. It touches 4 (m k + k n + m n) bytes: both operands are read
once and the result is written once, in float32. What is elementwise goes along with them. With d the width, f
the feed-forward width, h heads, t tokens of n texts, T = n t, r and u PLoRA's rank and size of a vector, and
c labels:

    forward, a layer   4 (T, d, d), (T, d, f), (T, f, d), n h of (t, d/h, t) and of (t, t, d/h)
    PLoRA, a layer     at query and value (T, d, r) and (T, r, d)
    PLoRA, at all      (n, u, r sites)
    the head           (n, d, c)

A private step goes back to what is private and no further: each product has one for its input's gradient,
attention's have one for each operand. In the first layer the projections' inputs are nobody's, and so are
the keys. A shared step goes back to A and the head's weights: (r, T, d) at each site and (c, n, d) are added,
what leads to the vector is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from umbel.shared.release import Release

COMPUTED, TOUCHED = "a round, by its FLOP alone", "a round, by its bytes alone"
"""What the rows are called that compare a round with the least that it needs on this machine."""
_FLOAT = 4  # bytes
_SITES = 2  # of a layer: query and value


@final
@dataclass(frozen=True, slots=True)
class Product:
    """So many products (m, k) x (k, n)."""

    m: int
    k: int
    n: int
    times: float = 1

    @property
    def flop(self) -> float:
        """A multiplication and an addition for each."""
        return 2.0 * self.m * self.k * self.n * self.times

    @property
    def touched(self) -> float:
        """Bytes of both operands and of the result."""
        return float(_FLOAT * (self.m * self.k + self.k * self.n + self.m * self.n)) * self.times


@final
@dataclass(frozen=True, slots=True)
class Work:
    """What some products compute, in FLOP, and touch, in bytes."""

    flop: float
    touched: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flop + other.flop, self.touched + other.touched)

    def __mul__(self, times: float) -> Work:
        return Work(self.flop * times, self.touched * times)


@final
@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of an encoder and of what is around it: the symbols of this module's first lines.

    Attributes:
        layers: Of the encoder.
        width: d.
        inner: f.
        heads: h.
        labels: c.
        rank: r; 0 without PLoRA.
        vector: u; 0 without PLoRA.
    """

    layers: int
    width: int
    inner: int
    heads: int
    labels: int
    rank: int = 0
    vector: int = 0

    @property
    def sites(self) -> int:
        """Sites of PLoRA."""
        return _SITES * self.layers if self.rank else 0


def sizes_of(release: Release, backbone: Path) -> Sizes:
    """Returns the sizes of a release of an encoder.

    Args:
        release: Of PLoRA, or of a private bias alone.
        backbone: Folder of the encoder, for config.json.
    """
    config = json.loads((backbone / "config.json").read_bytes())
    options = release.manifest.methods.get("plora", {})
    return Sizes(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=config["num_attention_heads"],
        labels=len(release.manifest.labels),
        rank=options.get("rank", 0),
        vector=options.get("user_size", 0),
    )


def reading(sizes: Sizes, texts: int, tokens: int) -> Work:
    """Returns the work of reading texts, each so many tokens long."""
    return _work(_forward(sizes, texts, tokens))


def private_step(sizes: Sizes, texts: int, tokens: int) -> Work:
    """Returns the work of the gradient by a private vector inside the encoder."""
    back = [*_back(sizes, texts, tokens), Product(texts, sizes.rank * sizes.sites, sizes.vector)]
    return _work([*_forward(sizes, texts, tokens), *back])


def shared_step(sizes: Sizes, texts: int, tokens: int) -> Work:
    """Returns the work of the gradient by PLoRA's A and the head's weights."""
    own = [
        Product(sizes.rank, texts * tokens, sizes.width, sizes.sites),
        Product(sizes.labels, texts, sizes.width),
    ]
    return _work([*_forward(sizes, texts, tokens), *_back(sizes, texts, tokens), *own])


def private_step_behind(sizes: Sizes, texts: int) -> Work:
    """Returns the work of the gradient by a private bias, of texts that were read."""
    return _work([Product(texts, sizes.width, sizes.labels)])


def shared_step_behind(sizes: Sizes, texts: int) -> Work:
    """Returns the work of the gradient by the head's weights, of texts that were read."""
    return _work([Product(texts, sizes.width, sizes.labels), Product(sizes.labels, texts, sizes.width)])


def _work(products: Iterable[Product]) -> Work:
    found = list(products)
    return Work(sum(own.flop for own in found), sum(own.touched for own in found))


def _forward(sizes: Sizes, texts: int, tokens: int) -> Sequence[Product]:
    every, d, f, r = texts * tokens, sizes.width, sizes.inner, sizes.rank
    head, layers = d // sizes.heads, sizes.layers
    attended = layers * texts * sizes.heads
    return [
        Product(every, d, d, 4 * layers),
        Product(every, d, f, layers),
        Product(every, f, d, layers),
        Product(tokens, head, tokens, attended),
        Product(tokens, tokens, head, attended),
        Product(every, d, r, sizes.sites),
        Product(every, r, d, sizes.sites),
        Product(texts, sizes.vector, r * sizes.sites),
        Product(texts, d, sizes.labels),
    ]


def _back(sizes: Sizes, texts: int, tokens: int) -> Sequence[Product]:
    """Returns what leads from the loss to the sites: gradients by the inputs of products."""
    every, d, f, r = texts * tokens, sizes.width, sizes.inner, sizes.rank
    head, layers, above = d // sizes.heads, sizes.layers, sizes.layers - 1
    heads = texts * sizes.heads
    return [
        Product(texts, sizes.labels, d),
        Product(every, d, f, layers),
        Product(every, f, d, layers),
        Product(every, d, d, layers),  # attention's output
        Product(tokens, head, tokens, layers * heads),  # attention's shares
        Product(tokens, tokens, head, (2 * layers + above) * heads),  # values, queries; keys above the first
        Product(every, d, r, sizes.sites),
        Product(every, r, d, _SITES * above),
        Product(every, d, d, 3 * above),
    ]
