"""Public graphs cut out of the joint one: what they hold, where their weights lie, what is left out."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load
from tests.coordinator.personal import Joint, off_by_a_thousandth, random_batch, random_users
from tests.numeric import assert_close_relative

from umbel.coordinator.graphs.joint import parameter_arrays
from umbel.coordinator.graphs.parity import check_parity, measure_parity, relative_difference
from umbel.coordinator.graphs.split import split_graphs, weights_file
from umbel.shared.errors import ReleaseError

TOKENS = ["input_ids", "attention_mask"]


@pytest.fixture(scope="module")
def graphs(tiny_joint: Joint) -> dict[str, Any]:
    return {name: onnx.load_from_string(data) for name, data in tiny_joint.graphs()[0].items()}


def test_each_graph_takes_and_gives_exactly_what_it_is_for(tiny_joint: Joint, graphs: dict[str, Any]) -> None:
    shared = list(tiny_joint.trainables)
    inputs = {name: [v.name for v in g.graph.input] for name, g in graphs.items()}
    outputs = {name: [v.name for v in g.graph.output] for name, g in graphs.items()}
    learning = [*TOKENS, "labels", "weights", "owner", "plora.user", *shared]
    assert inputs == {
        "predict": [*TOKENS, "owner", "plora.user", *shared],
        "learn": learning,
        "contribute": learning,
    }
    assert outputs == {
        "predict": ["logits", "text_embedding"],
        "learn": ["loss", "nll", "grad.plora.user"],
        "contribute": ["loss", "nll", *(f"grad.{name}" for name in shared)],
    }


def test_axes_that_vary_are_named(graphs: dict[str, Any]) -> None:
    def axes(value: Any) -> list[object]:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    found = {v.name: axes(v) for v in (*graphs["learn"].graph.input, *graphs["learn"].graph.output)}
    assert found["input_ids"] == found["attention_mask"] == ["batch", "seq"]
    assert found["owner"] == found["labels"] == found["weights"] == found["nll"] == ["batch"]
    assert found["plora.user"] == found["grad.plora.user"] == ["users", 5]
    assert found["task.bias"] == [3]
    assert found["loss"] == []


def test_a_graph_holds_no_weights_and_no_traces_of_the_machine(
    tiny_joint: Joint, graphs: dict[str, Any], repository: Path
) -> None:
    arrays = parameter_arrays(tiny_joint.model)
    for name, graph in graphs.items():
        inside = {t.name for t in graph.graph.initializer if t.data_location != TensorProto.EXTERNAL}
        assert not inside & set(arrays), name
        assert len(graph.SerializeToString()) < 300_000
        assert str(repository).encode() not in graph.SerializeToString()


def test_learn_does_no_work_for_shared_gradients(graphs: dict[str, Any]) -> None:
    written = {output for node in graphs["learn"].graph.node for output in node.output}
    assert not {name for name in written if name.startswith("grad.task") or name.startswith("grad.methods")}
    assert len(graphs["predict"].graph.node) < len(graphs["learn"].graph.node)


def test_where_a_graph_says_that_a_weight_lies_there_it_lies(
    tiny_joint: Joint, graphs: dict[str, Any]
) -> None:
    """Every default of a trainable, and every frozen weight, is the value in the safetensors file."""
    _, files = tiny_joint.graphs()
    values = {name: array for data in files.values() for name, array in load(data).items()}
    for graph in graphs.values():
        outside = [t for t in graph.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        assert {t.name for t in outside} >= set(tiny_joint.trainables)
        for tensor in outside:
            place = {entry.key: entry.value for entry in tensor.external_data}
            start, length = int(place["offset"]), int(place["length"])
            raw = files[place["location"]][start : start + length]
            found = np.frombuffer(raw, np.float32).reshape(tuple(tensor.dims))
            assert np.array_equal(found, values[tensor.name]), tensor.name


def test_a_graph_beside_its_weights_opens_without_umbel(tiny_joint: Joint, tmp_path: Path) -> None:
    graphs, files = tiny_joint.graphs()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "predict.onnx").write_bytes(graphs["predict"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(tmp_path / "predict.onnx", options)
    batch = random_batch(0, 3, 6, 2, 18)
    feed = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "owner": batch.owner}
    profile = random_users(0, 2, 5)
    found = session.run(["logits"], {**feed, "plora.user": profile})[0]
    import torch

    wanted = tiny_joint.model(*batch.tensors(), {"plora.user": torch.tensor(profile)})
    assert_close_relative("logits", found, wanted.detach().numpy())


def test_cutting_twice_gives_the_same_bytes(tiny_joint: Joint) -> None:
    first, second = tiny_joint.graphs(), tiny_joint.graphs()
    assert [hashlib.sha256(d).digest() for part in first for d in part.values()] == [
        hashlib.sha256(d).digest() for part in second for d in part.values()
    ]


def test_a_cut_keeps_what_only_a_branch_reads() -> None:
    """`If` reads names of the outer graph that are not among the inputs of its node."""
    number = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    branch = helper.make_graph([helper.make_node("Neg", ["hidden"], ["y"])], "branch", [], [number])
    nodes = [
        helper.make_node("Abs", ["x"], ["hidden"]),
        helper.make_node("Abs", ["x"], ["unused"]),
        helper.make_node("If", ["choice"], ["logits"], then_branch=branch, else_branch=branch),
    ]
    nodes += [
        helper.make_node("Identity", ["x"], [name]) for name in ("text_embedding", "loss", "nll", "grad.p")
    ]
    values = [
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (("choice", TensorProto.BOOL), ("x", TensorProto.FLOAT))
    ]
    results = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [])
        for n in ("logits", "text_embedding", "loss", "nll", "grad.p")
    ]
    joint = helper.make_model(helper.make_graph(nodes, "joint", values, results))
    predict = onnx.load_from_string(split_graphs(joint, ["p"], {}, [])["predict"])
    assert [node.output[0] for node in predict.graph.node] == ["hidden", "logits", "text_embedding"]
    assert [value.name for value in predict.graph.input] == ["choice", "x"]


def test_a_weights_file_is_safetensors_with_known_places() -> None:
    arrays = {"b": np.arange(3, dtype=np.float32), "a": np.ones((2, 2), np.float32).T}
    file = weights_file("shared.safetensors", arrays)
    assert file.data == weights_file("shared.safetensors", dict(reversed(arrays.items()))).data
    for name, (start, length) in file.places.items():
        assert np.array_equal(
            np.frombuffer(file.data[start : start + length], np.float32), arrays[name].ravel()
        )


@pytest.mark.parametrize(
    ("found", "expected", "gap"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),  # |(0, 0.5)| / |(3, 4)|
        ([0.0], [0.0], 0.0),
        ([1e-9], [0.0], float("inf")),
        ([float("nan")], [1.0], float("inf")),
        ([1.0], [float("nan")], float("inf")),
        ([1.0, 1.0], [1.0], float("inf")),
    ],
)
def test_relative_difference(found: list[float], expected: list[float], gap: float) -> None:
    assert relative_difference(np.array(found), np.array(expected)) == pytest.approx(gap)


def test_next_to_nothing_is_measured_against_the_largest() -> None:
    assert relative_difference(np.array([2e-6]), np.array([1e-6]), 0.5) == pytest.approx(2e-6)
    assert relative_difference(np.array([2.0]), np.array([1.0]), 0.5) == pytest.approx(1.0)
    assert relative_difference(np.array([float("nan")]), np.array([0.0]), 0.5) == float("inf")


def test_the_gate_measures_every_output_of_every_graph(tiny_joint: Joint, graphs: dict[str, Any]) -> None:
    worst = measure(tiny_joint, tiny_joint.graphs()[0])
    assert set(worst) == {f"{name}/{v.name}" for name, g in graphs.items() for v in g.graph.output}
    assert max(worst.values()) < 1e-5
    check_parity(worst)


@pytest.mark.parametrize("graph", ["predict", "learn", "contribute"])
def test_the_gate_sees_one_constant_off_by_a_thousandth(tiny_joint: Joint, graph: str) -> None:
    """In one graph only, so that what another graph computes as well cannot hide it."""
    cut, _ = tiny_joint.graphs()
    worst = measure(
        tiny_joint, cut | {graph: off_by_a_thousandth(onnx.load_from_string(cut[graph])).SerializeToString()}
    )
    with pytest.raises(ReleaseError, match="torch and onnxruntime do not agree") as caught:
        check_parity(worst)
    assert all(problem.startswith(f"{graph}/") for problem in caught.value.problems)


def test_the_gate_refuses_numbers_that_are_none() -> None:
    with pytest.raises(ReleaseError, match="learn/nll: relative difference nan"):
        check_parity({"learn/nll": float("nan"), "learn/loss": 0.0})


def test_a_graph_that_cannot_be_opened_is_one_error(tiny_joint: Joint) -> None:
    cut, _ = tiny_joint.graphs()
    with pytest.raises(ReleaseError, match="cannot open the graph 'learn'"):
        measure(tiny_joint, cut | {"learn": b"no graph"})


def measure(joint: Joint, graphs: dict[str, bytes]) -> dict[str, float]:
    return measure_parity(joint.model, graphs, parameter_arrays(joint.model), joint.trainables, 32)
