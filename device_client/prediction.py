"""What a device answers: the label of each text, with its owner's profile beside what it is for everybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from umbel.device_client.engine import Engine
from umbel.device_client.learning import Encoded, example_logits, read_once
from umbel.device_client.profile_file import read_profile
from umbel.shared.bias import softmax
from umbel.shared.errors import ConfigError, ReleaseError
from umbel.shared.onboarding import UNKNOWN
from umbel.shared.profile import FloatArray
from umbel.shared.release import Manifest, Release
from umbel.shared.text import IntArray

INT8, FLOAT32 = "int8", "float32"
PRECISIONS = (INT8, FLOAT32)
_ROWS = 32  # texts in one run


@final
@dataclass(frozen=True, slots=True)
class Prediction:
    """One text's prediction.

    Attributes:
        label: The most likely label.
        probability: Its probability.
        probabilities: Label -> probability.
        generic_label: The most likely label for a person about whom nothing is known; None: not asked.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    generic_label: str | None

    def as_json(self) -> dict[str, Any]:
        """Returns the prediction for scripts; probabilities have 6 digits."""
        return {
            "label": self.label,
            "probability": round(self.probability, 6),
            "probabilities": {label: round(value, 6) for label, value in self.probabilities.items()},
            "generic_label": self.generic_label,
        }


def predict_texts(
    release: Release,
    texts: Sequence[str],
    profile_path: Path | None,
    *,
    threads: int = 1,
    precision: str = INT8,
) -> list[Prediction]:
    """Predicts each text's label.

    Args:
        release: The release.
        texts: The texts.
        profile_path: The owner's profile; None predicts without one.
        threads: Threads of a graph run.
        precision: "int8" reads texts in 8 bits where the release can; "float32" does not.

    Raises:
        ConfigError: There is no such precision.
        ProfileError: There is no profile at the path, or it does not fit the release.
        ReleaseError: Its answers are no numbers.
    """
    profile = None if profile_path is None else read_profile(release, profile_path)
    engine = reader(Engine(release, threads=threads, alone=True), precision)
    return predict_owners(engine, texts, np.zeros(len(texts), np.int64), [profile])


def reader(engine: Engine, precision: str) -> Engine:
    """Returns the engine that reads and learns with a precision, over the same weights and sessions.

    Raises:
        ConfigError: There is no such precision.
    """
    check_precision(precision)
    return engine.quick() if precision == INT8 else engine


def check_precision(precision: str) -> None:
    """Refuses what is none of `PRECISIONS`.

    Raises:
        ConfigError: It is none.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"'{precision}' is no precision", hint=f"Choose one of: {', '.join(PRECISIONS)}.")


def predict_owners(
    engine: Engine,
    texts: Sequence[str],
    owner: IntArray,
    profiles: Sequence[Mapping[str, FloatArray] | None],
    *,
    compare: bool = True,
) -> list[Prediction]:
    """Predicts texts of several owners side by side, each with their own profile.

    Args:
        engine: The release, and how it reads.
        texts: The texts.
        owner: (texts,) whose each is: an index into `profiles`.
        profiles: Name -> (1, *shape) of each owner; None: nothing is known of them.
        compare: Also find the label for somebody without a profile, which reads texts twice where methods act
            on more than their embedding.

    Returns:
        A prediction for each text, in their order.

    Raises:
        ReleaseError: Answers are no numbers.
    """
    manifest = engine.release.manifest
    (asked,) = read_once(engine, [Encoded(engine.encode(texts), np.full(len(texts), UNKNOWN, np.int64))])
    known = np.array([profile is not None for profile in profiles], bool)
    own = known[owner]
    logits = np.zeros((len(texts), len(manifest.labels)), np.float32)
    plain = np.zeros_like(logits)
    rows = np.flatnonzero(own)
    logits[rows] = _logits(engine, asked.rows(rows), owner[rows], profiles)
    rest = np.arange(len(texts)) if compare else np.flatnonzero(~own)
    nobody = [manifest.profile.zeros(1)]
    plain[rest] = _logits(engine, asked.rows(rest), np.zeros(len(rest), np.int64), nobody)
    logits = np.where(own[:, None], logits, plain)
    if not (np.isfinite(logits).all() and np.isfinite(plain).all()):
        raise ReleaseError(
            "the release gives answers that are no numbers", hint="Fetch it again, or tell its publisher."
        )
    shown = _shown(logits, own, manifest)
    return [
        _prediction(manifest.labels, shown[n], plain[n] if compare or not own[n] else None)
        for n in range(len(texts))
    ]


def _logits(
    engine: Engine, asked: Encoded, owner: IntArray, profiles: Sequence[Mapping[str, FloatArray] | None]
) -> FloatArray:
    """Returns logits (batch, labels); each run is given the profiles of those whose texts are in it."""
    logits = np.zeros((len(asked), len(engine.labels)), np.float32)
    for index in asked.tokens.like_length(_ROWS):
        users, place = np.unique(owner[index], return_inverse=True)
        there = [own for user in users if (own := profiles[user]) is not None]
        stacked = {name: np.concatenate([own[name] for own in there]) for name in there[0]}
        part = asked.rows(index)
        logits[index] = example_logits(engine, part, stacked, owner=place.astype(np.int64))
    return logits


def _shown(logits: FloatArray, own: npt.NDArray[np.bool_], manifest: Manifest) -> npt.NDArray[np.float64]:
    """Returns the probabilities that people see, (batch, labels): calibrated where the release says how."""
    if manifest.calibration is None:
        return softmax(logits)
    temperature = np.where(own, manifest.calibration.personal, manifest.calibration.generic)
    return softmax(logits.astype(np.float64) / temperature[:, None])


def _prediction(labels: Sequence[str], mine: npt.NDArray[np.float64], plain: FloatArray | None) -> Prediction:
    best = int(mine.argmax())
    return Prediction(
        labels[best],
        float(mine[best]),
        {label: float(value) for label, value in zip(labels, mine, strict=True)},
        None if plain is None else labels[int(plain.argmax())],
    )
