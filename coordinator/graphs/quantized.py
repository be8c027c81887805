"""Makes `predict_int8` of `predict`: the encoder's matrices in 8 bits, all else as it was, in plain ONNX.

A linear layer y = x W^T + b of the encoder becomes

    s_x = max |x| / 127 per token,  x_q = round(x / s_x) + 128 in uint8
    y   = s_x s_W (x_q - 128) W_q^T + b,  W_q = round(W / s_W) in int8, s_W = max |W| / 64 per output

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
from umbel.coordinator.graphs.parity import open_session
from umbel.coordinator.graphs.split import WeightsFile, by_content, placed_in, weights_file
from umbel.shared.answers import Int8
from umbel.shared.bias import softmax
from umbel.shared.errors import ReleaseError
from umbel.shared.profile import ProfileSpec
from umbel.shared.release import GRAPHS, INT8_GRAPH, INT8_WEIGHTS
from umbel.shared.rng import generator
from umbel.shared.text import TextEncoder, TokenBatch

LEVELS = 64
"""The largest |W_q|."""
MOST_MOVED = 0.1
"""Mean change of probabilities (total variation) beyond which a graph in 8 bits is refused."""
_TEXTS = 256
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
    predict: bytes, weights: Mapping[str, Array], tokens: TokenBatch, spec: ProfileSpec
) -> tuple[dict[str, bytes], Int8]:
    """Makes the blobs of `predict_int8`, and compares it with `predict` for somebody without a profile.

    Args:
        predict: The graph `predict`.
        weights: Every weight of the model by name.
        tokens: The texts to compare on.
        spec: The private tensors.

    Returns:
        The blobs by name, and what came of comparing.

    Raises:
        ReleaseError: Answers move by more than 8 bits explain.
    """
    data, file = quantized_graph(predict, weights)
    found = compared(predict, data, {**weights, **load(file.data)}, tokens, spec)
    if not found.moved <= MOST_MOVED:
        raise ReleaseError(
            "the graph in 8 bits is too far from the one in float32, so nothing was published",
            [
                f"on {len(tokens)} texts probabilities move by {found.moved:.3f} on average, "
                f"allowed {MOST_MOVED}"
            ],
            "Publish without it: --no-int8.",
        )
    return {f"{INT8_GRAPH}.onnx": data, INT8_WEIGHTS: file.data}, found


def compared(
    predict: bytes, small: bytes, weights: Mapping[str, Array], tokens: TokenBatch, spec: ProfileSpec
) -> Int8:
    """Returns how far `predict_int8` is from `predict` for somebody without a profile.

    Args:
        predict: The graph `predict`.
        small: The graph `predict_int8`.
        weights: Every weight of both by name.
        tokens: The texts to compare on.
        spec: The private tensors.
    """
    plain, rounded = (
        _answers(name, graph, weights, tokens, spec)
        for name, graph in ((GRAPHS[0], predict), (INT8_GRAPH, small))
    )
    moved = 0.5 * np.abs(plain - rounded).sum(1).mean()
    changed = float((plain.argmax(1) != rounded.argmax(1)).mean())
    return Int8(len(tokens), float(f"{moved:.2e}"), float(f"{changed:.2e}"))


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
    name: str, graph: bytes, weights: Mapping[str, Array], tokens: TokenBatch, spec: ProfileSpec
) -> npt.NDArray[np.float64]:
    wanted = {tensor.name for tensor in ModelProto.FromString(graph).graph.initializer}
    session = open_session(name, graph, {n: array for n, array in weights.items() if n in wanted})
    nobody = spec.zeros(1)
    found = np.empty((len(tokens), session.get_outputs()[0].shape[1]), np.float32)
    for index in tokens.like_length(_ROWS):
        part = tokens.rows(index)
        feed = {"input_ids": part.ids, "attention_mask": part.mask, "owner": np.zeros(len(part), np.int64)}
        found[index] = session.run(["logits"], {**feed, **nobody})[0]
    return softmax(found)


def quantized_graph(predict: bytes, weights: Mapping[str, Array]) -> tuple[bytes, WeightsFile]:
    """Returns the graph `predict_int8` and the file of its matrices.

    Args:
        predict: The graph `predict`, whose weights are placed.
        weights: The encoder's weights by name; others are not looked at.
    """
    model = ModelProto.FromString(predict)
    layers = {layer.output: layer for layer in _layers(model, weights)}
    arrays: dict[str, Array] = {}
    for layer in layers.values():
        matrix, scale = quantized_matrix(weights[layer.weight])
        arrays |= {_matrix(layer.weight): matrix, _scale(layer.weight): scale}
    file = by_content(weights_file(INT8_WEIGHTS, arrays))
    nodes: list[NodeProto] = []
    seen: set[str] = set()
    for node in model.graph.node:
        nodes += _integer_nodes(layers[node.output[0]], seen) if node.output[0] in layers else [node]
    declared = [_declared(name, array) for name, array in arrays.items()]
    rest = [*model.graph.initializer, *placed_in(file, declared), *_constants()]
    _rebuild(model, nodes, rest)
    return model.SerializeToString(deterministic=True), file


@final
@dataclass(frozen=True, slots=True)
class _Layer:
    """A product with a matrix of the encoder: names of what goes in and comes out; no bias is ""."""

    input: str
    weight: str
    bias: str
    output: str


def _layers(model: ModelProto, weights: Mapping[str, Array]) -> Iterator[_Layer]:
    """Finds x W^T + b: a Gemm or MatMul by the transpose of a matrix of the encoder."""
    transposed = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Transpose" and node.input[0].startswith(_ENCODER) and node.input[0] in weights
    }
    for node in model.graph.node:
        if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in transposed or not _is_plain(node):
            continue
        weight = transposed[node.input[1]]
        if weights[weight].ndim == 2:
            yield _Layer(node.input[0], weight, (*node.input, "")[2], node.output[0])


def _is_plain(node: NodeProto) -> bool:
    """Says whether a Gemm neither transposes nor scales."""
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    wanted = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}
    return all(found.get(name, value) == value for name, value in wanted.items())


def _integer_nodes(layer: _Layer, seen: set[str]) -> list[NodeProto]:
    """Returns the nodes of a layer; those that quantize its input only where `seen` does not have it."""
    x, y = layer.input, layer.output
    nodes = [] if x in seen else _quantizing(x)
    seen.add(x)
    matrix, scale = _matrix(layer.weight), _scale(layer.weight)
    nodes += [
        helper.make_node("MatMulInteger", [f"{x}.int8", matrix, _CENTRE], [f"{y}.sums"]),
        helper.make_node("Cast", [f"{y}.sums"], [f"{y}.float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{y}.float", scale], [f"{y}.columns"]),
        helper.make_node("Mul", [f"{y}.columns", f"{x}.scale"], [f"{y}.rows" if layer.bias else y]),
    ]
    if layer.bias:
        nodes.append(helper.make_node("Add", [f"{y}.rows", layer.bias], [y]))
    return nodes


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
        _LEAST: np.array(1e-9, np.float32),  # a row of zeros has a scale, too
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
