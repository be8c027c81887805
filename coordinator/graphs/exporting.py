"""From a torch module to an ONNX graph with gradients. The only module that calls a private part of torch.

torch.export traces the module; `_export_forward_backward` (private, hence the parity gate) appends its
backward; then the whole is lowered to ONNX.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import OutputKind

from umbel.coordinator.graphs.simplified import simplify


def exported(
    module: nn.Module,
    arguments: tuple[Any, ...],
    dynamic_shapes: tuple[Any, ...],
    outputs: Sequence[str],
    *,
    differentiate: bool,
) -> Any:
    """Exports a module, if wanted together with the backward of its first output, a scalar.

    Args:
        module: What to export; where it is differentiated, its other outputs are detached.
        arguments: Example inputs; gradients are made for those that require them, in their order.
        dynamic_shapes: Which axes vary, as torch.export wants it.
        outputs: Names of the module's outputs, then of the gradients.
        differentiate: Whether gradients are wanted.

    Returns:
        An onnx_ir model whose outputs have these names.
    """
    from torch.export.experimental import _export_forward_backward
    from torch.utils._pytree import tree_structure

    with _quiet(), _garbage_kept():
        program = torch.export.export(module, arguments, dynamic_shapes=dynamic_shapes, strict=False)
        both = _export_forward_backward(program) if differentiate else program
        found = both.graph_signature.output_specs
        if len(found) != len(outputs):
            raise RuntimeError(
                f"the joint graph has {len(found)} outputs, expected {len(outputs)}: {outputs}"
            )
        for output in found:
            # Otherwise the ONNX exporter drops the gradients and writes an empty graph.
            output.kind = OutputKind.USER_OUTPUT
        signature = both.module_call_graph[0].signature
        assert signature is not None
        signature.out_spec = tree_structure(tuple(range(len(found))))
        made = torch.onnx.export(both, dynamo=True, optimize=False, verbose=False)
    assert made is not None
    for value, name in zip(made.model.graph.outputs, outputs, strict=True):
        value.name = name
    simplify(made.model)
    return made.model


def named_proto(
    model: Any, inputs: Sequence[str], axes: Sequence[tuple[str, ...]], weights: Mapping[str, str]
) -> Any:
    """Gives inputs, weights and axes their public names.

    Args:
        model: What `exported` made.
        inputs: Names of its inputs.
        axes: The first axes of each of them, as far as they vary.
        weights: Own name of a weight -> its public name.

    Returns:
        An onnx ModelProto without weights: they are declared by name and shape only.
    """
    from onnx_ir import serde, traversal

    graph = model.graph
    for node in traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    for value in list(graph.initializers.values()):
        if value.name in weights:
            _leave_outside(value, weights[value.name])
    proto = serde.serialize_model(model)
    _name_axes(proto.graph, axes)
    return proto


def _name_axes(graph: Any, axes: Sequence[tuple[str, ...]]) -> None:
    """Calls the axes that vary by what they are; torch numbers them."""
    names = {
        dim.dim_param: name
        for value, row in zip(graph.input, axes, strict=False)
        for dim, name in zip(value.type.tensor_type.shape.dim, row, strict=False)
    }
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names[dim.dim_param]


def _leave_outside(value: Any, name: str) -> None:
    """Declares a weight by name, shape and type only; where its bytes lie is written later (see split.py)."""
    from onnx_ir import ExternalTensor

    tensor = value.const_value
    value.name = name
    value.const_value = ExternalTensor(
        location="unplaced", offset=0, length=0, dtype=tensor.dtype, shape=tensor.shape, name=name
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the exporter's chatter, which is about packages that umbel does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _garbage_kept() -> Iterator[None]:
    """Holds back the garbage collector: tracing makes millions of objects, and few of them are garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
