"""One training step: the batch's loss with every method's own terms, and the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from umbel.coordinator.config import BackboneConfig, TrainingConfig
from umbel.coordinator.methods.base import MethodConfig
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.sites import Frame
from umbel.coordinator.training.traits import TraitHead
from umbel.shared.errors import ConfigError
from umbel.shared.profile import ProfileSpec
from umbel.shared.text import IntArray


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """One step's examples on the training device.

    Attributes:
        ids: (batch, seq) int64.
        mask: (batch, seq) int64.
        labels: (batch,) int64.
        owner: (batch,) int64, rows of the users' table.
        keep: (batch, 1) 1 where the profile counts, 0 where personalised dropout hides it.
        text: (batch,) number of each text.
        everyone: See `Frame.everyone`; None where this is a whole batch.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    owner: Tensor
    keep: Tensor
    text: IntArray
    everyone: Callable[[Tensor], Tensor] | None = None


@final
class UserTable(nn.Module):
    """The seen users' private tensors, zeros at birth: name -> (users, *shape)."""

    def __init__(self, spec: ProfileSpec, users: int):
        super().__init__()
        self.names = [tensor.name for tensor in spec.tensors]
        self.values = nn.ParameterList(
            [nn.Parameter(torch.zeros(users, *tensor.shape)) for tensor in spec.tensors]
        )

    def as_profile(self) -> dict[str, Tensor]:
        """Returns name -> (users, *shape)."""
        return dict(zip(self.names, self.values, strict=True))


def trained_parameters(
    model: PersonalModel, backbone: BackboneConfig, *, head: bool = True
) -> dict[str, nn.Parameter]:
    """Freezes what is not trained and returns the rest by name: methods, task, and the encoder as configured.

    Args:
        model: The model.
        backbone: What is trained of the encoder.
        head: Whether the task head is trained.

    Raises:
        ConfigError: More top layers are asked for than there are.
    """
    model.requires_grad_(False)
    layers = _layers(model)
    if backbone.train.startswith("top:") and int(backbone.train[4:]) > layers:
        raise ConfigError(
            "backbone.train asks for more layers than there are",
            [f"found {backbone.train}, the encoder has {layers}"],
        )
    chosen = {
        n: p
        for n, p in model.named_parameters()
        if _is_trained(n, backbone.train, layers) and (head or not n.startswith("task."))
    }
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def set_dropout(encoder: nn.Module, share: float) -> None:
    """Sets every dropout of an encoder, in place; 0 also saves the time of drawing what is dropped."""
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "dropout", None), float):
            setattr(module, "dropout", share)  # noqa: B010 - a module's attributes have no types


def _layers(model: PersonalModel) -> int:
    config: Any = model.encoder.config
    return int(config.num_hidden_layers)


def _is_trained(name: str, train: str, layers: int) -> bool:
    if not name.startswith("encoder."):
        return True
    if train.startswith("top:"):
        layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
        return layer is not None and layer >= layers - int(train[4:])
    return train == "all"


def make_optimizer(
    trained: Mapping[str, nn.Parameter],
    table: UserTable,
    config: TrainingConfig,
    methods: Mapping[str, MethodConfig],
    traits: TraitHead | None = None,
) -> torch.optim.AdamW:
    """Returns AdamW with a rate of its own for heads, encoder, each method and its users' tensors."""
    rates = {"task": config.head_rate, "encoder": config.backbone_rate}
    rates |= {f"methods.{name}": config.shared_rate * own.shared_rate for name, own in methods.items()}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in trained.items():
        first, _, rest = name.partition(".")
        groups[f"methods.{rest.partition('.')[0]}" if first == "methods" else first].append(parameter)
    parts = [_group(parameters, rates[name], config.weight_decay) for name, parameters in groups.items()]
    for name, own in methods.items():
        private = [value for key, value in table.as_profile().items() if key.startswith(f"{name}.")]
        # The prior of private tensors is in the loss, where it weighs by example: decay pulls the absent too.
        parts.append(_group(private, config.private_rate * own.private_rate, 0.0))
    if traits is not None:
        parts.append(_group(list(traits.parameters()), config.head_rate, config.weight_decay))
    return adamw([part for part in parts if part["params"]])


def adamw(groups: Sequence[dict[str, Any]], weight_decay: float = 0.01) -> torch.optim.AdamW:
    """Returns AdamW as every training here has it: one fused kernel on a GPU, all tensors together elsewhere.

    Args:
        groups: What is trained, with rates.
        weight_decay: Of groups that have none of their own.
    """
    on_gpu = any(parameter.is_cuda for group in groups for parameter in group["params"])
    return torch.optim.AdamW(
        list(groups), betas=(0.9, 0.98), weight_decay=weight_decay, foreach=not on_gpu, fused=on_gpu
    )


def _group(parameters: Sequence[Tensor], rate: float, decay: float) -> dict[str, Any]:
    return {"params": list(parameters), "lr": rate, "base": rate, "weight_decay": decay}


def set_rates(optimizer: torch.optim.Optimizer, step: int, config: TrainingConfig) -> None:
    """Linear warm-up, then a half cosine to a twentieth."""
    warm = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    share = min(1.0, step / max(config.max_steps, 1))
    factor = warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor


def batch_loss(
    model: PersonalModel,
    table: UserTable,
    batch: Batch,
    private_prior: float,
    traits: tuple[TraitHead, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the loss of a batch and its mean nll, both scalars.

    loss = mean nll + every method's training term + private_prior / 2 * mean |keep * p_owner|^2, the last one
    times each method's own factor, + the trait head's, times its weight, if it is given.
    """
    frame = model.frame(batch.mask, batch.owner, table.as_profile())
    frame.keep, frame.everyone = batch.keep, batch.everyone
    frame.records = {}
    logits, embedding = model.read(batch.ids, batch.mask, frame)
    nll = model.task.nll(logits, batch.labels).mean()
    loss = nll + _training_terms(model, batch, frame, logits)
    if traits is not None:
        head, weight = traits
        loss = loss + weight * head.loss(embedding.float(), batch.text)
    for method in model.method_list():
        for tensor in method.profile_tensors():
            kept = frame.profile[tensor.name].flatten(1) * batch.keep
            pull = 0.5 * private_prior * method.config.private_prior
            loss = loss + pull * kept.square().sum(1).mean()
    return loss, nll.detach()


def _training_terms(model: PersonalModel, batch: Batch, frame: Frame, logits: Tensor) -> Tensor:
    methods = model.method_list()
    generic = None
    if any(method.needs_generic_pass() for method in methods):
        generic = _generic_logits(model, batch, frame)
    total = logits.new_zeros(())
    for method in methods:
        term = method.training_term(logits, generic, frame)
        if term is not None:
            total = total + term
    return total


def _generic_logits(model: PersonalModel, batch: Batch, frame: Frame) -> Tensor:
    """Logits without profiles; no gradient through the encoder, so that only the head learns from them.

    The states go into `frame`, where training terms find them.
    """
    empty = Frame({name: torch.zeros_like(rows) for name, rows in frame.profile.items()}, batch.mask)
    with torch.no_grad():
        states = model.states(batch.ids, batch.mask, empty)
    frame.generic_states = states
    generic: Tensor = model.task(states, batch.mask)
    return generic
