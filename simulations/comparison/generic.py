"""The generic model: the whole encoder, trained on what all seen people say of each text together."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.tasks.classification import Classification
from umbel.coordinator.training.adapt import (
    HEAD_RATE,
    OnStep,
    adapt,
    leave_at,
    mean_states,
    opinions,
    schedule,
)
from umbel.coordinator.training.collaborative import found_factors
from umbel.coordinator.training.data import TrainingData
from umbel.coordinator.training.traits import TraitHead
from umbel.shared.rng import integer_seed
from umbel.simulations.comparison.kept import keep, read_kept

GENERIC_VERSION = 3
"""Goes up when the same settings would give another generic model."""

_WHOLE_HEAD_RATE = 2e-2
_DECAY = 0.01


def train_head(
    model: PersonalModel,
    data: TrainingData,
    *,
    steps: int,
    precision: Callable[[], Any],
    on_step: OnStep,
) -> None:
    """Trains the task head alone, on every text at once, and leaves it at its best look, in place.

    The encoder stays as it is, so each text goes through it once; a step over all texts is then cheap, and
    steps go on until held-out loss no longer gets better or there are no more.

    Args:
        model: Without private tensors; its task is a linear head on the mean token state.
        data: Judgements of seen people; held-out ones decide which look is the best.
        steps: Optimizer steps, at most.
        precision: Gives the context in which the encoder runs.
        on_step: Called with (steps done, steps in all).
    """
    task = model.task
    assert isinstance(task, Classification)
    (x, seen), (z, held) = (
        (mean_states(model, data, said.text, precision), torch.from_numpy(said.counts).float())
        for said in (opinions(rows, len(data.labels)) for rows in (data.train, data.validation))
    )
    parameters = [task.weight.requires_grad_(True), task.bias.requires_grad_(True)]
    optimizer = torch.optim.AdamW(parameters, lr=_WHOLE_HEAD_RATE, weight_decay=_DECAY)
    best, kept = math.inf, [value.detach().clone() for value in parameters]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _WHOLE_HEAD_RATE * schedule(step, steps)
        optimizer.zero_grad()
        torch.autograd.backward(_counted_loss(x @ task.weight.T + task.bias, seen))
        optimizer.step()
        on_step(step + 1, steps)
        with torch.no_grad():
            found = float(_counted_loss(z @ task.weight.T + task.bias, held))
        if found < best:
            best, kept = found, [value.detach().clone() for value in parameters]
    leave_at(model, parameters, kept)


def _counted_loss(logits: Tensor, counts: Tensor) -> Tensor:
    """Returns the mean nll of judgements, of which `counts` (texts, labels) says how many there are."""
    return -(functional.log_softmax(logits, dim=-1) * counts).sum() / counts.sum()


def generic_model(
    backbone: Backbone,
    data: TrainingData,
    *,
    steps: int,
    rate: float,
    traits: int,
    batch_size: int,
    seed: int,
    precision: Callable[[], Any],
    kept: Path,
    on_step: OnStep,
) -> PersonalModel:
    """Trains the generic model, or reads it from `kept`, where it is written.

    Args:
        backbone: The pretrained encoder.
        data: Judgements of seen people.
        steps: Optimizer steps.
        rate: The encoder's rate; 0 leaves it as it was pretrained and trains the head alone.
        traits: Traits of texts, as judgements tell them, that the encoder is also trained towards.
        batch_size: Texts per step.
        seed: Of the head and of the order.
        precision: Gives the context in which it runs.
        kept: File.
        on_step: Called with (steps done, steps in all).
    """
    model = build_model(backbone, "classification", data.labels, {}, seed)
    found = read_kept(kept, {name: tuple(value.shape) for name, value in model.named_parameters()})
    if found is not None:
        model.load_state_dict(found, strict=False)
        return model.requires_grad_(False).eval()
    if rate == 0:
        train_head(model, data, steps=steps, precision=precision, on_step=on_step)
    else:
        # Most word embeddings are in no text of the data; leaving all of them saves half of a step's memory.
        named = dict(model.named_parameters())
        rest = {
            n: v
            for n, v in named.items()
            if n.startswith("encoder.") and not n.startswith("encoder.embeddings.")
        }
        adapt(
            model,
            [({n: v for n, v in named.items() if n.startswith("task.")}, HEAD_RATE), (rest, rate)],
            data,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            precision=precision,
            on_step=on_step,
            traits=_traits(backbone, data, traits, seed),
        )
    keep(kept, dict(model.named_parameters()))
    return model


def _traits(backbone: Backbone, data: TrainingData, size: int, seed: int) -> TraitHead | None:
    users, labels = len(data.users), len(data.labels)
    factors = found_factors(data.train, data.validation, users, labels, size, seed)
    if factors is None:
        return None
    rng = torch.Generator().manual_seed(integer_seed(seed, 0, "", "comparison: trait head"))
    return TraitHead(factors, backbone.shape.hidden_size, len(data.tokens), rng)
