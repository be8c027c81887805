"""Exports one joint graph: logits, loss, every gradient. The only module that calls a private part of torch.

torch.export traces the loss; `_export_forward_backward` (private, hence the parity gate) appends its
backward; then the whole is lowered to ONNX. split.py cuts the public graphs out of the one that is made here.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind

from umbel.coordinator.backbone import BackboneShape
from umbel.coordinator.model import PersonalModel

_PLAIN_AXES = (("batch", "seq"), ("batch", "seq"), ("batch",), ("batch",), ("batch",))
GRADIENT = "grad."
"""Prefix of the output that holds the gradient of the input of that name."""


@final
class JointModule(nn.Module):
    """loss, logits and nll as a function of everything that a gradient may be wanted for."""

    def __init__(self, model: PersonalModel, trainables: Sequence[str]):
        super().__init__()
        self.model = model
        self.private_names = [tensor.name for tensor in model.profile_spec().tensors]
        self.trainables = tuple(trainables)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        weights: Tensor,
        owner: Tensor,
        profile: tuple[Tensor, ...],
        shared: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns loss = sum_i weights_i nll_i (a scalar), logits (batch, labels) and nll (batch,)."""
        values = dict(zip(self.trainables, shared, strict=True))
        inputs = (input_ids, attention_mask, owner, dict(zip(self.private_names, profile, strict=True)))
        logits: Tensor = torch.func.functional_call(self.model, values, inputs)
        nll = self.model.task.nll(logits, labels)
        return (nll * weights).sum(), logits.detach(), nll.detach()


def export_joint(model: PersonalModel, trainables: Sequence[str], shape: BackboneShape) -> Any:
    """Exports the joint graph of a model.

    Args:
        model: The trained model, on CPU; left as it was.
        trainables: Names of shared parameters that rounds may train: they become inputs, with gradients.
        shape: Sizes of the backbone.

    Returns:
        An onnx ModelProto without weights: initializers are declared by name and shape only. Inputs are
        input_ids, attention_mask, labels, weights, owner, every private tensor and every trainable, by name;
        outputs are loss, logits, nll and "grad." + name of each private tensor and trainable.
    """
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    was_training = model.training
    model.eval().requires_grad_(False)
    try:
        with _quiet():
            return _export(JointModule(model, trainables), model, shape)
    finally:
        model.train(was_training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])


def _export(joint: JointModule, model: PersonalModel, shape: BackboneShape) -> Any:
    from torch.export.experimental import _export_forward_backward
    from torch.utils._pytree import tree_structure

    arguments = _arguments(joint, model, shape)
    program = torch.export.export(joint, arguments, dynamic_shapes=_dynamic(joint, shape), strict=False)
    both = _export_forward_backward(program)
    wanted = [
        "loss",
        "logits",
        "nll",
        *(GRADIENT + name for name in (*joint.private_names, *joint.trainables)),
    ]
    outputs = both.graph_signature.output_specs
    if len(outputs) != len(wanted):
        raise RuntimeError(f"the joint graph has {len(outputs)} outputs, expected {len(wanted)}: {wanted}")
    for output in outputs:
        # Otherwise the ONNX exporter drops the gradients and writes an empty graph.
        output.kind = OutputKind.USER_OUTPUT
    signature = both.module_call_graph[0].signature
    assert signature is not None
    signature.out_spec = tree_structure(tuple(range(len(outputs))))
    exported = torch.onnx.export(both, dynamo=True, optimize=False, verbose=False)
    assert exported is not None
    return _named(exported.model, joint, wanted)


def _arguments(joint: JointModule, model: PersonalModel, shape: BackboneShape) -> tuple[Any, ...]:
    """Makes example inputs with optimum's dummy-input generator; sizes above 1 keep every axis dynamic."""
    from optimum.utils import DummyTextInputGenerator, NormalizedTextConfig

    batch, seq, users = 3, 7, 2
    config: Any = NormalizedTextConfig(model.encoder.config)
    dummies = DummyTextInputGenerator("text-classification", config, batch_size=batch, sequence_length=seq)
    ids = dummies.generate("input_ids", framework="pt") % shape.vocabulary
    mask = torch.ones_like(ids)
    labels = torch.arange(batch) % len(model.task.labels)
    rng = torch.Generator().manual_seed(0)
    profile = tuple(
        torch.randn(users, *tensor.shape, generator=rng, requires_grad=True)
        for tensor in model.profile_spec().tensors
    )
    parameters = dict(model.named_parameters())
    shared = tuple(parameters[name].detach().clone().requires_grad_() for name in joint.trainables)
    return ids, mask, labels, torch.ones(batch), torch.arange(batch) % users, profile, shared


def _dynamic(joint: JointModule, shape: BackboneShape) -> tuple[Any, ...]:
    batch, users = torch.export.Dim("batch", min=1), torch.export.Dim("users", min=1)
    seq = torch.export.Dim("seq", min=2, max=joint.model.longest_text(shape))
    tokens = {0: batch, 1: seq}
    private = tuple({0: users} for _ in joint.private_names)
    return tokens, tokens, {0: batch}, {0: batch}, {0: batch}, private, tuple({} for _ in joint.trainables)


def _named(model: Any, joint: JointModule, wanted: Sequence[str]) -> Any:
    """Gives inputs, outputs and weights their public names; returns the graph as a proto without weights."""
    from onnx_ir import serde, traversal

    graph = model.graph
    for node in traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
    for value, name in zip(
        graph.inputs[len(_PLAIN_AXES) :], (*joint.private_names, *joint.trainables), strict=True
    ):
        value.name = name
    for value, name in zip(graph.outputs, wanted, strict=True):
        value.name = name
    parameters = {f"model.{name}" for name, _ in joint.model.named_parameters()}
    for value in list(graph.initializers.values()):
        if value.name in parameters:
            _leave_outside(value)
    proto = serde.serialize_model(model)
    _name_axes(proto.graph, [*_PLAIN_AXES, *(("users",) for _ in joint.private_names)])
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


def _leave_outside(value: Any) -> None:
    """Declares a weight by name, shape and type only; where its bytes lie is written later (see split.py)."""
    from onnx_ir import ExternalTensor

    tensor = value.const_value
    value.name = value.name.removeprefix("model.")
    value.const_value = ExternalTensor(
        location="unplaced", offset=0, length=0, dtype=tensor.dtype, shape=tensor.shape, name=value.name
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


def parameter_arrays(model: PersonalModel) -> dict[str, np.ndarray[Any, Any]]:
    """Returns every parameter that graphs hold as a float32 array, without copying where torch allows it."""
    aside = model.training_only_names()
    return {
        name: parameter.detach().cpu().float().numpy()
        for name, parameter in model.named_parameters()
        if name not in aside
    }
