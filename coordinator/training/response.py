"""Where a prompt that depends on the person starts: along what moves answers as seen people differ.

A private row that moves along a random direction hardly changes an answer, and what it changes has nothing to
do with what people differ in: gradient descent finds such directions very slowly. But how a small move
changes each text's answers is known exactly, by one backward pass. So the directions are found by least
squares: a move along direction j shall change the answers of a text by what seen people's summaries, along
their j-th strongest difference, say of that text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from umbel.coordinator.model import PersonalModel
from umbel.coordinator.training.data import Rows, TrainingData
from umbel.shared.rng import generator

_TEXTS = 1024
_BATCH = 64
_RIDGE = 0.1  # of the mean squared gradient entry
_SHARES = tuple(2.0**-power for power in range(11))  # of the size that least squares finds
_TRIED = 256  # judgements on which they are tried
_HELD_OUT = 50  # judgements that say how large effects are
_NOTHING = 1e-9  # of the strongest difference between people, or of a curvature: rounding

Matrix = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Summary:
    """What seen people's judgements say of them, and of texts.

    A person's logits of label c for text t are larger by about
    a * sum over features f of values[u, c, f] feature[t, f] + b * lean[u, c], with a and b the same for all.

    Attributes:
        values: (users, labels * features + labels): tastes, label by label, then leans.
        texts: (texts,) which texts have features, ascending.
        features: (texts, features).
    """

    values: Matrix
    texts: npt.NDArray[np.int64]
    features: Matrix

    @property
    def labels(self) -> int:
        """How many labels have tastes and leans: all, or all but the first."""
        return int(self.values.shape[1] // (self.features.shape[1] + 1))


def responding_start(
    model: PersonalModel, data: TrainingData, summary: Summary, size: int, reach: float, seed: int
) -> tuple[Tensor, Tensor] | None:
    """Finds coordinates of seen people, and what a prompt moves along for each coordinate.

    Least squares know answers to first order only, so sizes of the moves are tried on held-out judgements.

    Args:
        model: As it was made; exactly one of its methods moves its prompt by `Frame.shift`.
        data: What is trained on; held-out judgements say how large effects are.
        summary: What judgements say.
        size: How many coordinates, at most.
        reach: How far a move may go: its root mean square over entries and seen people, at most.
        seed: Of the choice of texts.

    Returns:
        Coordinates (users, q) and directions (d, q), float32, q at most `size`; None where no move of any
        size makes held-out judgements likelier, as before the head has learned anything.
    """
    left, values, right = np.linalg.svd(summary.values, full_matrices=False)
    count = min(size, int((values > _NOTHING * max(values.max(), _NOTHING)).sum()))
    if not count:
        return None
    coordinates = left[:, :count] * values[:count]
    order = generator(seed, 0, "", "responses").permutation(len(summary.texts))
    chosen = np.sort(order[:_TEXTS])
    texts = summary.texts[chosen]
    logits, moves = _responses(model.eval(), data, texts)  # (texts, labels), (texts, labels, d)
    judged = _judged(data, texts)
    parts = _wanted(summary, right[:count], chosen, logits.shape[1])  # of (texts, labels, q)
    weights = _slopes(judged, texts, logits, parts, coordinates)
    wanted = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    flat = moves.reshape(-1, moves.shape[2])
    square = flat.T @ flat
    ridge = _RIDGE * np.trace(square) / len(square)
    directions = np.linalg.solve(
        square + ridge * np.eye(len(square)), flat.T @ np.reshape(wanted, (len(flat), count))
    )
    where, along = torch.from_numpy(coordinates).float(), torch.from_numpy(directions).float()
    moved = float((where @ along.T).square().mean().sqrt())
    along = along * min(1.0, reach / moved) if moved > 0 else along
    share = _best_share(model, data, judged, where, along, seed)
    return None if share == 0.0 else (where, share * along)


def _best_share(
    model: PersonalModel, data: TrainingData, judged: Rows, where: Tensor, along: Tensor, seed: int
) -> float:
    """Returns the share of the moves under which judgements are likeliest in the model itself; 0 for none."""
    chosen = generator(seed, 0, "", "responses tried").permutation(len(judged))[:_TRIED]
    rows = judged.take(np.sort(chosen))
    device = next(model.parameters()).device

    @torch.no_grad()
    def nll(share: float) -> float:
        total = 0.0
        for index in data.tokens.like_length(_BATCH, rows.text):
            part, own = data.tokens.rows(rows.text[index]), rows.take(index)
            ids, mask, user, label = (
                torch.from_numpy(array).to(device) for array in (part.ids, part.mask, own.user, own.label)
            )
            with torch.autocast(device.type, enabled=False):
                frame = model.nobody(mask)
                frame.shift = share * where.to(device)[user] @ along.to(device).T
                total += float(model.task.nll(model.run(ids, mask, frame), label).double().sum())
        return total

    found = {share: nll(share) for share in (0.0, *_SHARES)}
    return min(found, key=lambda share: found[share])


def _wanted(summary: Summary, axes: Matrix, chosen: npt.NDArray[np.int64], labels: int) -> list[Matrix]:
    """Returns what tastes, and what leans, along each axis say of logits: (texts, labels, axes) each."""
    features, own = summary.features[chosen], summary.labels
    width = features.shape[1]
    taste = axes[:, : own * width].reshape(len(axes), own, width)
    lean = axes[:, own * width :]
    parts = []
    for said in (
        np.einsum("tf,jcf->tcj", features, taste),
        np.broadcast_to(lean.T, (len(features), own, len(axes))),
    ):
        found = np.zeros((len(features), labels, len(axes)))
        found[:, labels - own :] = said
        parts.append(found - found.mean(1, keepdims=True))
    return parts


def _responses(
    model: PersonalModel, data: TrainingData, texts: npt.NDArray[np.int64]
) -> tuple[Matrix, Matrix]:
    """Returns logits (texts, labels), and their gradient by a move of the prompt (texts, labels, d)."""
    encoder: Any = model.encoder
    width = int(encoder.get_input_embeddings().weight.shape[1])
    device = next(model.parameters()).device
    found: dict[int, tuple[Matrix, Matrix]] = {}
    for index in data.tokens.like_length(_BATCH, texts):
        part = data.tokens.rows(texts[index])
        ids, mask = (torch.from_numpy(array).to(device) for array in (part.ids, part.mask))
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            frame = model.nobody(mask)
            frame.shift = torch.zeros(len(ids), width, device=device, requires_grad=True)
            logits = model.run(ids, mask, frame)
            centred = logits - logits.mean(1, keepdim=True)
            moves = [
                torch.autograd.grad(row.sum(), frame.shift, retain_graph=True)[0] for row in centred.unbind(1)
            ]
        pairs = zip(logits.detach().double().cpu(), torch.stack(moves, 1).double().cpu(), strict=True)
        found |= {int(n): (one.numpy(), other.numpy()) for n, (one, other) in zip(index, pairs, strict=True)}
    rows = [found[number] for number in range(len(texts))]
    return np.stack([one for one, _ in rows]), np.stack([other for _, other in rows])


def _judged(data: TrainingData, texts: npt.NDArray[np.int64]) -> Rows:
    """Returns held-out judgements of these texts; those trained on where there are too few."""
    held, seen = (
        rows.take(np.flatnonzero(np.isin(rows.text, texts))) for rows in (data.validation, data.train)
    )
    return held if len(held) >= _HELD_OUT else seen


def _slopes(
    rows: Rows,
    texts: npt.NDArray[np.int64],
    logits: Matrix,
    parts: Sequence[Matrix],
    coordinates: Matrix,
) -> list[float]:
    """Returns how much of each part, 0 at least, makes judgements likeliest, by one Newton step from none.

    Args:
        rows: Judgements.
        texts: What the rows of the next two are of.
        logits: (texts, labels) without a profile.
        parts: Of (texts, labels, q): what a step along each coordinate adds to them.
        coordinates: (users, q).
    """
    place = np.searchsorted(texts, rows.text)
    chance = np.exp(logits - logits.max(1, keepdims=True))
    chance = (chance / chance.sum(1, keepdims=True))[place]
    missing = np.eye(logits.shape[1])[rows.label] - chance
    offsets = [np.einsum("ij,icj->ic", coordinates[rows.user], part[place]) for part in parts]
    offsets = [offset - (offset * chance).sum(1, keepdims=True) for offset in offsets]
    gradient = np.array([(offset * missing).sum() for offset in offsets])
    curvature = np.array([[(one * other * chance).sum() for other in offsets] for one in offsets])
    curvature += (_NOTHING + _NOTHING * np.trace(curvature)) * np.eye(len(offsets))
    best, slopes = 0.0, np.zeros(len(offsets))
    for count in range(1, len(offsets) + 1):  # where one would be negative, the others are found without it
        for kept in map(list, combinations(range(len(offsets)), count)):
            found = np.linalg.solve(curvature[np.ix_(kept, kept)], gradient[kept])
            if (found >= 0).all() and found @ gradient[kept] > best:
                best, slopes = float(found @ gradient[kept]), np.zeros(len(offsets))
                slopes[kept] = found
    return [float(slope) for slope in slopes]
