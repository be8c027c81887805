"""Cuts the public graphs out of the joint one and points them at shared weights files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from onnx import ModelProto, NodeProto, StringStringEntryProto, TensorProto

from umbel.coordinator.graphs.joint import GRADIENT
from umbel.shared.files import sha256_bytes

Arrays = Mapping[str, np.ndarray[Any, Any]]


@final
@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A safetensors file and where each tensor's bytes lie in it.

    Attributes:
        location: File name that the graphs refer to; see `by_content`.
        data: The whole file.
        places: tensor name -> (offset, length), in bytes from the start of the file.
    """

    location: str
    data: bytes
    places: Mapping[str, tuple[int, int]]


def weights_file(location: str, arrays: Arrays) -> WeightsFile:
    """Packs arrays as safetensors; the same arrays give the same bytes."""
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    (header_bytes,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_bytes])
    start = 8 + header_bytes
    places = {
        name: (start + row["data_offsets"][0], row["data_offsets"][1] - row["data_offsets"][0])
        for name, row in header.items()
        if name != "__metadata__"
    }
    return WeightsFile(location, data, places)


def by_content(file: WeightsFile) -> WeightsFile:
    """Returns the file under the name of its blob: onnxruntime finds it beside the graphs, and maps it."""
    return replace(file, location=sha256_bytes(file.data))


def in_no_file(arrays: Arrays) -> WeightsFile:
    """Stands for the file of weights that a device has from elsewhere: it gives them to the graphs by name.

    Its location is no file of a release, so that a graph that is not given them cannot be opened.
    """
    return WeightsFile("elsewhere", b"", {name: (0, array.nbytes) for name, array in arrays.items()})


def split_graphs(
    joint: ModelProto,
    private: Iterable[str],
    trainables: Mapping[str, tuple[int, ...]],
    files: Iterable[WeightsFile],
) -> dict[str, bytes]:
    """Cuts `predict`, `learn` and `contribute` out of the joint graph.

    Every trainable is an input with a default: its value in the weights file, unless one is fed.

    Args:
        joint: The joint graph, weights declared by name only.
        private: Names of the private tensors.
        trainables: Name -> shape of the shared tensors that rounds may train.
        files: The weights files; together they hold every declared weight.

    Returns:
        Graph name -> serialized ModelProto.
    """
    gradients = [GRADIENT + name for name in private]
    outputs = {
        "predict": ["logits", "text_embedding"],
        "learn": ["loss", "nll", *gradients],
        "contribute": ["loss", "nll", *(GRADIENT + name for name in trainables)],
    }
    return cut_graphs(joint, outputs, trainables, files)


def cut_graphs(
    joint: ModelProto,
    outputs: Mapping[str, list[str]],
    trainables: Mapping[str, tuple[int, ...]],
    files: Iterable[WeightsFile],
) -> dict[str, bytes]:
    """Cuts graphs out of a joint one, each with what its outputs need and nothing else.

    Args:
        joint: The joint graph, weights declared by name only.
        outputs: Graph name -> its outputs.
        trainables: Name -> shape of the inputs that have a default in a file.
        files: The weights files; together they hold every declared weight.

    Returns:
        Graph name -> serialized ModelProto.
    """
    places = {name: (file.location, *place) for file in files for name, place in file.places.items()}
    return {
        graph: _cut(joint, wanted, trainables, places).SerializeToString(deterministic=True)
        for graph, wanted in outputs.items()
    }


def _cut(
    joint: ModelProto,
    wanted: list[str],
    trainables: Mapping[str, tuple[int, ...]],
    places: Mapping[str, tuple[str, int, int]],
) -> ModelProto:
    model = ModelProto()
    model.ir_version = joint.ir_version
    model.producer_name = "umbel"
    model.opset_import.extend(joint.opset_import)
    model.functions.extend(joint.functions)
    model.graph.name = "umbel"
    nodes, used = _reachable(joint, wanted)
    model.graph.node.extend(nodes)
    model.graph.input.extend(value for value in joint.graph.input if value.name in used)
    outputs = {value.name: value for value in joint.graph.output}
    model.graph.output.extend(outputs[name] for name in wanted)
    model.graph.initializer.extend(_placed(t, places) for t in joint.graph.initializer if t.name in used)
    for name, shape in trainables.items():
        if name in used:
            declared = TensorProto(
                name=name, dims=list(shape), data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
            )
            model.graph.initializer.append(_placed(declared, places))
    return model


def _reachable(joint: ModelProto, wanted: list[str]) -> tuple[list[Any], set[str]]:
    """Returns the nodes that the outputs need, in order, and every name that they touch."""
    used = set(wanted)
    nodes = []
    for node in reversed(joint.graph.node):
        if used.intersection(node.output):
            nodes.append(node)
            used.update(_inputs(node))
    return nodes[::-1], used


def _inputs(node: NodeProto) -> Iterator[str]:
    """Gives the names that a node reads, those that its branches and loop bodies read included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, attribute.g):
            for inner in graph.node:
                yield from _inputs(inner)


def placed_in(file: WeightsFile, tensors: Iterable[TensorProto]) -> list[TensorProto]:
    """Points tensors that are declared by name only at their bytes in a file."""
    places = {name: (file.location, *place) for name, place in file.places.items()}
    return [_placed(tensor, places) for tensor in tensors]


def _placed(tensor: TensorProto, places: Mapping[str, tuple[str, int, int]]) -> TensorProto:
    """Points an external tensor at its bytes; others are returned as they are."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    location, offset, length = places[tensor.name]
    placed = TensorProto()
    placed.CopyFrom(tensor)
    placed.ClearField("raw_data")
    del placed.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        placed.external_data.append(StringStringEntryProto(key=key, value=value))
    return placed
