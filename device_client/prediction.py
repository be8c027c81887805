"""What a device answers: the label of each text, with its owner's profile beside what it is for everybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.learning import Encoded, example_logits, read_once
from umbel.device_client.profile_file import read_profile
from umbel.shared.bias import softmax
from umbel.shared.errors import ReleaseError
from umbel.shared.onboarding import UNKNOWN
from umbel.shared.profile import FloatArray
from umbel.shared.release import Release


@final
@dataclass(frozen=True, slots=True)
class Prediction:
    """One text's prediction.

    Attributes:
        label: The most likely label.
        probability: Its probability.
        probabilities: Label -> probability.
        generic_label: The most likely label for a person about whom nothing is known.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    generic_label: str

    def as_json(self) -> dict[str, Any]:
        """Returns the prediction for scripts; probabilities have 6 digits."""
        return {
            "label": self.label,
            "probability": round(self.probability, 6),
            "probabilities": {label: round(value, 6) for label, value in self.probabilities.items()},
            "generic_label": self.generic_label,
        }


def predict_texts(
    release: Release, texts: Sequence[str], profile_path: Path | None, *, threads: int = 1
) -> list[Prediction]:
    """Predicts each text's label.

    Args:
        release: The release.
        texts: The texts.
        profile_path: The owner's profile; None predicts without one.
        threads: Threads of a graph run.

    Raises:
        ProfileError: There is no profile at the path, or it does not fit the release.
        ReleaseError: Its answers are no numbers.
    """
    profile = None if profile_path is None else read_profile(release, profile_path)
    return predict_with(release, texts, profile, threads=threads)


def predict_with(
    release: Release, texts: Sequence[str], own: Mapping[str, FloatArray] | None, *, threads: int = 1
) -> list[Prediction]:
    """Predicts as `predict_texts` does, under a profile (1, *shape) that has been read; None: without one."""
    zeros = release.manifest.profile.zeros(1)
    profile = zeros if own is None else own
    engine = Engine(release, threads=threads)
    (asked,) = read_once(engine, [Encoded(engine.encode(texts), np.full(len(texts), UNKNOWN, np.int64))])
    personal = softmax(example_logits(engine, asked, profile))
    generic = softmax(example_logits(engine, asked, zeros))
    if not (np.isfinite(personal).all() and np.isfinite(generic).all()):
        raise ReleaseError(
            "the release gives answers that are no numbers", hint="Fetch it again, or tell its publisher."
        )
    labels = release.manifest.labels
    return [
        Prediction(
            labels[int(mine.argmax())],
            float(mine.max()),
            {label: float(value) for label, value in zip(labels, mine, strict=True)},
            labels[int(plain.argmax())],
        )
        for mine, plain in zip(personal, generic, strict=True)
    ]
