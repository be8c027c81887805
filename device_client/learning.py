"""The device's learning loop: from a handful of labelled texts to a private profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from umbel.device_client.engine import Engine
from umbel.shared.errors import ExampleError, ProfileError
from umbel.shared.examples import Example
from umbel.shared.learning import minimise
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.text import IntArray, TokenBatch, join

NO_SHARED: Mapping[str, FloatArray] = {}
_ROWS = 32


@final
@dataclass(frozen=True, slots=True)
class Encoded:
    """Labelled texts of one user, ready for the graphs.

    Attributes:
        tokens: (batch, seq) ids and mask.
        labels: (batch,) label numbers.
    """

    tokens: TokenBatch
    labels: IntArray

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Encoded:
        """Returns the first `count` examples."""
        return self.rows(np.arange(min(count, len(self))))

    def rows(self, index: Sequence[int] | IntArray) -> Encoded:
        """Returns some examples."""
        chosen = np.asarray(index, np.int64)
        return Encoded(self.tokens.rows(chosen), self.labels[chosen])


def encode_examples(engine: Engine, examples: Sequence[Example]) -> Encoded:
    """Encodes examples for a release.

    Raises:
        ExampleError: A label is not one of the release's.
    """
    numbers = {label: number for number, label in enumerate(engine.labels)}
    unknown = [
        f"example {n}: label is not one of the release's"
        for n, e in enumerate(examples, 1)
        if e.label not in numbers
    ]
    if unknown:
        raise ExampleError(
            "labels do not fit the release", unknown, f"Its labels are: {', '.join(engine.labels)}."
        )
    labels = np.array([numbers[example.label] for example in examples], np.int64)
    return Encoded(engine.encode([example.text for example in examples]), labels)


def learn_profiles(
    engine: Engine,
    supports: Sequence[Encoded],
    recipe: LearningRecipe,
    *,
    start: Mapping[str, FloatArray] | None = None,
    shared: Mapping[str, FloatArray] = NO_SHARED,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, FloatArray]:
    """Learns the profiles of one or more users, each from their own examples only.

    Minimises, for each user, sum_i nll_i + prior_strength / 2 |profile - start|^2 by the recipe's AdamW, then
    rounds to what is stored, so that the profile in use is the profile that is kept.

    Args:
        engine: The release.
        supports: Each user's examples; a user without any keeps the starting profile.
        recipe: Steps, rates, prior.
        start: Where to start and what to be pulled to, (users, *shape); zeros (the generic profile) if None.
        shared: A round's values of trainable shared tensors.
        on_step: Called after every step with its number (from 1) and the mean nll before it.

    Returns:
        name -> (users, *shape) float32.

    Raises:
        ProfileError: A profile that was learned is not finite as it is stored.
    """
    exact = learn_exactly(engine, supports, recipe, start=start, shared=shared, on_step=on_step)
    return stored(engine, exact, supports)


def learn_exactly(
    engine: Engine,
    supports: Sequence[Encoded],
    recipe: LearningRecipe,
    *,
    start: Mapping[str, FloatArray] | None = None,
    shared: Mapping[str, FloatArray] = NO_SHARED,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, FloatArray]:
    """Learns as `learn_profiles` does, and returns what was learned before it is rounded.

    It may not be finite. Users without examples keep exactly what they started from.
    """
    spec = engine.release.manifest.profile
    origin = dict(start) if start is not None else spec.zeros(len(supports))
    if sum(len(support) for support in supports) == 0 or recipe.steps == 0:
        return origin
    pieces = _pieces(supports)
    empty = np.array([len(support) == 0 for support in supports])

    def gradients_at(profile: Mapping[str, FloatArray]) -> tuple[FloatArray, dict[str, FloatArray]]:
        found = [engine.learn(*piece, profile, shared) for piece in pieces]
        nll = np.concatenate([part for part, _ in found])
        return nll, {name: np.sum([part[name] for _, part in found], axis=0) for name in origin}

    with np.errstate(over="ignore", invalid="ignore"):  # `stored` says it in one error, and no warning before
        exact = minimise(gradients_at, origin, recipe, on_step=on_step)
    return {name: _kept(values, origin[name], empty) for name, values in exact.items()}


def stored(
    engine: Engine, profile: Mapping[str, FloatArray], supports: Sequence[Encoded]
) -> dict[str, FloatArray]:
    """Rounds profiles (users, *shape) to what a device stores, but for users without examples.

    Raises:
        ProfileError: Values are not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = engine.release.manifest.profile.rounded(profile)
    # Of values that are not finite there are finite bits, so both are looked at.
    broken = [name for name in rounded if not np.isfinite([profile[name], rounded[name]]).all()]
    if broken:
        raise ProfileError(
            "learning did not converge, so no profile was made",
            [f"{name}: holds values that are not finite" for name in broken],
            "The recipe of the release does not suit these examples: tell its publisher.",
        )
    empty = np.array([len(support) == 0 for support in supports])
    return {name: _kept(values, profile[name], empty) for name, values in rounded.items()}


def _pieces(supports: Sequence[Encoded]) -> list[tuple[TokenBatch, IntArray, IntArray]]:
    """Cuts everyone's examples into pieces of like length: (tokens, labels, owner), `_ROWS` rows at most.

    The gradient of a sum is the sum of the gradients: pieces change only the memory that a step takes
    and the time that padding costs.
    """
    tokens = join([support.tokens for support in supports])
    labels = np.concatenate([support.labels for support in supports])
    owner = np.repeat(np.arange(len(supports)), [len(support) for support in supports])
    return [(tokens.rows(part), labels[part], owner[part]) for part in tokens.like_length(_ROWS)]


def _kept(
    values: FloatArray, origin: FloatArray, empty: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> FloatArray:
    """Users without examples keep exactly what they started from."""
    return np.where(empty.reshape(-1, *[1] * (values.ndim - 1)), origin, values)


def predict_logits(
    engine: Engine,
    tokens: TokenBatch,
    profile: Mapping[str, FloatArray],
    *,
    owner: IntArray | None = None,
    shared: Mapping[str, FloatArray] = NO_SHARED,
    batch_size: int = 32,
) -> FloatArray:
    """Returns logits (batch, labels), computed in batches of texts of like length.

    Args:
        engine: The release.
        tokens: The texts.
        profile: Private tensors (users, *shape).
        owner: (batch,) whose text each is; user 0 for all if None.
        shared: A round's values of trainable shared tensors.
        batch_size: Texts per graph run.
    """
    owners = np.zeros(len(tokens), np.int64) if owner is None else owner
    logits = np.zeros((len(tokens), len(engine.labels)), np.float32)
    for index in tokens.like_length(batch_size):
        logits[index] = engine.predict(tokens.rows(index), owners[index], profile, shared)
    return logits
