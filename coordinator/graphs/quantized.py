"""Makes `predict_int8` and `learn_int8`: the encoder's matrices in 8 bits, all else as it was, in plain ONNX.

A linear layer y = x W^T + b of the encoder becomes

    s_x = max |x| / 127 per token,  x_q = round(x / s_x) + 128 in uint8
    y   = s_x s_W (x_q - 128) W_q^T + b,  W_q = round(W / s_W) in int8, s_W = max |W| / 64 per output

and the way back through it, g_x = g_y W, with the same W_q and what it stands for, rounding passed over

    h = g_y s_W,  s_h = max |h| / 127 per token,  h_q = round(h / s_h) + 128 in uint8
    g_x = s_h (h_q - 128) W_q

W_q has values of -64 to 64: processors without 8-bit dot products add two products in 16 bits, and
2 * 255 * 64 still fits, so that every processor sums the same integers. Each token has a scale of its own:
what a text is answered does not depend on the texts beside it in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from safetensors.numpy import load

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.graphs.joint import GRADIENT
from umbel.coordinator.graphs.parity import open_session
from umbel.coordinator.graphs.split import WeightsFile, by_content, placed_in, weights_file
from umbel.shared.answers import Int8
from umbel.shared.bias import softmax
from umbel.shared.errors import ReleaseError
from umbel.shared.profile import ProfileSpec
from umbel.shared.release import INT8_GRAPHS, INT8_WEIGHTS
from umbel.shared.rng import generator
from umbel.shared.text import TextEncoder, TokenBatch

LEVELS = 64
"""The largest |W_q|."""
MOST_MOVED = 0.1
"""Mean change of probabilities (total variation) beyond which a graph in 8 bits is refused."""
MOST_TURNED = 0.2
"""Mean turn of a private tensor's gradient (1 - cosine) beyond which it is refused."""
_TEXTS = 256
_LESSONS, _LESSON = 64, 8  # texts whose gradients are compared, and how many at a time
_LONGEST = 32
_ROWS = 32
_HALF = 127.0
_ZERO = 128
_ENCODER = "encoder."
_AXES, _LEAST, _UNIT, _STEP, _CENTRE = (
    f"int8.{name}" for name in ("axes", "least", "unit", "step", "centre")
)

Array = np.ndarray[Any, Any]


def quantized_matrix(weight: Array) -> tuple[Array, Array]:
    """Returns W_q^T (in, out) int8 and s_W (out,) float32 of a matrix W (out, in)."""
    scale = np.abs(weight).max(axis=1) / LEVELS
    scale = np.where(scale == 0.0, 1.0, scale).astype(np.float32)
    rounded = np.clip(np.rint(weight / scale[:, None]), -LEVELS, LEVELS).astype(np.int8)
    return np.ascontiguousarray(rounded.T), scale


def int8_blobs(
    graphs: Mapping[str, bytes], weights: Mapping[str, Array], tokens: TokenBatch, spec: ProfileSpec
) -> tuple[dict[str, bytes], Int8]:
    """Makes the blobs of `predict_int8` and `learn_int8`, and compares them with the graphs in float32.

    Args:
        graphs: The graphs `predict` and `learn`; others are not looked at.
        weights: Every weight of the model by name.
        tokens: The texts to compare on.
        spec: The private tensors.

    Returns:
        The blobs by name, and what came of comparing.

    Raises:
        ReleaseError: Answers or gradients move by more than 8 bits explain.
    """
    plain = {name: graphs[name] for name in INT8_GRAPHS}
    small, file = quantized_graphs(plain, weights)
    found = compared(plain, small, {**weights, **load(file.data)}, tokens, spec)
    if problems := too_far(found):
        raise ReleaseError(
            "the graphs in 8 bits are too far from those in float32, so nothing was published",
            problems,
            "Publish without them: --no-int8.",
        )
    return {f"{INT8_GRAPHS[name]}.onnx": data for name, data in small.items()} | {
        INT8_WEIGHTS: file.data
    }, found


def too_far(found: Int8) -> list[str]:
    """Says what of graphs in 8 bits is too far from float32 to be published."""
    problems = []
    if not found.moved <= MOST_MOVED:
        problems.append(
            f"on {found.texts} texts probabilities move by {found.moved:.3f} on average, allowed {MOST_MOVED}"
        )
    if not found.turned <= MOST_TURNED:
        problems.append(f"gradients turn by {found.turned:.3f} (1 - cosine), allowed {MOST_TURNED}")
    return problems


def compared(
    plain: Mapping[str, bytes],
    small: Mapping[str, bytes],
    weights: Mapping[str, Array],
    tokens: TokenBatch,
    spec: ProfileSpec,
) -> Int8:
    """Returns how far graphs in 8 bits are from those in float32 for somebody without a profile.

    Args:
        plain: The graphs `predict` and `learn`.
        small: The same in 8 bits, by the same names.
        weights: Every weight of both by name.
        tokens: The texts to compare on.
        spec: The private tensors.
    """
    predict, learn = INT8_GRAPHS
    exact, near = (_answers(graphs[predict], weights, tokens, spec) for graphs in (plain, small))
    moved = 0.5 * np.abs(exact - near).sum(1).mean()
    changed = float((exact.argmax(1) != near.argmax(1)).mean())
    some = tokens.rows(np.arange(min(_LESSONS, len(tokens))))
    turned = _turned(*(_gradients(graphs[learn], weights, some, spec) for graphs in (plain, small)))
    return Int8(len(tokens), *(float(f"{value:.2e}") for value in (moved, changed, turned)))


def sample_tokens(backbone: Backbone, texts: Sequence[str], max_tokens: int) -> TokenBatch:
    """Returns the first of some texts as tokens; where there are none, random tokens, which say less."""
    if texts:
        return TextEncoder(backbone.tokenizer_json, max_tokens).encode(texts[:_TEXTS])
    return random_tokens(backbone.shape.vocabulary, max_tokens)


def random_tokens(vocabulary: int, max_tokens: int) -> TokenBatch:
    """Returns texts of random tokens, always the same."""
    rng = generator(0, 0, "", "int8")
    lengths = rng.integers(2, min(max_tokens, _LONGEST) + 1, _TEXTS)
    mask = (np.arange(lengths.max())[None, :] < lengths[:, None]).astype(np.int64)
    return TokenBatch(rng.integers(0, vocabulary, mask.shape) * mask, mask)


def _answers(
    graph: bytes, weights: Mapping[str, Array], tokens: TokenBatch, spec: ProfileSpec
) -> npt.NDArray[np.float64]:
    """Returns the probabilities (texts, labels) of texts for somebody without a profile."""
    session, nobody = _session(graph, weights), spec.zeros(1)
    found = np.empty((len(tokens), session.get_outputs()[0].shape[1]), np.float32)
    for index in tokens.like_length(_ROWS):
        found[index] = session.run(["logits"], _feed(tokens.rows(index), nobody))[0]
    return softmax(found)


def _gradients(
    graph: bytes, weights: Mapping[str, Array], tokens: TokenBatch, spec: ProfileSpec
) -> list[dict[str, Array]]:
    """Returns the gradient of every private tensor, of a few texts at a time that are answered anyhow."""
    session, rng = _session(graph, weights), generator(0, 0, "", "int8 gradients")
    person = {t.name: (0.1 * rng.standard_normal((1, *t.shape))).astype(np.float32) for t in spec.tensors}
    names = [GRADIENT + tensor.name for tensor in spec.tensors]
    found = []
    for at in range(0, len(tokens), _LESSON):
        feed = _feed(tokens.rows(np.arange(at, min(at + _LESSON, len(tokens)))), person)
        count = len(feed["owner"])
        feed |= {"labels": rng.integers(0, 2, count), "weights": np.ones(count, np.float32)}
        _, *gradients = session.run(["nll", *names], feed)  # asked for nothing, it would give everything
        found.append(dict(zip(names, gradients, strict=True)))
    return found


def _turned(exact: Sequence[Mapping[str, Array]], near: Sequence[Mapping[str, Array]]) -> float:
    """Returns 1 - cosine of gradients, the mean over pairs, of the private tensor that has most of it."""
    worst = 0.0
    for name in exact[0]:
        pairs = [(a[name].ravel(), b[name].ravel()) for a, b in zip(exact, near, strict=True)]
        found = [1.0 - _cosine(a, b) for a, b in pairs if a.any()]
        worst = max(worst, float(np.mean(found)) if found else 0.0)
    return worst


def _cosine(a: Array, b: Array) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size and np.isfinite(b).all() else 0.0


def _session(graph: bytes, weights: Mapping[str, Array]) -> Any:
    wanted = {tensor.name for tensor in ModelProto.FromString(graph).graph.initializer}
    return open_session("int8", graph, {n: array for n, array in weights.items() if n in wanted})


def _feed(tokens: TokenBatch, profile: Mapping[str, Array]) -> dict[str, Array]:
    own = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
    return {**own, "owner": np.zeros(len(tokens), np.int64), **profile}


def quantized_graphs(
    graphs: Mapping[str, bytes], weights: Mapping[str, Array]
) -> tuple[dict[str, bytes], WeightsFile]:
    """Returns graphs in 8 bits, and the file of their matrices, which they share.

    Args:
        graphs: Graphs by name, whose weights are placed.
        weights: The encoder's weights by name; others are not looked at.
    """
    models = {name: ModelProto.FromString(data) for name, data in graphs.items()}
    products = {name: {own.output: own for own in _products(m, weights)} for name, m in models.items()}
    arrays: dict[str, Array] = {}
    for weight in sorted({own.weight for found in products.values() for own in found.values()}):
        matrix, scale = quantized_matrix(weights[weight])
        arrays |= {_matrix(weight): matrix, _scale(weight): scale}
    file = by_content(weights_file(INT8_WEIGHTS, arrays))
    placed = placed_in(file, [_declared(name, array) for name, array in arrays.items()])
    return {name: _quantized(model, products[name], placed) for name, model in models.items()}, file


def _quantized(model: ModelProto, products: Mapping[str, _Product], placed: list[TensorProto]) -> bytes:
    nodes: list[NodeProto] = []
    seen: set[str] = set()
    for node in model.graph.node:
        own = products.get(node.output[0])
        nodes += [node] if own is None else own.nodes(seen)
    _rebuild(model, nodes, [*model.graph.initializer, *placed, *_constants()])
    data: bytes = model.SerializeToString(deterministic=True)
    return data


@final
@dataclass(frozen=True, slots=True)
class _Product:
    """A product with a matrix W (out, in) of the encoder: names of what goes in and comes out.

    Attributes:
        input: Of x in x W^T + b; with `back`, of g in g W.
        weight: Of W.
        bias: Of b; "" without one.
        output: Of the product.
        back: Whether it is one of the way back.
    """

    input: str
    weight: str
    bias: str
    output: str
    back: bool

    def nodes(self, seen: set[str]) -> list[NodeProto]:
        """Returns its nodes in 8 bits; those that others have made already, by what `seen` says, are not."""
        matrix, scale = _matrix(self.weight), _scale(self.weight)
        if not self.back:
            nodes = _once(seen, self.input, _quantizing(self.input))
            nodes += self._summed(self.input, matrix)
            nodes.append(helper.make_node("Mul", [f"{self.output}.float", scale], [f"{self.output}.columns"]))
            return nodes + self._scaled(f"{self.output}.columns", self.input)
        scaled, turned = f"{self.output}.scaled", f"{matrix}.turned"
        nodes = [helper.make_node("Mul", [self.input, scale], [scaled]), *_quantizing(scaled)]
        nodes += _once(seen, turned, [helper.make_node("Transpose", [matrix], [turned], perm=[1, 0])])
        return nodes + self._summed(scaled, turned) + self._scaled(f"{self.output}.float", scaled)

    def _summed(self, x: str, matrix: str) -> list[NodeProto]:
        y = self.output
        return [
            helper.make_node("MatMulInteger", [f"{x}.int8", matrix, _CENTRE], [f"{y}.sums"]),
            helper.make_node("Cast", [f"{y}.sums"], [f"{y}.float"], to=TensorProto.FLOAT),
        ]

    def _scaled(self, columns: str, x: str) -> list[NodeProto]:
        y = self.output
        if not self.bias:
            return [helper.make_node("Mul", [columns, f"{x}.scale"], [y])]
        return [
            helper.make_node("Mul", [columns, f"{x}.scale"], [f"{y}.rows"]),
            helper.make_node("Add", [f"{y}.rows", self.bias], [y]),
        ]


def _once(seen: set[str], name: str, nodes: list[NodeProto]) -> list[NodeProto]:
    if name in seen:
        return []
    seen.add(name)
    return nodes


def _products(model: ModelProto, weights: Mapping[str, Array]) -> Iterator[_Product]:
    """Finds x W^T + b and g W: a Gemm or MatMul by a matrix of the encoder, transposed so often or not."""
    source = {
        node.output[0]: (node.input[0], node.op_type == "Transpose")
        for node in model.graph.node
        if node.op_type in ("Transpose", "Identity")
    }
    for node in model.graph.node:
        if node.op_type not in ("Gemm", "MatMul"):
            continue
        weight, turned = node.input[1], False
        while weight in source:
            weight, turns = source[weight]
            turned ^= turns
        known = weight.startswith(_ENCODER) and weight in weights and weights[weight].ndim == 2
        turns_too = _turns(node) if known else None
        if turns_too is not None:
            bias = (*node.input, "")[2]
            yield _Product(node.input[0], weight, bias, node.output[0], back=turned == turns_too)


def _turns(node: NodeProto) -> bool | None:
    """Says whether a Gemm transposes its matrix; None where it does more than a product."""
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    wanted = {"transA": 0, "alpha": 1.0, "beta": 1.0}
    if any(found.get(name, value) != value for name, value in wanted.items()):
        return None
    return bool(found.get("transB", 0))


def _quantizing(x: str) -> list[NodeProto]:
    """Returns the nodes that make x_q and s_x (tokens, 1) of x (tokens, d)."""
    return [
        helper.make_node("ReduceMax", [x, _AXES], [f"{x}.most"], keepdims=1),
        helper.make_node("ReduceMin", [x, _AXES], [f"{x}.fewest"], keepdims=1),
        helper.make_node("Neg", [f"{x}.fewest"], [f"{x}.negated"]),
        helper.make_node("Max", [f"{x}.most", f"{x}.negated", _LEAST], [f"{x}.largest"]),
        helper.make_node("Mul", [f"{x}.largest", _STEP], [f"{x}.scale"]),
        helper.make_node("Div", [x, f"{x}.scale"], [f"{x}.steps"]),
        helper.make_node("QuantizeLinear", [f"{x}.steps", _UNIT, _CENTRE], [f"{x}.int8"]),
    ]


def _constants() -> list[TensorProto]:
    values: dict[str, Array] = {
        _AXES: np.array([-1], np.int64),
        _LEAST: np.array(1e-30, np.float32),  # a row of zeros has a scale, too
        _STEP: np.array(1.0 / _HALF, np.float32),
        _UNIT: np.array(1.0, np.float32),
        _CENTRE: np.array(_ZERO, np.uint8),
    }
    return [numpy_helper.from_array(value, name) for name, value in values.items()]


def _rebuild(model: ModelProto, nodes: list[NodeProto], initializers: list[TensorProto]) -> None:
    """Puts nodes and initializers in place, without what no output needs any more."""
    used = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(nodes):
        if used.intersection(node.output):
            kept.append(node)
            used.update(node.input)
    inputs = {value.name for value in model.graph.input}
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(t for t in initializers if t.name in used or t.name in inputs)


def _declared(name: str, array: Array) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return TensorProto(name=name, dims=list(array.shape), data_type=kind, data_location=TensorProto.EXTERNAL)


def _matrix(weight: str) -> str:
    return f"{weight}.int8"


def _scale(weight: str) -> str:
    return f"{weight}.scale"
