"""Small graphs, written as text, and what onnxruntime answers with them as they are."""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import parser

from umbel.coordinator.graphs.simplified import simplify
from umbel.shared.rng import generator

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'
ROWS, TOKENS, WIDTH = 3, 5, 4
SHAPES: dict[str, int] = {"b": ROWS, "s": TOKENS, "h": 2, "N": ROWS * TOKENS}

Array = npt.NDArray[np.float32]


def made(text: str) -> onnx.ModelProto:
    return parser.parse_model(HEAD + text.strip())


def rewritten(model: onnx.ModelProto, rewrite: Callable[[ir.Model], object]) -> onnx.ModelProto:
    """Returns a graph after a pass that works in place; it must still be one."""
    found = ir.serde.deserialize_model(model)
    rewrite(found)
    smaller = ir.serde.serialize_model(found)
    onnx.checker.check_model(smaller)
    return smaller


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    return rewritten(model, simplify)


def answers(model: onnx.ModelProto, given: Mapping[str, Array] | None = None) -> list[Array]:
    """Returns every output, of random inputs but for those that are given, of the graph just as it is."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    rng = generator(0, 0, "", "test simplified")
    feed = {
        value.name: rng.normal(size=[SHAPES.get(dim, dim) for dim in value.shape]).astype(np.float32)
        for value in session.get_inputs()
    }
    found: list[Array] = session.run(None, {**feed, **(given or {})})
    return found


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)
