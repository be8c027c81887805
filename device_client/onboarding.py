"""The device's first minute: a profile from the first texts and examples of its owner, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.learning import (
    NO_SHARED,
    Encoded,
    example_logits,
    read_once,
    read_tokens,
    together,
)
from umbel.shared.errors import ReleaseError
from umbel.shared.onboarding import UNKNOWN
from umbel.shared.profile import FloatArray
from umbel.shared.text import IntArray, TokenBatch

_ROWS = 4096

Starter = Callable[[Sequence[tuple[int, IntArray]]], Mapping[str, FloatArray]]
"""(user, which of their examples are known), n of them -> the profile that each starts from: (n, *shape)."""


@final
@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one user: texts, read once, and the labels of some of them.

    Attributes:
        logits: (texts, labels) without a profile.
        embedding: (texts, d) without a profile.
        labels: (texts,) label numbers; -1 where only the text is known.
    """

    logits: FloatArray
    embedding: FloatArray
    labels: IntArray

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: IntArray) -> Known:
        """Returns what is known by some of the texts alone."""
        return Known(self.logits[index], self.embedding[index], self.labels[index])


def read_known(
    engine: Engine, examples: Encoded, texts: TokenBatch, shared: Mapping[str, FloatArray] = NO_SHARED
) -> Known:
    """Reads a user's texts once, without a profile; examples that have been read are not read again.

    Args:
        engine: The release.
        examples: Texts that have a label.
        texts: Texts of which only the text is known; they come after the examples.
        shared: A round's values of trainable shared tensors.
    """
    unlabelled = Encoded(texts, np.full(len(texts), UNKNOWN, np.int64))
    known = together(read_once(engine, [examples, unlabelled], shared))
    if known.embedding is None:
        return Known(*read_tokens(engine, known.tokens, shared), known.labels)
    nobody = engine.release.manifest.profile.zeros(1)
    return Known(example_logits(engine, known, nobody, shared=shared), known.embedding, known.labels)


def onboarded(
    engine: Engine, users: Sequence[Known], shared: Mapping[str, FloatArray] = NO_SHARED
) -> tuple[dict[str, FloatArray], FloatArray]:
    """Writes the first profiles of some users, each from what is known of them alone.

    Args:
        engine: A release that has onboarding.
        users: What is known of each; of nothing comes the generic profile.
        shared: A round's values of trainable shared tensors.

    Returns:
        Private tensors (users, *shape) float32, not rounded yet, and each prototype's weight
        (users, prototypes).

    Raises:
        ReleaseError: The release has no onboarding, or what it writes is not finite.
    """
    if not engine.onboards:
        raise ReleaseError(
            "the release has no onboarding",
            hint="Learn from labelled examples: umbel device learn. Its publisher can add it: steps under "
            "[onboarding] in the coordinator's configuration.",
        )
    logits, embedding, labels = (
        np.concatenate([getattr(known, part) for known in users])
        for part in ("logits", "embedding", "labels")
    )
    owner = np.repeat(np.arange(len(users)), [len(known) for known in users])
    profile, weights = engine.onboard(logits, embedding, labels, owner, len(users), shared)
    broken = [name for name, values in profile.items() if not np.isfinite(values).all()]
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        broken.append("weights of prototypes")
    if broken:
        raise ReleaseError(
            "onboarding gives profiles that are no numbers",
            [f"{name}: not all of it is finite, or of weights, not negative" for name in broken],
            "Tell the release's publisher.",
        )
    return profile, weights


def influences(engine: Engine, known: Known) -> FloatArray:
    """Returns how much each text moved a profile: (texts,), between 0 and 1, their sum 1 or all 0.

    The share of |profile - profile without the text|, all private tensors together, each in units of its own
    size.
    """
    count = len(known)
    if count == 0:
        return np.zeros(0, np.float32)
    every = np.arange(count)
    whole, _ = onboarded(engine, [known])
    together = max(1, _ROWS // count)  # each one left out takes as many rows as there are texts
    moved = np.zeros(count)
    for at in range(0, count, together):
        part = every[at : at + together]
        rest, _ = onboarded(engine, [known.rows(every[every != left]) for left in part])
        for name, values in rest.items():
            flat, own = values.reshape(len(part), -1).astype(np.float64), whole[name].ravel()
            size = np.linalg.norm(own)
            moved[part] += (np.linalg.norm(flat - own, axis=1) / size if size else 0.0) ** 2
    moved = np.sqrt(moved)
    total = moved.sum()
    return np.asarray(moved / total if total else moved, np.float32)


def examples_starter(
    engine: Engine, supports: Sequence[Encoded], share: float, shared: Mapping[str, FloatArray] = NO_SHARED
) -> Starter | None:
    """Returns where users start of whom labelled examples alone are known; arguments as in `starter`."""
    if not engine.onboards or share == 0.0:
        return None
    nothing = engine.encode([])
    known = [read_known(engine, own, nothing, shared) for own in supports]
    return starter(engine, known, [len(own) for own in supports], share, shared)


def starter(
    engine: Engine,
    users: Sequence[Known],
    examples: Sequence[int],
    share: float,
    shared: Mapping[str, FloatArray] = NO_SHARED,
) -> Starter | None:
    """Returns where learning starts: from what onboarding makes of the examples that are known at the time.

    Args:
        engine: The release.
        users: What is known of each user, labelled examples first.
        examples: How many labelled ones each of them has; their further texts are always known.
        share: How much of the onboarded profile is used.
        shared: A round's values of trainable shared tensors, as `users` were read.

    Returns:
        None where the release has no onboarding, or nothing of it is used: learning starts from zeros.
    """
    if not engine.onboards or share == 0.0:
        return None

    def start(places: Sequence[tuple[int, IntArray]]) -> dict[str, FloatArray]:
        known = [
            users[user].rows(np.concatenate([rows, np.arange(examples[user], len(users[user]))]))
            for user, rows in places
        ]
        profile, _ = onboarded(engine, known, shared)
        return {name: values * np.float32(share) for name, values in profile.items()}

    return start
