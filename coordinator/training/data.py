"""Examples of seen users, encoded once, and the order in which training sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from umbel.coordinator.config import TrainingConfig
from umbel.shared.errors import ExampleError, TrainingError
from umbel.shared.examples import Example
from umbel.shared.rng import generator
from umbel.shared.text import IntArray, TextEncoder, TokenBatch

_CHUNK_BATCHES = 16


@final
@dataclass(frozen=True, slots=True)
class Rows:
    """Some examples: which text, whose, which label; all (n,) int64."""

    text: IntArray
    user: IntArray
    label: IntArray

    def __len__(self) -> int:
        return len(self.text)

    def take(self, index: npt.NDArray[np.intp]) -> Rows:
        """Returns some of the rows."""
        return Rows(self.text[index], self.user[index], self.label[index])


@final
@dataclass(frozen=True, slots=True)
class TrainingData:
    """What the coordinator trains on.

    Attributes:
        labels: Label names, in the order of the logits.
        users: Ids of the users whose examples are trained on, in the order of `Rows.user`.
        tokens: Every distinct text, encoded once.
        train: Examples to train on.
        validation: Held-out examples of the same users, for early stopping.
        calibration: Users kept out of training, for choosing the recipe: each one's rows, in random order.
    """

    labels: tuple[str, ...]
    users: tuple[str, ...]
    tokens: TokenBatch
    train: Rows
    validation: Rows
    calibration: tuple[Rows, ...]


def prepare(
    examples: Sequence[Example],
    labels: tuple[str, ...],
    encoder: TextEncoder,
    config: TrainingConfig,
    seed: int,
) -> TrainingData:
    """Splits seen users' examples into training, validation and calibration, by seed.

    Raises:
        ExampleError: A label is not among `labels`.
        TrainingError: Nobody is left to train on, or nothing can be held out.
    """
    texts = {text: number for number, text in enumerate(dict.fromkeys(example.text for example in examples))}
    groups = _by_user(examples, texts, labels)
    calibration = _calibration_users(list(groups), config.calibration_share, seed)
    users = tuple(user for user in groups if user not in calibration)
    if not users:
        raise TrainingError("there is nobody to train on", hint="Give examples of more users.")
    train, validation = [], []
    for number, user in enumerate(users):
        held, kept = _held_out(groups[user], config.validation_share, seed, user)
        train.append(_owned(kept, number))
        validation.append(_owned(held, number))
    if not any(map(len, validation)):
        raise TrainingError(
            "nothing can be held out: every user to train on has a single example",
            hint="Give at least two examples of some users.",
        )
    return TrainingData(
        labels,
        users,
        encoder.encode(list(texts)),
        stack(train),
        _thinned(stack(validation), config.validation_examples, seed),
        tuple(_shuffled(groups[user], seed, user) for user in sorted(calibration)),
    )


def _by_user(examples: Sequence[Example], texts: dict[str, int], labels: tuple[str, ...]) -> dict[str, Rows]:
    numbers = {label: number for number, label in enumerate(labels)}
    unknown = [f"example {n}: unknown label" for n, e in enumerate(examples, 1) if e.label not in numbers]
    if unknown:
        raise ExampleError("labels do not fit the task", unknown, f"The labels are: {', '.join(labels)}.")
    groups: dict[str, list[tuple[int, int]]] = {}
    for example in examples:
        groups.setdefault(example.user, []).append((texts[example.text], numbers[example.label]))
    rows = {user: np.array(groups[user], np.int64) for user in sorted(groups)}
    return {user: Rows(r[:, 0], np.zeros(len(r), np.int64), r[:, 1]) for user, r in rows.items()}


def _calibration_users(users: list[str], share: float, seed: int) -> frozenset[str]:
    count = round(share * len(users))
    if share > 0 and len(users) > 2:
        count = max(count, 1)
    order = generator(seed, 0, "", "calibration").permutation(len(users))
    return frozenset(users[number] for number in order[:count])


def _held_out(rows: Rows, share: float, seed: int, user: str) -> tuple[Rows, Rows]:
    shuffled = _shuffled(rows, seed, user)
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    index = np.arange(len(rows))
    return shuffled.take(index[:count]), shuffled.take(index[count:])


def _shuffled(rows: Rows, seed: int, user: str) -> Rows:
    return rows.take(generator(seed, 0, user, "validation").permutation(len(rows)))


def _owned(rows: Rows, user: int) -> Rows:
    return Rows(rows.text, np.full(len(rows), user, np.int64), rows.label)


def stack(parts: Sequence[Rows]) -> Rows:
    """Returns all rows of all parts, one part after the other."""
    return Rows(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("text", "user", "label")))


def _thinned(rows: Rows, most: int, seed: int) -> Rows:
    if len(rows) <= most:
        return rows
    return rows.take(np.sort(generator(seed, 0, "", "thin validation").permutation(len(rows))[:most]))


def epoch_batches(
    data: TrainingData, config: TrainingConfig, seed: int, epoch: int
) -> list[npt.NDArray[np.intp]]:
    """Returns the batches of one epoch as row numbers of `data.train`: a function of (seed, epoch) alone.

    Each user gives at most `examples_per_user` examples. Texts of like length share a batch, which saves
    padding; batches come in random order.
    """
    rng = generator(seed, epoch, "", "epoch")
    order = rng.permutation(len(data.train))
    seen: dict[int, int] = {}
    chosen = []
    for row in order:
        user = int(data.train.user[row])
        seen[user] = seen.get(user, 0) + 1
        if seen[user] <= config.examples_per_user:
            chosen.append(row)
    lengths = data.tokens.mask.sum(1)[data.train.text]
    batches: list[npt.NDArray[np.intp]] = []
    chunk = config.batch_size * _CHUNK_BATCHES
    for start in range(0, len(chosen), chunk):
        part = np.array(chosen[start : start + chunk])
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[at : at + config.batch_size] for at in range(0, len(part), config.batch_size)]
    return [batches[number] for number in rng.permutation(len(batches))]
