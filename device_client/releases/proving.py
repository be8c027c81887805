"""Whether a new release is as good to its owner as the one in use, by examples that were not learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from umbel.device_client.device import cross_validate
from umbel.device_client.engine import Engine
from umbel.device_client.held_out import nll_of, text_folds
from umbel.device_client.learning import Encoded, encode_examples, example_logits, read_once, stored, together
from umbel.device_client.onboarding import read_known, starter
from umbel.shared.examples import Example
from umbel.shared.files import sha256_bytes
from umbel.shared.profile import FloatArray
from umbel.shared.release import EMBEDDED, Release
from umbel.shared.strength import Index

FOLDS = 4
_CUTS = 3
_TIE = 1e-6
"""Nats that float32 may make of nothing."""


@final
@dataclass(frozen=True, slots=True)
class Proof:
    """How two releases do on one owner's examples, each asked under a profile that does not know it.

    Attributes:
        examples: How many there are.
        nll_old: Their mean negative log-likelihood with the release in use, in nats.
        nll_new: The same with the new one.
    """

    examples: int
    nll_old: float
    nll_new: float

    @property
    def as_good(self) -> bool:
        """Whether the new release is at least as good."""
        return self.nll_new <= self.nll_old + _TIE

    def as_json(self) -> dict[str, Any]:
        """Returns it for scripts and for the store."""
        return {"examples": self.examples, "nll_old": self.nll_old, "nll_new": self.nll_new}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Proof:
        """Returns what `as_json` gave."""
        return Proof(row["examples"], row["nll_old"], row["nll_new"])


def proven(
    old: Release,
    new: Release,
    how: str | None,
    examples: Sequence[Example],
    texts: Sequence[str],
    threads: int,
) -> Proof | None:
    """Compares two releases as they serve their owner.

    Folds go by text, so that both releases learn from the same examples and are asked the same. How texts
    fall into folds is chance, and with few examples it weighs; where learning takes moments, three ways to
    cut are averaged.

    Args:
        old: The release in use.
        new: The other one.
        how: How the profile came about: "learned" or "onboarded"; None: there is none, so that its owner gets
            what everybody gets.
        examples: The owner's examples.
        texts: Their texts without a label, of which onboarding makes use.
        threads: Threads of a graph run.

    Returns:
        None where there are no examples.

    Raises:
        ExampleError: A label is not one of both releases'.
        ProfileError: Learning did not converge.
    """
    if not examples:
        return None
    cuts = [cut(examples, number) for number in range(_CUTS if _quick(old) and _quick(new) else 1)]
    if len(np.unique(cuts[0])) < 2:
        how = None  # nothing is left to learn from
    sides = [
        float(np.mean([_held_out(release, how, examples, texts, folds, threads) for folds in cuts]))
        for release in (old, new)
    ]
    return Proof(len(examples), *sides)


def cut(examples: Sequence[Example], number: int) -> Index:
    """Returns the fold of each example, (n,), for one of several ways to cut the same texts into folds."""
    keys = [sha256_bytes(f"{number} {example.text}".encode()) for example in examples]
    return text_folds(keys, FOLDS)


def _quick(release: Release) -> bool:
    """Says whether texts are read once, so that what is learned from them takes moments."""
    return all(f"{graph}.onnx" in release.manifest.blobs for graph in EMBEDDED)


def _held_out(
    release: Release,
    how: str | None,
    examples: Sequence[Example],
    texts: Sequence[str],
    folds: Index,
    threads: int,
) -> float:
    """Returns the mean nll of the examples, each under what the others gave."""
    if how == "learned":
        found = cross_validate(release, examples, folds, texts=texts, threads=threads)
        assert found is not None
        return float(found.nll_personal.mean())
    engine = Engine(release, threads=threads)
    (support,) = read_once(engine, [encode_examples(engine, examples)])
    if how == "onboarded" and engine.onboards:
        return _onboarded(engine, support, texts, folds)
    logits = example_logits(engine, support, release.manifest.profile.zeros(1))
    return float(nll_of(logits, support.labels).mean())


def _onboarded(engine: Engine, support: Encoded, texts: Sequence[str], folds: Index) -> float:
    known = read_known(engine, support, engine.encode(texts))
    start = starter(engine, [known], [len(support)], 1.0)
    assert start is not None
    rows, names = np.arange(len(support)), np.unique(folds)
    exact: Mapping[str, FloatArray] = start([(0, rows[folds != name]) for name in names])
    held = [support.rows(rows[folds == name]) for name in names]
    asked = together(held)
    owner = np.repeat(np.arange(len(held)), [len(part) for part in held])
    logits = example_logits(engine, asked, stored(engine, exact, held), owner=owner)
    return float(nll_of(logits, asked.labels).mean())
