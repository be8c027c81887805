"""Whether a new release is as good to its owner as the one in use, by examples that were not learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from umbel.device_client.cross_validation import cross_validated
from umbel.device_client.engine import Engine
from umbel.device_client.held_out import nll_of, text_folds
from umbel.device_client.learning import Encoded, example_logits, stored, together
from umbel.device_client.onboarding import Known, starter
from umbel.device_client.own_learning import OwnTexts
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


@final
class Trial:
    """One owner's examples, by which releases are compared as they serve their owner.

    Folds go by text, so that both releases learn from the same examples and are asked the same. How texts
    fall into folds is chance, and with few examples it weighs; where learning takes moments, three ways to
    cut are averaged.
    """

    def __init__(self, how: str | None, examples: Sequence[Example], texts: Sequence[str], *, quick: bool):
        """Cuts the examples.

        Args:
            how: How the profile comes about: "learned" or "onboarded"; None: there is none, so that its owner
                gets what everybody gets.
            examples: The owner's examples; there may be none, and then there is nothing to compare by.
            texts: Their texts without a label, of which onboarding makes use.
            quick: Whether `is_quick` says so of both releases.
        """
        self.how, self._examples, self._texts = how, examples, texts
        self._cuts = [cut(examples, number) for number in range(_CUTS if quick else 1)]
        self._learns = len(np.unique(self._cuts[0])) > 1  # else nothing is left to learn from

    def texts(self, engine: Engine, known: Mapping[int, FloatArray] | None = None) -> OwnTexts:
        """Returns what a release reads to serve its owner, and nothing of it read yet.

        Args:
            engine: The release.
            known: What some texts were read as, by their place among examples and further texts.
        """
        if self.how == "learned":
            return OwnTexts(engine, self._examples, self._texts, known)
        onboards = self.how == "onboarded" and engine.onboards
        return OwnTexts(engine, self._examples, self._texts, known, onboards=onboards)

    def nll(self, own: OwnTexts) -> float | None:
        """Returns the mean nll of the examples, each under what the others gave; None if there are none.

        Args:
            own: What `texts` gave, read.

        Raises:
            ProfileError: Learning did not converge.
        """
        if not self._examples:
            return None
        return float(np.mean([self._held_out(own, folds) for folds in self._cuts]))

    def _held_out(self, own: OwnTexts, folds: Index) -> float:
        engine, support = own.engine, own.support()
        if self.how == "learned" and self._learns:
            found = cross_validated(engine, support, own.recipe, folds, start=own.starter())
            assert found is not None
            return float(found.nll_personal.mean())
        if self.how == "onboarded" and self._learns and engine.onboards:
            return _onboarded(engine, support, own.known(), folds)
        logits = example_logits(engine, support, engine.release.manifest.profile.zeros(1))
        return float(nll_of(logits, support.labels).mean())


def cut(examples: Sequence[Example], number: int) -> Index:
    """Returns the fold of each example, (n,), for one of several ways to cut the same texts into folds."""
    keys = [sha256_bytes(f"{number} {example.text}".encode()) for example in examples]
    return text_folds(keys, FOLDS)


def is_quick(release: Release) -> bool:
    """Says whether texts are read once, so that what is learned from them takes moments."""
    return all(f"{graph}.onnx" in release.manifest.blobs for graph in EMBEDDED)


def _onboarded(engine: Engine, support: Encoded, known: Known, folds: Index) -> float:
    start = starter(engine, [known], [len(support)], 1.0)
    assert start is not None
    rows, names = np.arange(len(support)), np.unique(folds)
    exact: Mapping[str, FloatArray] = start([(0, rows[folds != name]) for name in names])
    held = [support.rows(rows[folds == name]) for name in names]
    asked = together(held)
    owner = np.repeat(np.arange(len(held)), [len(part) for part in held])
    logits = example_logits(engine, asked, stored(engine, exact, held), owner=owner)
    return float(nll_of(logits, asked.labels).mean())
