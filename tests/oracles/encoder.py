"""BERT's encoder in plain float64 numpy, forward and backward by hand, a pair of functions per operation.

Slow on purpose: it is read beside the paper's equations. The encoder's own weights get no gradient; one runs
through it to whatever acts at its sites, and to nothing else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[Any]]
Normal = tuple[Array, Array]  # what LayerNorm's backward needs: normalised input, deviation

_erf = np.vectorize(math.erf, otypes=[np.float64])


class Method:
    """A method's oracle: what it adds, and what of it; one that overrides nothing adds nothing.

    The backward functions are called in the opposite order of the forward ones, each once. They fill `grads`.
    A method's file holds the class under the name `Oracle`, made from (every parameter by name, the method's
    options, whose text each row is (batch,), the profile: private tensors by name (users, *shape)).

    Attributes:
        grads: Gradients by name: shared tensors as the model names its parameters, private ones
            (users, *shape) as the profile names them. Every tensor of the method is there in the end.
    """

    def __init__(self) -> None:
        self.grads: dict[str, Array] = {}

    def prompt(self, embedded: Array, mask: IntArray) -> Array | None:
        """Returns rows (batch, m, d) to put before embedded (batch, seq, d), the texts' word embeddings."""
        return None

    def back_prompt(self, gradient: Array) -> None:
        """Takes the gradient of the rows; embeddings are frozen."""

    def at_site(self, site: str, x: Array, h: Array) -> Array | None:
        """Returns what to add to h (batch, seq, d_out), the projection of x (batch, seq, d_in).

        `site` is a name such as "layer_0_query"; roles in the order in which they come: query, key, value,
        feed_forward_in, feed_forward.
        """
        return None

    def back_at_site(self, site: str, gradient: Array) -> tuple[Array | float, Array | float]:
        """Takes the gradient of the site's output; returns those of x and h through what was added."""
        return 0.0, 0.0

    def at_logits(self, logits: Array, embedding: Array) -> Array | None:
        """Returns (batch, labels) to add to the logits; embedding (batch, d) is the mean of token states."""
        return None

    def back_at_logits(self, gradient: Array) -> Array | float:
        """Takes the gradient of what was added; returns that of the embedding, nothing of the logits."""
        return 0.0


# Operations. Each backward takes the gradient of the output and returns that of the input.


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """y = x W^T + b."""
    return x @ weight.T + bias


def linear_back(gradient: Array, weight: Array) -> Array:
    return gradient @ weight


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> tuple[Array, Normal]:
    """Returns y = n w + b over the last axis, with n = (x - mean) / deviation, and (n, deviation)."""
    mean = x.mean(-1, keepdims=True)
    deviation = np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + epsilon)
    normal = (x - mean) / deviation
    return normal * weight + bias, (normal, deviation)


def layer_norm_back(gradient: Array, weight: Array, saved: Normal) -> Array:
    normal, deviation = saved
    inner = gradient * weight
    along = (inner * normal).mean(-1, keepdims=True)
    centred: Array = (inner - inner.mean(-1, keepdims=True) - normal * along) / deviation
    return centred


def gelu(x: Array) -> Array:
    """x Phi(x), with the exact normal distribution function Phi."""
    value: Array = x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))
    return value


def gelu_back(gradient: Array, x: Array) -> Array:
    distribution = 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))
    density = np.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi)
    value: Array = gradient * (distribution + x * density)
    return value


def softmax(scores: Array) -> Array:
    """exp(z_i) / sum_j exp(z_j) over the last axis."""
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    value: Array = exponentials / exponentials.sum(-1, keepdims=True)
    return value


def softmax_back(gradient: Array, probabilities: Array) -> Array:
    value: Array = probabilities * (gradient - (gradient * probabilities).sum(-1, keepdims=True))
    return value


def attention(q: Array, k: Array, v: Array, mask: IntArray) -> tuple[Array, Array]:
    """softmax(q k^T / sqrt(d_h)) v per head; q, k, v are (batch, heads, seq, d_h), mask (batch, seq)."""
    scores = np.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
    probabilities = softmax(np.where(mask[:, None, None, :] == 1, scores, -np.inf))
    return np.einsum("bhqk,bhkd->bhqd", probabilities, v), probabilities


def attention_back(
    gradient: Array, q: Array, k: Array, v: Array, probabilities: Array
) -> tuple[Array, Array, Array]:
    back = softmax_back(np.einsum("bhqd,bhkd->bhqk", gradient, v), probabilities) / math.sqrt(q.shape[-1])
    of_q = np.einsum("bhqk,bhkd->bhqd", back, k)
    of_k = np.einsum("bhqk,bhqd->bhkd", back, q)
    of_v = np.einsum("bhqk,bhqd->bhkd", probabilities, gradient)
    return of_q, of_k, of_v


def split_heads(x: Array, heads: int) -> Array:
    """(batch, seq, d) -> (batch, heads, seq, d / heads)."""
    batch, seq, width = x.shape
    return x.reshape(batch, seq, heads, width // heads).transpose(0, 2, 1, 3)


def join_heads(x: Array) -> Array:
    """(batch, heads, seq, d_h) -> (batch, seq, heads d_h); each is the other's backward."""
    batch, heads, seq, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, seq, heads * width)


@dataclass(slots=True)
class _Tape:
    """What one layer's backward needs of its forward."""

    q: Array
    k: Array
    v: Array
    probabilities: Array
    attention_norm: Normal
    inner: Array
    output_norm: Normal


class Encoder:
    """BERT (Devlin et al., 2019), post-norm, exact GELU; weights named as in transformers, after `prefix`."""

    def __init__(
        self,
        weights: Mapping[str, npt.NDArray[Any]],
        layers: int,
        heads: int,
        epsilon: float,
        methods: Sequence[Method],
        prefix: str = "encoder.",
    ) -> None:
        self.weights = weights
        self.layers = layers
        self.heads = heads
        self.epsilon = epsilon
        self.methods = methods
        self.prompt_rows: list[int] = []
        self.prefix = prefix
        self.tapes: list[_Tape] = []

    def forward(self, input_ids: IntArray, mask: IntArray) -> Array:
        """Maps ids (batch, seq) to the last states (batch, seq, d) of the text, prompt rows left out."""
        place = "embeddings."
        words = np.asarray(self.weights[f"{self.prefix}{place}word_embeddings.weight"][input_ids], np.float64)
        prompts = [method.prompt(words, mask) for method in self.methods]
        self.prompt_rows = [0 if rows is None else rows.shape[1] for rows in prompts]
        words = np.concatenate([*(rows for rows in prompts if rows is not None), words], axis=1)
        mask = np.pad(mask, ((0, 0), (sum(self.prompt_rows), 0)), constant_values=1)
        positions = self._get(place + "position_embeddings.weight")[: words.shape[1]]
        types = self._get(place + "token_type_embeddings.weight")[0]
        states, self.embedding_norm = self._norm(place + "LayerNorm", words + positions + types)
        self.tapes = []
        for layer in range(self.layers):
            states = self._layer(layer, states, mask)
        return states[:, sum(self.prompt_rows) :]

    def backward(self, gradient: Array) -> None:
        """Runs the gradient of the last states (batch, seq, d) back through every layer, site by site."""
        gradient = np.pad(gradient, ((0, 0), (sum(self.prompt_rows), 0), (0, 0)))
        for layer in reversed(range(self.layers)):
            gradient = self._layer_back(layer, gradient)
        gradient = self._norm_back("embeddings.LayerNorm", gradient, self.embedding_norm)
        ends = np.cumsum(self.prompt_rows)
        for method, rows, end in zip(self.methods, self.prompt_rows, ends, strict=True):
            if rows:
                method.back_prompt(gradient[:, end - rows : end])

    def _layer(self, layer: int, x: Array, mask: IntArray) -> Array:
        place = f"encoder.layer.{layer}."
        q, k, v = (
            split_heads(
                self._at_site(f"layer_{layer}_{role}", f"{place}attention.self.{role}", x), self.heads
            )
            for role in ("query", "key", "value")
        )
        context, probabilities = attention(q, k, v, mask)
        mixed = self._linear(place + "attention.output.dense", join_heads(context))
        y, attention_norm = self._norm(place + "attention.output.LayerNorm", mixed + x)
        inner = self._at_site(f"layer_{layer}_feed_forward_in", place + "intermediate.dense", y)
        outer = self._at_site(f"layer_{layer}_feed_forward", place + "output.dense", gelu(inner))
        z, output_norm = self._norm(place + "output.LayerNorm", outer + y)
        self.tapes.append(_Tape(q, k, v, probabilities, attention_norm, inner, output_norm))
        return z

    def _layer_back(self, layer: int, gradient: Array) -> Array:
        place, tape = f"encoder.layer.{layer}.", self.tapes[layer]
        of_sum = self._norm_back(place + "output.LayerNorm", gradient, tape.output_norm)
        of_gelu = self._at_site_back(f"layer_{layer}_feed_forward", place + "output.dense", of_sum)
        of_inner = gelu_back(of_gelu, tape.inner)
        of_y = of_sum + self._at_site_back(
            f"layer_{layer}_feed_forward_in", place + "intermediate.dense", of_inner
        )
        of_mixed = self._norm_back(place + "attention.output.LayerNorm", of_y, tape.attention_norm)
        of_context = linear_back(of_mixed, self._get(place + "attention.output.dense.weight"))
        parts = attention_back(
            split_heads(of_context, self.heads), tape.q, tape.k, tape.v, tape.probabilities
        )
        of_x = of_mixed
        for role, part in zip(("query", "key", "value"), parts, strict=True):
            of_x = of_x + self._at_site_back(
                f"layer_{layer}_{role}", f"{place}attention.self.{role}", join_heads(part)
            )
        return of_x

    def _at_site(self, site: str, path: str, x: Array) -> Array:
        h = self._linear(self._projection(path), x)
        added = [method.at_site(site, x, h) for method in self.methods]
        return h + sum((part for part in added if part is not None), np.zeros_like(h))

    def _at_site_back(self, site: str, path: str, gradient: Array) -> Array:
        of_x, of_h = np.zeros(()), gradient
        for method in self.methods:
            through_x, through_h = method.back_at_site(site, gradient)
            of_x, of_h = of_x + through_x, of_h + through_h
        return of_x + linear_back(of_h, self._get(self._projection(path) + ".weight"))

    def _projection(self, path: str) -> str:
        """Where a site's weights are: wrapped, unless no method that is on acts inside the encoder."""
        wrapped = path + ".base"
        return wrapped if f"{self.prefix}{wrapped}.weight" in self.weights else path

    def _linear(self, path: str, x: Array) -> Array:
        return linear(x, self._get(path + ".weight"), self._get(path + ".bias"))

    def _norm(self, path: str, x: Array) -> tuple[Array, Normal]:
        return layer_norm(x, self._get(path + ".weight"), self._get(path + ".bias"), self.epsilon)

    def _norm_back(self, path: str, gradient: Array, saved: Normal) -> Array:
        return layer_norm_back(gradient, self._get(path + ".weight"), saved)

    def _get(self, name: str) -> Array:
        return np.asarray(self.weights[self.prefix + name], np.float64)
