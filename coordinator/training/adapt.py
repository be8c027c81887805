"""Adapts an encoder to what people judge before methods are trained: on texts, not on single judgements.

A model that knows nothing of a person sees judgements only through how often each text got each label, so one
pass over the texts is worth a pass over all judgements; and what users differ in is told by the traits that
judgements alone say of texts (see collaborative.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from umbel.coordinator.model import PersonalModel
from umbel.coordinator.training.checkpoint import Progress, load_checkpoint, restore, save_checkpoint
from umbel.coordinator.training.data import Rows, TrainingData
from umbel.coordinator.training.speed import Steps
from umbel.coordinator.training.step import adamw
from umbel.coordinator.training.trainer import interrupts_held
from umbel.coordinator.training.traits import TraitHead
from umbel.coordinator.training.workers import ALONE, Workers
from umbel.shared.rng import generator, integer_seed
from umbel.shared.text import TokenBatch

HEAD_RATE = 3e-3
OnStep = Callable[[int, int], None]
Parts = Sequence[tuple[Mapping[str, nn.Parameter], float]]
"""Parameters by name, with their rate."""

_WARM_SHARE = 0.1
_LOOKS = 6
_CHUNK_BATCHES = 16
_CHECKPOINT_EVERY = 50
_DECAY = 0.01
_CLIP = 1.0
ORDER = "texts drawn twice are read once"
"""Part of what tells checkpoints apart: those of another order of texts do not go on."""


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


@final
@dataclass(frozen=True, slots=True)
class Keeper:
    """Where an adaptation's checkpoints lie.

    Attributes:
        folder: Their folder.
        fingerprint: Hash of all that the result depends on.
    """

    folder: Path
    fingerprint: str


def adapt(
    model: PersonalModel,
    parts: Parts,
    data: TrainingData,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    precision: Callable[[], Any],
    on_step: OnStep,
    traits: TraitHead | None = None,
    keeper: Keeper | None = None,
    workers: Workers = ALONE,
) -> None:
    """Trains some of a model's parameters without profiles and leaves it at its best look, in place.

    A text is drawn with a probability proportional to the root of how often it was judged, and weighs by that
    root again: every judgement counts alike, and seldom judged texts are still seen.

    Args:
        model: The model; private tensors are zero.
        parts: Parameters with their rate.
        data: Judgements of seen people; held-out ones decide which look is the best.
        steps: Optimizer steps.
        batch_size: Texts per step.
        seed: Of the order of the texts, and of dropout.
        precision: Gives the context in which the model runs.
        on_step: Called with (steps done, steps in all).
        traits: Also trains towards what seen people's judgements say of texts.
        keeper: Where checkpoints are kept and resumed from; nowhere if None.
        workers: Processes that share each step; the first one has the keeper.

    Raises:
        TrainingError: The checkpoint is of another training, or the loss is no longer finite.
        KeyboardInterrupt: Ctrl-C, with a keeper after the checkpoint is written.
    """
    if traits is not None:
        own = {f"traits/{name}": value for name, value in traits.named_parameters()}
        parts = [*parts, (own, HEAD_RATE)]
    weights = {name: value for own, _ in parts for name, value in own.items()}
    model.requires_grad_(False)
    for parameter in weights.values():
        parameter.requires_grad_(True)
    groups = [{"params": list(own.values()), "lr": rate, "base": rate} for own, rate in parts]
    optimizer = adamw(groups, weight_decay=_DECAY)
    progress, best = Progress(), {name: value.detach().clone() for name, value in weights.items()}
    found = None if keeper is None else load_checkpoint(keeper.folder, keeper.fingerprint)
    found = workers.from_first(found)
    if found is not None:
        progress, tensors = found
        kept = restore(tensors, weights, optimizer)
        best = {name: value.to(weights[name].device) for name, value in kept.items()}
    workers.copy_from_first(weights)
    said = opinions(data.train, len(data.labels))
    steps_done = Steps(next(iter(weights.values())).is_cuda, " of the adaptation", "adapt_rate")
    drawn = _batches(said, data, batch_size, generator(seed, 0, "", "comparison: generic"))
    with interrupts_held() as interrupted:
        for chosen in islice(drawn, progress.step, steps):
            step = progress.step
            torch.manual_seed(integer_seed(seed, step, "", f"comparison: dropout{workers.rank or ''}"))
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * schedule(step, steps)
            loss, weight = _loss(model, data, said, chosen, precision, traits, workers)
            told = torch.stack(
                [loss.detach() * weight, *(torch.full_like(loss, v) for v in (0.0, interrupted()))]
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss * weight if workers.count > 1 else loss)
            workers.add_up([told, *(v.grad for v in weights.values() if v.grad is not None)])
            steps_done.took(step, told)
            torch.nn.utils.clip_grad_norm_(list(weights.values()), _CLIP)
            optimizer.step()
            progress.step += 1
            look_now = progress.step % max(steps // _LOOKS, 1) == 0 or progress.step == steps
            keep = progress.step % _CHECKPOINT_EVERY == 0 or progress.step == steps
            stop = steps_done.heard(now=look_now or keep) or (interrupted() and workers.count == 1)
            if look_now and workers.first:
                look = _look(model, data, precision, traits)
                if progress.best_loss is None or look < progress.best_loss:
                    progress.best_loss, progress.best_step = look, progress.step
                    best = {name: value.detach().clone() for name, value in weights.items()}
            if keeper is not None and (keep or stop):
                steps_done.heard(now=True)
                save_checkpoint(keeper.folder, keeper.fingerprint, progress, weights, best, optimizer)
            on_step(progress.step, steps)
            if stop:
                raise KeyboardInterrupt
    workers.copy_from_first(best)
    leave_at(model, list(weights.values()), [best[name] for name in weights])


@torch.no_grad()
def leave_at(model: PersonalModel, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Gives trained parameters the values of their best look, and makes the model one to predict with."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
    model.requires_grad_(False)
    model.eval()


@torch.no_grad()
def mean_states(
    model: PersonalModel, data: TrainingData, texts: npt.NDArray[np.int64], precision: Callable[[], Any]
) -> Tensor:
    """Returns each text's mean token state (texts, d), float32, without profiles."""
    return _readings(model, data, texts, precision)[1]


@torch.no_grad()
def _readings(
    model: PersonalModel, data: TrainingData, texts: npt.NDArray[np.int64], precision: Callable[[], Any]
) -> tuple[Tensor, Tensor]:
    """Returns logits (texts, labels) and mean token states (texts, d), float32, of one pass over texts."""
    model.eval()
    encoder: Any = model.encoder
    logits = torch.empty(len(texts), len(data.labels))
    means = torch.empty(len(texts), int(encoder.config.hidden_size))
    for part in data.tokens.like_length(256, texts):
        ids, mask = _placed(model, data.tokens.rows(texts[part]))
        frame = model.nobody(mask)
        with precision():
            states = model.states(ids, mask, frame)
            answers = model.answers(states, mask, frame)
        weights = mask.unsqueeze(-1).float()
        pooled = (states.float() * weights).sum(1) / weights.sum(1).clamp_min(1.0)
        index = torch.from_numpy(part)
        logits[index], means[index] = answers.float().cpu(), pooled.cpu()
    return logits, means


def schedule(step: int, steps: int) -> float:
    """Returns a rate's factor: linear warm-up over a tenth of the steps, a half cosine to a twentieth."""
    warm = min(1.0, (step + 1) / max(_WARM_SHARE * steps, 1))
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _batches(
    said: Opinions, data: TrainingData, size: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.intp]]:
    """Draws places in `said.text` without end; texts of like length share a batch, which saves padding.

    So do the draws of one text, which is then read once (see `_loss`).
    """
    root = np.sqrt(said.counts.sum(1))
    lengths = data.tokens.mask.sum(1)[said.text]
    while True:
        drawn = rng.choice(len(root), size * _CHUNK_BATCHES, p=root / root.sum())
        drawn = drawn[np.lexsort((drawn, lengths[drawn]))].reshape(_CHUNK_BATCHES, size)
        yield from drawn[rng.permutation(_CHUNK_BATCHES)]


def _loss(
    model: PersonalModel,
    data: TrainingData,
    said: Opinions,
    chosen: npt.NDArray[np.intp],
    precision: Callable[[], Any],
    traits: TraitHead | None,
    workers: Workers = ALONE,
) -> tuple[Tensor, float]:
    """Returns the mean loss over what was drawn, as far as it is this worker's, and what that counts.

    A text drawn twice is read once and counts twice.
    """
    root = np.sqrt(said.counts.sum(1))
    chosen, times = np.unique(chosen, return_counts=True)
    often = times * (len(times) / times.sum())  # their mean is 1
    share = workers.share(len(chosen))
    chosen, often = chosen[share.rows], often[share.rows]
    tokens = data.tokens.rows(said.text[chosen])
    shares = said.counts[chosen] / said.counts[chosen].sum(1, keepdims=True)
    weights = often * root[chosen] / ((root**2).sum() / root.sum())  # the mean over what is drawn
    with precision():
        ids, mask = _placed(model, tokens)
        logits, embedding = model.read(ids, mask, model.nobody(mask))
    target = torch.from_numpy(shares).float().to(logits.device)
    nll = -(functional.log_softmax(logits.float(), dim=-1) * target).sum(-1)
    loss = (nll * torch.from_numpy(weights).float().to(logits.device)).mean()
    if traits is not None:
        loss = loss + traits.loss(embedding.float(), said.text[chosen], often)
    return loss, share.weight


@torch.no_grad()
def held_out_loss(model: PersonalModel, data: TrainingData, precision: Callable[[], Any]) -> float:
    """Returns the mean nll of the seen people's held-out judgements, without profiles."""
    said = opinions(data.validation, len(data.labels))
    return _mean_nll(said, generic_logits(model, data, said.text, precision))


def _mean_nll(said: Opinions, logits: Tensor) -> float:
    nll = -functional.log_softmax(logits, dim=-1).double().numpy()
    return float((nll * said.counts).sum() / said.counts.sum())


@torch.no_grad()
def _look(
    model: PersonalModel, data: TrainingData, precision: Callable[[], Any], traits: TraitHead | None
) -> float:
    """Returns the held-out loss, and how far the held-out texts are from their traits."""
    said = opinions(data.validation, len(data.labels))
    logits, means = _readings(model, data, said.text, precision)
    loss = _mean_nll(said, logits)
    return loss if traits is None else loss + float(traits.loss(means, said.text))


@torch.no_grad()
def generic_logits(
    model: PersonalModel, data: TrainingData, texts: npt.NDArray[np.int64], precision: Callable[[], Any]
) -> Tensor:
    """Returns logits (texts, labels), float32, without profiles, in batches of like length."""
    return _readings(model, data, texts, precision)[0]


def _placed(model: PersonalModel, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
    """Returns ids and mask where the model is."""
    device = next(model.parameters()).device
    return torch.from_numpy(tokens.ids).to(device), torch.from_numpy(tokens.mask).to(device)
