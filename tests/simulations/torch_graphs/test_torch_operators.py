"""Every operator gives what onnxruntime gives, also for many people at once."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from umbel.shared.rng import generator
from umbel.simulations.torch_graphs.operators import DTYPES, known_operators, make_operator

RNG = generator(0, 0, "", "operators")
KINDS = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL}


def floats(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: Any) -> Any:
    return np.array(values, np.int64)


def bools(*shape: int) -> Any:
    return RNG.random(shape) < 0.5


X, Y = floats(2, 3, 4), floats(2, 3, 4)
POSITIVE = np.abs(X) + 0.5
CASES: list[tuple[str, dict[str, Any], list[Any]]] = [
    *[(kind, {}, [X]) for kind in ("Abs", "Cos", "Erf", "Exp", "Identity", "Neg", "Relu", "Sigmoid", "Sin")],
    *[(kind, {}, [POSITIVE]) for kind in ("Log", "Reciprocal", "Sqrt", "Tanh")],
    *[(kind, {}, [X, floats(4)]) for kind in ("Add", "Sub", "Mul", "Div", "Max")],
    *[(kind, {}, [X, Y]) for kind in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")],
    *[(kind, {}, [bools(2, 3), bools(3)]) for kind in ("And", "Or")],
    ("Not", {}, [bools(5)]),
    ("Div", {}, [ints(7, -7, 6), ints(2, 2, -4)]),
    ("Max", {}, [X, Y, floats(1)]),
    ("Pow", {}, [POSITIVE, np.float32(3)]),
    ("MatMul", {}, [X, floats(2, 4, 5)]),
    ("MatMul", {}, [X, floats(4, 5)]),
    ("Gemm", {}, [floats(3, 4), floats(4, 5), floats(5)]),
    ("Gemm", {"alpha": 0.5, "beta": 2.0, "transA": 1, "transB": 1}, [floats(4, 3), floats(5, 4), floats(5)]),
    ("Gemm", {"alpha": 0.5}, [floats(3, 4), floats(4, 5)]),
    *[("Cast", {"to": to}, [X]) for to in (1, 6, 7, 9, 10, 11)],
    ("Clip", {}, [X, np.float32(-0.5), np.float32(0.5)]),
    ("Clip", {}, [X, np.float32(-0.5)]),
    ("Concat", {"axis": -1}, [X, Y, floats(2, 3, 1)]),
    ("CumSum", {}, [X, np.int64(1)]),
    ("Expand", {}, [floats(3, 1), ints(2, 1, 4)]),
    ("Expand", {}, [floats(2, 3, 1), ints(1, 4)]),
    ("Gather", {}, [floats(6, 4), ints([0, 5], [2, -1])]),
    ("Gather", {"axis": 1}, [X, ints(2, 0, -3)]),
    ("Gather", {"axis": 2}, [X, np.int64(1)]),
    ("Gather", {}, [floats(3), np.int64(2)]),
    ("GatherElements", {"axis": 1}, [floats(3, 4), ints([0, 3], [1, -1], [2, 2])]),
    ("GatherND", {}, [X, ints([0, 1], [1, 2])]),
    *[("Gelu", {"approximate": how}, [X]) for how in ("none", "tanh")],
    ("LayerNormalization", {"axis": -1, "epsilon": 1e-6}, [X, floats(4), floats(4)]),
    ("LayerNormalization", {"axis": 1}, [X, floats(3, 4)]),
    ("LogSoftmax", {"axis": 1}, [X]),
    ("Softmax", {"axis": 0}, [X]),
    ("Range", {}, [np.int64(2), np.int64(11), np.int64(3)]),
    ("ReduceSum", {"keepdims": 0}, [X, ints(0, -1)]),
    ("ReduceSum", {"keepdims": 1}, [X]),
    ("ReduceSum", {"noop_with_empty_axes": 1}, [X, np.zeros(0, np.int64)]),
    ("ReduceMean", {"keepdims": 1}, [X, ints(1)]),
    ("ReduceMax", {"keepdims": 0}, [X, ints(-1)]),
    ("Reshape", {}, [X, ints(0, -1)]),
    ("Reshape", {"allowzero": 1}, [X, ints(4, 6)]),
    ("Reshape", {}, [floats(1), np.zeros(0, np.int64)]),
    ("Expand", {}, [np.float32(2), np.zeros(0, np.int64)]),
    ("ScatterND", {}, [floats(4, 3), ints([0], [2]), floats(2, 3)]),
    *[("Shape", own, [X]) for own in ({}, {"start": 1}, {"start": 0, "end": 2})],
    ("Slice", {}, [X, ints(0, -3), ints(1, 9), ints(0, 2)]),
    ("Slice", {}, [X, ints(0), ints(9), ints(-1), ints(2)]),
    ("Slice", {}, [X, ints(1, 1), ints(2, 3)]),
    ("Split", {"axis": -1, "num_outputs": 2}, [X]),
    ("Split", {"axis": 1}, [X, ints(1, 2)]),
    ("Squeeze", {}, [floats(1, 3, 1), ints(0, -1)]),
    ("Squeeze", {}, [floats(1, 3, 1)]),
    ("TopK", {"axis": -1}, [X, ints(2)]),
    ("TopK", {"axis": 1, "largest": 0}, [X, ints(1)]),
    ("Transpose", {"perm": [2, 0, 1]}, [X]),
    ("Transpose", {}, [X]),
    ("Unsqueeze", {}, [X, ints(0, -1)]),
    ("Where", {}, [bools(3, 4), X, np.float32(0)]),
]  # fmt: skip


def by_onnxruntime(kind: str, attributes: dict[str, Any], inputs: list[Any]) -> list[Any]:
    given = [f"in{place}" for place in range(len(inputs))]
    outputs = {"Split": 2, "TopK": 2}.get(kind, 1)
    node = helper.make_node(kind, given, [f"out{place}" for place in range(outputs)], **attributes)
    values = [
        helper.make_tensor_value_info(name, KINDS[array.dtype.kind], array.shape)
        for name, array in zip(given, inputs, strict=True)
    ]
    made = [helper.make_empty_tensor_value_info(f"out{place}") for place in range(outputs)]
    graph = helper.make_graph([node], "one", values, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(zip(given, inputs, strict=True))))


@pytest.mark.parametrize(("kind", "attributes", "inputs"), CASES, ids=[case[0] for case in CASES])
def test_an_operator_gives_what_onnxruntime_gives(
    kind: str, attributes: dict[str, Any], inputs: list[Any]
) -> None:
    inputs = [np.asarray(array) for array in inputs]
    expected = by_onnxruntime(kind, attributes, inputs)
    found = make_operator(kind, attributes)([torch.from_numpy(np.array(array)) for array in inputs])
    for value, wanted in zip(found, expected, strict=False):
        assert value.numpy().dtype == wanted.dtype
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value.numpy(), wanted, rtol=2e-5, atol=2e-6)


def test_every_operator_is_tried() -> None:
    assert {case[0] for case in CASES} == known_operators()
    assert {case[1]["to"] for case in CASES if case[0] == "Cast"} == set(DTYPES)
