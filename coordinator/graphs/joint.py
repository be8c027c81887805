"""Exports one joint graph: logits, loss, every gradient. split.py cuts the public graphs out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from umbel.coordinator.backbone import BackboneShape
from umbel.coordinator.graphs.exporting import exported, named_proto
from umbel.coordinator.model import PersonalModel

_PLAIN_AXES = (("batch", "seq"), ("batch", "seq"), ("batch",), ("batch",), ("batch",))
GRADIENT = "grad."
"""Prefix of the output that holds the gradient of the input of that name."""
_MODEL = "reader.model."


@final
class _Reader(nn.Module):
    """The model, giving embeddings beside its logits."""

    def __init__(self, model: PersonalModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, owner: Tensor, profile: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns logits (batch, labels) and embeddings (batch, d)."""
        frame = self.model.frame(attention_mask, owner, profile)
        frame.users = profile
        return self.model.read(input_ids, attention_mask, frame)


@final
class JointModule(nn.Module):
    """loss, logits, embedding and nll as a function of everything that a gradient may be wanted for."""

    def __init__(self, model: PersonalModel, trainables: Sequence[str]):
        super().__init__()
        self.reader = _Reader(model)
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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns loss = sum_i weights_i nll_i (a scalar), logits (batch, labels), embedding and nll."""
        values = {f"model.{name}": value for name, value in zip(self.trainables, shared, strict=True)}
        inputs = (input_ids, attention_mask, owner, dict(zip(self.private_names, profile, strict=True)))
        logits, embedding = torch.func.functional_call(self.reader, values, inputs)
        nll = self.model.task.nll(logits, labels)
        return (nll * weights).sum(), logits.detach(), embedding.detach(), nll.detach()

    @property
    def model(self) -> PersonalModel:
        """The model."""
        return self.reader.model


def export_joint(model: PersonalModel, trainables: Sequence[str], shape: BackboneShape) -> Any:
    """Exports the joint graph of a model.

    Args:
        model: The trained model, on CPU; left as it was.
        trainables: Names of shared parameters that rounds may train: they become inputs, with gradients.
        shape: Sizes of the backbone.

    Returns:
        An onnx ModelProto without weights: initializers are declared by name and shape only. Inputs are
        input_ids, attention_mask, labels, weights, owner, every private tensor and every trainable, by name;
        outputs are loss, logits, embedding, nll and "grad." + name of each private tensor and trainable.
    """
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    was_training = model.training
    model.eval().requires_grad_(False)
    try:
        return _export(JointModule(model, trainables), model, shape)
    finally:
        model.train(was_training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])


def _export(joint: JointModule, model: PersonalModel, shape: BackboneShape) -> Any:
    private, shared = joint.private_names, joint.trainables
    gradients = [GRADIENT + name for name in (*private, *shared)]
    made = exported(
        joint,
        _arguments(joint, model, shape),
        _dynamic(joint, shape),
        ["loss", "logits", "text_embedding", "nll", *gradients],
        differentiate=True,
    )
    inputs = ["input_ids", "attention_mask", "labels", "weights", "owner", *private, *shared]
    axes = [*_PLAIN_AXES, *(("users",) for _ in private)]
    return named_proto(made, inputs, axes, {f"{_MODEL}{name}": name for name, _ in model.named_parameters()})


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


def parameter_arrays(model: PersonalModel) -> dict[str, np.ndarray[Any, Any]]:
    """Returns every parameter that graphs hold as a float32 array, without copying where torch allows it."""
    aside = model.training_only_names()
    return {
        name: parameter.detach().cpu().float().numpy()
        for name, parameter in model.named_parameters()
        if name not in aside
    }
