"""The generic model: the whole encoder, trained on what all seen people say of each text together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.sites import Frame
from umbel.coordinator.tasks.classification import Classification
from umbel.coordinator.training.collaborative import found_factors
from umbel.coordinator.training.data import Rows, TrainingData
from umbel.coordinator.training.traits import TraitHead
from umbel.shared.files import atomic_write
from umbel.shared.rng import generator, integer_seed

GENERIC_VERSION = 3
"""Goes up when the same settings would give another generic model."""

OnStep = Callable[[int, int], None]
_WARM_SHARE = 0.1
_LOOKS = 6
_CHUNK_BATCHES = 16
_HEAD_RATE = 3e-3
_WHOLE_HEAD_RATE = 2e-2
_DECAY = 0.01
_CLIP = 1.0


@final
@dataclass(frozen=True, slots=True)
class Opinions:
    """What everybody together says of each text.

    Attributes:
        text: (texts,) the texts that somebody judged.
        counts: (texts, labels) how often each label was given.
    """

    text: npt.NDArray[np.int64]
    counts: npt.NDArray[np.float64]


def opinions(rows: Rows, labels: int) -> Opinions:
    """Adds up the judgements of each text.

    A model that knows nothing of the person sees them through these counts alone, and one pass over the texts
    is worth a pass over all judgements.
    """
    text, place = np.unique(rows.text, return_inverse=True)
    counts = np.zeros((len(text), labels))
    np.add.at(counts, (place, rows.label), 1.0)
    return Opinions(text, counts)


def train_generic(
    model: PersonalModel,
    parts: Sequence[tuple[Sequence[Tensor], float]],
    data: TrainingData,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    precision: Callable[[], Any],
    on_step: OnStep,
    traits: TraitHead | None = None,
) -> None:
    """Trains some of a model's parameters without profiles and leaves it at its best look, in place.

    A text is drawn with a probability proportional to the root of how often it was judged, and weighs by that
    root again: every judgement counts alike, and seldom judged texts are still seen.

    Args:
        model: Its methods, if any, have no private tensors.
        parts: Parameters with their rate.
        data: Judgements of seen people; held-out ones decide which look is the best.
        steps: Optimizer steps.
        batch_size: Texts per step.
        seed: Of the order of the texts, and of dropout.
        precision: Gives the context in which the model runs.
        on_step: Called with (steps done, steps in all).
        traits: Also trains towards what seen people's judgements say of texts.
    """
    model.requires_grad_(False)
    if traits is not None:
        parts = [*parts, (list(traits.parameters()), _HEAD_RATE)]
    for parameters, _ in parts:
        for parameter in parameters:
            parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [{"params": list(own), "lr": rate, "base": rate} for own, rate in parts],
        betas=(0.9, 0.98),
        weight_decay=_DECAY,
        foreach=True,
    )
    everything = [parameter for own, _ in parts for parameter in own]
    said = opinions(data.train, len(data.labels))
    drawn = _batches(said, data, batch_size, generator(seed, 0, "", "comparison: generic"))
    best, kept = math.inf, [parameter.detach().clone() for parameter in everything]
    for step in range(steps):
        torch.manual_seed(integer_seed(seed, step, "", "comparison: dropout"))
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * _schedule(step, steps)
        loss = _loss(model, data, said, next(drawn), precision, traits)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(everything, _CLIP)
        optimizer.step()
        on_step(step + 1, steps)
        if (step + 1) % max(steps // _LOOKS, 1) == 0 or step + 1 == steps:
            found = _look(model, data, precision, traits)
            if found < best:
                best, kept = found, [parameter.detach().clone() for parameter in everything]
    _leave_at(model, everything, kept)


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
            group["lr"] = _WHOLE_HEAD_RATE * _schedule(step, steps)
        optimizer.zero_grad()
        torch.autograd.backward(_counted_loss(x @ task.weight.T + task.bias, seen))
        optimizer.step()
        on_step(step + 1, steps)
        with torch.no_grad():
            found = float(_counted_loss(z @ task.weight.T + task.bias, held))
        if found < best:
            best, kept = found, [value.detach().clone() for value in parameters]
    _leave_at(model, parameters, kept)


@torch.no_grad()
def _leave_at(model: PersonalModel, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Gives trained parameters the values of their best look, and makes the model one to predict with."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
    model.requires_grad_(False)
    model.eval()


def _counted_loss(logits: Tensor, counts: Tensor) -> Tensor:
    """Returns the mean nll of judgements, of which `counts` (texts, labels) says how many there are."""
    return -(functional.log_softmax(logits, dim=-1) * counts).sum() / counts.sum()


@torch.no_grad()
def mean_states(
    model: PersonalModel, data: TrainingData, texts: npt.NDArray[np.int64], precision: Callable[[], Any]
) -> Tensor:
    """Returns each text's mean token state (texts, d), float32, without profiles."""
    model.eval()
    found: Tensor | None = None
    for part in data.tokens.like_length(256, texts):
        tokens = data.tokens.rows(texts[part])
        ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
        with precision():
            states = model.states(ids, mask, Frame({}, mask))
        pooled = _pooled(model, states.float(), mask)
        found = torch.empty(len(texts), pooled.shape[1]) if found is None else found
        found[torch.from_numpy(part)] = pooled
    assert found is not None
    return found


def _pooled(model: PersonalModel, states: Tensor, mask: Tensor) -> Tensor:
    assert isinstance(model.task, Classification)
    return model.task.pool(states, mask)


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / max(_WARM_SHARE * steps, 1))
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _batches(
    said: Opinions, data: TrainingData, size: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.intp]]:
    """Draws places in `said.text` without end; texts of like length share a batch, which saves padding."""
    root = np.sqrt(said.counts.sum(1))
    lengths = data.tokens.mask.sum(1)[said.text]
    while True:
        drawn = rng.choice(len(root), size * _CHUNK_BATCHES, p=root / root.sum())
        drawn = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(_CHUNK_BATCHES, size)
        yield from drawn[rng.permutation(_CHUNK_BATCHES)]


def _loss(
    model: PersonalModel,
    data: TrainingData,
    said: Opinions,
    chosen: npt.NDArray[np.intp],
    precision: Callable[[], Any],
    traits: TraitHead | None,
) -> Tensor:
    root = np.sqrt(said.counts.sum(1))
    tokens = data.tokens.rows(said.text[chosen])
    shares = said.counts[chosen] / said.counts[chosen].sum(1, keepdims=True)
    weights = root[chosen] / ((root**2).sum() / root.sum())  # the mean over what is drawn
    with precision():
        logits, embedding = _read(model, torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask))
    target = torch.from_numpy(shares).float()
    nll = -(functional.log_softmax(logits.float(), dim=-1) * target).sum(-1)
    loss = (nll * torch.from_numpy(weights).float()).mean()
    return loss if traits is None else loss + traits.loss(embedding.float(), said.text[chosen])


@torch.no_grad()
def held_out_loss(model: PersonalModel, data: TrainingData, precision: Callable[[], Any]) -> float:
    """Returns the mean nll of the seen people's held-out judgements, without profiles."""
    model.eval()
    said = opinions(data.validation, len(data.labels))
    logits = generic_logits(model, data, said.text, precision)
    nll = -functional.log_softmax(logits, dim=-1).double().numpy()
    return float((nll * said.counts).sum() / said.counts.sum())


@torch.no_grad()
def _look(
    model: PersonalModel, data: TrainingData, precision: Callable[[], Any], traits: TraitHead | None
) -> float:
    """Returns the held-out loss, and how far the held-out texts are from their traits."""
    loss = held_out_loss(model, data, precision)
    if traits is None:
        return loss
    texts = np.unique(data.validation.text)
    return loss + float(traits.loss(mean_states(model, data, texts, precision), texts))


@torch.no_grad()
def generic_logits(
    model: PersonalModel, data: TrainingData, texts: npt.NDArray[np.int64], precision: Callable[[], Any]
) -> Tensor:
    """Returns logits (texts, labels), float32, without profiles, in batches of like length."""
    model.eval()
    found = torch.empty(len(texts), len(data.labels))
    for part in data.tokens.like_length(256, texts):
        tokens = data.tokens.rows(texts[part])
        with precision():
            logits, _ = _read(model, torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask))
        found[torch.from_numpy(part)] = logits.float()
    return found


def _read(model: PersonalModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logits and embeddings under zero profiles."""
    zeros = {tensor.name: torch.zeros(1, *tensor.shape) for tensor in model.profile_spec().tensors}
    frame = model.frame(mask, torch.zeros(len(ids), dtype=torch.long), zeros)
    frame.users = zeros
    return model.read(ids, mask, frame)


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
    if _read_back(model, kept):
        return model.requires_grad_(False).eval()
    if rate == 0:
        train_head(model, data, steps=steps, precision=precision, on_step=on_step)
    else:
        # Most word embeddings are in no text of the data; leaving all of them saves half of a step's memory.
        frozen = {id(value) for value in model.encoder.get_submodule("embeddings").parameters()}
        rest = [value for value in model.encoder.parameters() if id(value) not in frozen]
        train_generic(
            model,
            [(list(model.task.parameters()), _HEAD_RATE), (rest, rate)],
            data,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            precision=precision,
            on_step=on_step,
            traits=_traits(backbone, data, traits, seed),
        )
    tensors = {name: value.detach().contiguous().clone() for name, value in model.named_parameters()}
    atomic_write(kept, save(tensors))
    return model


def _traits(backbone: Backbone, data: TrainingData, size: int, seed: int) -> TraitHead | None:
    users, labels = len(data.users), len(data.labels)
    factors = found_factors(data.train, data.validation, users, labels, size, seed)
    if factors is None:
        return None
    rng = torch.Generator().manual_seed(integer_seed(seed, 0, "", "comparison: trait head"))
    return TraitHead(factors, backbone.shape.hidden_size, len(data.tokens), rng)


def _read_back(model: PersonalModel, kept: Path) -> bool:
    """Takes a kept model's values, if there is one of the same shapes that holds numbers."""
    try:
        tensors = load(kept.read_bytes()) if kept.is_file() else {}
    except SafetensorError:
        return False
    parameters = dict(model.named_parameters())
    fits = tensors.keys() == parameters.keys() and all(
        tensors[name].shape == value.shape and bool(torch.isfinite(tensors[name]).all())
        for name, value in parameters.items()
    )
    if fits:
        model.load_state_dict(tensors, strict=False)
    return fits
