"""Do no harm: a profile is used as far as it helps on the owner's own examples, down to not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.learning import (
    NO_SHARED,
    Encoded,
    example_logits,
    learn_exactly,
    read_once,
    stored,
    together,
)
from umbel.device_client.onboarding import Starter
from umbel.shared.bias import softmax
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.strength import STRENGTHS, expected_strength, fold_rows


def cautious_profiles(
    engine: Engine,
    supports: Sequence[Encoded],
    recipe: LearningRecipe,
    *,
    start: Starter | None = None,
    shared: Mapping[str, FloatArray] = NO_SHARED,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[dict[str, FloatArray], FloatArray]:
    """Learns profiles as `learn_profiles` does, and shrinks each towards the generic one.

    By cross-validation in `recipe.folds` folds, a profile is learned from each user's other examples and
    held against the ones held out, at several strengths: s p with s from 0 (generic) to 1. What is used is
    the profile of all examples times the expected strength (`umbel.shared.strength`), under `recipe.trust`.
    Examples of one text are held out together. From one text alone, the strength is what `recipe.trust` says
    beforehand. With fewer than 2 folds everything is used.

    Args:
        engine: The release.
        supports: Each user's examples.
        recipe: Steps, rates, prior; folds and trust.
        start: Gives the profiles to start from; zeros if None. For a fold it is asked again, without the
            examples that are held out.
        shared: As in `learn_profiles`.
        on_step: Called after every step of the learning from all examples.

    Returns:
        name -> (users, *shape) float32 as it is stored, and each user's strength (users,).

    Raises:
        ProfileError: A profile that was learned is not finite as it is stored.
    """
    supports = read_once(engine, supports, shared)
    everything = [(user, np.arange(len(own))) for user, own in enumerate(supports)]
    origin = None if start is None else start(everything)
    exact = learn_exactly(engine, supports, recipe, start=origin, shared=shared, on_step=on_step)
    strengths = _strengths(engine, supports, recipe, start, shared)
    scaled = {name: _times(values, strengths) for name, values in exact.items()}
    return stored(engine, scaled, supports), strengths


def _strengths(
    engine: Engine,
    supports: Sequence[Encoded],
    recipe: LearningRecipe,
    start: Starter | None,
    shared: Mapping[str, FloatArray],
) -> FloatArray:
    splits = [
        (user, *rows) for user, own in enumerate(supports) for rows in fold_rows(_texts(own), recipe.folds)
    ]
    found = np.ones(len(supports), np.float32)
    if recipe.steps == 0 and start is None:
        return found
    if recipe.folds >= 2:  # whose examples say nothing of what is held out gets what is believed beforehand
        found[[len(own) > 0 for own in supports]] = expected_strength(
            np.zeros(len(STRENGTHS), np.float32), recipe.trust
        )
    if not splits:
        return found
    owners = np.array([user for user, _, _ in splits])
    origin = None if start is None else start([(user, rest) for user, rest, _ in splits])
    learned = learn_exactly(
        engine, [supports[user].rows(rest) for user, rest, _ in splits], recipe, start=origin, shared=shared
    )
    held = [supports[user].rows(rows) for user, _, rows in splits]
    asked = together(held)
    fold = np.repeat(np.arange(len(held)), [len(part) for part in held])

    def held_nll(strength: float) -> FloatArray:
        """Returns the summed nll of each fold's held-out examples under a share of its profile: (folds,)."""
        scaled = {name: values * np.float32(strength) for name, values in learned.items()}
        logits = example_logits(engine, asked, stored(engine, scaled, held), owner=fold, shared=shared)
        chance = softmax(logits)[np.arange(len(fold)), asked.labels]
        nll = -np.log(np.maximum(chance, 1e-12))
        return np.bincount(fold, weights=nll, minlength=len(held)).astype(np.float64)

    nll = np.stack([held_nll(strength) for strength in STRENGTHS])
    for user in np.unique(owners):
        found[user] = expected_strength(nll[:, owners == user].sum(1), recipe.trust)
    return found


def _texts(own: Encoded) -> list[bytes]:
    """Returns what a text is known by: its tokens, as far as they are read."""
    return [ids[mask > 0].tobytes() for ids, mask in zip(own.tokens.ids, own.tokens.mask, strict=True)]


def _times(values: FloatArray, strengths: FloatArray) -> FloatArray:
    return np.asarray(values * strengths.reshape(-1, *[1] * (values.ndim - 1)), np.float32)
