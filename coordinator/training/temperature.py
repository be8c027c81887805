"""How sure answers may sound: temperatures, fitted on what calibration users say of texts held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from umbel.coordinator.config import RecipeConfig
from umbel.coordinator.training.calibrate import (
    TOGETHER,
    Starts,
    TorchGradients,
    able_users,
    query_rows,
    side_by_side,
)
from umbel.coordinator.training.data import Rows
from umbel.shared.answers import Calibration
from umbel.shared.bias import softmax
from umbel.shared.learning import minimise
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.strength import STRENGTHS, expected_strength, fold_rows

_LOWEST, _HIGHEST = 0.25, 4.0
_LEAST = 50
"""Answers from which a temperature is fitted; fewer say too little."""


def fit_temperature(logits: FloatArray, labels: npt.NDArray[np.int64]) -> float:
    """Returns the T between 1/4 and 4 that minimises the mean nll of softmax(logits / T), by golden sections.

    The nll is convex in 1 / T, so that it has one minimum.
    """

    def loss(inverse: float) -> float:
        probability = softmax(logits.astype(np.float64) * inverse)[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(probability, 1e-12)).mean())

    low, high = 1.0 / _HIGHEST, 1.0 / _LOWEST
    ratio = (5**0.5 - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return 2.0 / (low + high)


def fit_calibration(
    twin: TorchGradients,
    users: Sequence[Rows],
    config: RecipeConfig,
    recipe: LearningRecipe,
    starts: Starts | None = None,
) -> Calibration | None:
    """Fits the temperatures of generic and of personal answers; none is below 1.

    So few people tell too little to make answers surer than the model is, and where that was done it did harm
    (docs/decisions/0028). Profiles are learned as a device learns them, with their share by cross-validation,
    from the middle one of `config.k` examples.

    Args:
        twin: The trained model.
        users: Calibration users' rows.
        config: How many users, and k.
        recipe: The chosen recipe.
        starts: Where users start who are known by some rows.

    Returns:
        The temperatures; None where too few answers are there to fit them on.
    """
    able = able_users(users, config)
    query = [query_rows(rows, max(config.k)) for rows in able]
    if sum(map(len, query)) < _LEAST:
        return None
    k = max(sorted(config.k)[len(config.k) // 2], 1)
    own = recipe.at(k)
    labels = np.concatenate([rows.label for rows in query])
    nobody = twin.model.profile_spec().zeros(1)
    generic, personal = [], []
    for at in range(0, len(able), TOGETHER):
        part = query[at : at + TOGETHER]
        support = [rows.take(np.arange(k)) for rows in able[at : at + TOGETHER]]
        generic += [twin.logits(side_by_side([rows]), nobody) for rows in part]
        personal.append(twin.logits(side_by_side(part), _cautious(twin, support, own, starts)))
    found = (fit_temperature(np.concatenate(logits), labels) for logits in (generic, personal))
    return Calibration(*(round(max(temperature, 1.0), 3) for temperature in found))


@final
@dataclass(frozen=True, slots=True)
class _Split:
    """Somebody's examples without one fold, and that fold."""

    user: int
    rest: Rows
    held: Rows


def _cautious(
    twin: TorchGradients, supports: Sequence[Rows], recipe: LearningRecipe, starts: Starts | None
) -> dict[str, FloatArray]:
    """Learns profiles (users, *shape), each times the share of it that a device would use."""
    strengths = np.ones(len(supports), np.float32)
    if recipe.folds >= 2:
        strengths[:] = expected_strength(np.zeros(len(STRENGTHS), np.float32), recipe.trust)
    splits = [
        _Split(user, rows.take(rest), rows.take(held))
        for user, rows in enumerate(supports)
        for rest, held in fold_rows([int(text) for text in rows.text], recipe.folds)
    ]
    sums = np.zeros((len(supports), len(STRENGTHS)), np.float32)
    for at in range(0, len(splits), TOGETHER):
        part = splits[at : at + TOGETHER]
        learned = _learned(twin, [split.rest for split in part], recipe, starts)
        held = side_by_side([split.held for split in part])
        who = np.array([split.user for split in part])[held.user]
        for number, strength in enumerate(STRENGTHS):
            logits = twin.logits(held, {n: values * np.float32(strength) for n, values in learned.items()})
            probability = softmax(logits)[np.arange(len(held)), held.label]
            np.add.at(sums[:, number], who, -np.log(np.maximum(probability, 1e-12)).astype(np.float32))
    for user in {split.user for split in splits}:
        strengths[user] = expected_strength(sums[user], recipe.trust)
    profile = _learned(twin, supports, recipe, starts)
    return {
        name: values * strengths.reshape(-1, *[1] * (values.ndim - 1)) for name, values in profile.items()
    }


def _learned(
    twin: TorchGradients, supports: Sequence[Rows], recipe: LearningRecipe, starts: Starts | None
) -> dict[str, FloatArray]:
    rows = side_by_side(supports)
    origin = twin.model.profile_spec().zeros(len(supports))
    if starts is not None and recipe.start:
        found = starts(rows, len(supports))
        origin = {name: values * np.float32(recipe.start) for name, values in found.items()}
    return minimise(lambda profile: twin.learn(rows, profile), origin, recipe)
