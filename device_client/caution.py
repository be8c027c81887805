"""Do no harm: a profile is used as far as it helps on the owner's own examples, down to not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

import numpy as np

from umbel.device_client.cross_validation import CrossValidation, Split, times
from umbel.device_client.engine import Engine
from umbel.device_client.held_out import HeldOut
from umbel.device_client.learning import NO_SHARED, Encoded, ProfileLearning, State, read_once, stored
from umbel.device_client.onboarding import Starter
from umbel.device_client.states import put, taken
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
    learning = CautiousLearning(engine, supports, recipe, start=start, shared=shared)
    while not learning.finished:
        nll = learning.advance()
        if nll is not None and on_step is not None:
            on_step(learning.steps, nll)
    return learning.profiles(), learning.strengths()


@final
class CautiousLearning:
    """What `cautious_profiles` does, a graph run at a time: all examples, then the folds."""

    def __init__(
        self,
        engine: Engine,
        supports: Sequence[Encoded],
        recipe: LearningRecipe,
        *,
        start: Starter | None = None,
        shared: Mapping[str, FloatArray] = NO_SHARED,
        measured: bool = False,
        rows: int | None = None,
    ):
        """Prepares it; arguments as in `cautious_profiles`.

        Args:
            engine: The release.
            supports: Each user's examples.
            recipe: Steps, rates, prior; folds and trust.
            start: Gives the profiles to start from.
            shared: As in `learn_profiles`.
            measured: Whether to find what held-out examples say of the profile in use; see `held_out`.
            rows: Examples of a graph run at most; see `ProfileLearning`.
        """
        self._engine, self._recipe = engine, recipe
        self._supports = read_once(engine, supports, shared)
        everything = [(user, np.arange(len(own))) for user, own in enumerate(self._supports)]
        origin = None if start is None else start(everything)
        self._all = ProfileLearning(engine, self._supports, recipe, start=origin, shared=shared, rows=rows)
        self._alone = recipe.steps == 0 and start is None  # nothing is learned, so nothing need be weighed
        splits = [] if self._alone else _splits(self._supports, recipe.folds)
        self._folds = CrossValidation(
            engine, self._supports, recipe, splits, start=start, shared=shared, measured=measured, rows=rows
        )

    @property
    def steps(self) -> int:
        """Steps of the learning from all examples that have been made."""
        return self._all.steps

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self._all.finished and self._folds.finished

    def advance(self) -> float | None:
        """Runs a graph once; returns the mean nll before a step from all examples, if that made one."""
        if not self._all.finished:
            return self._all.advance()
        self._folds.advance()
        return None

    def told(self) -> tuple[str, int, int]:
        """Returns how far it is: what it does, how much of that is done, and how much there is in all."""
        if not self._all.finished:
            return "learning", self.steps, self._recipe.steps
        return self._folds.told()

    def state(self) -> State:
        """Returns what it takes to go on from here to the same numbers."""
        found: State = {}
        put(found, "all", self._all.state())
        put(found, "folds", self._folds.state())
        return found

    def restore(self, state: State) -> None:
        """Goes on from what `state` gave, of the same learning.

        Raises:
            KeyError: Something is missing in it.
        """
        self._all.restore(taken(state, "all"))
        self._folds.restore(taken(state, "folds"))

    def strengths(self) -> FloatArray:
        """Returns each user's strength (users,), when it is finished."""
        found = np.ones(len(self._supports), np.float32)
        if self._alone:
            return found
        if self._recipe.folds >= 2:  # whose examples say nothing of others gets what is believed beforehand
            found[[len(own) > 0 for own in self._supports]] = expected_strength(
                np.zeros(len(STRENGTHS), np.float32), self._recipe.trust
            )
        for user, strength in self._folds.strengths().items():
            found[user] = strength
        return found

    def profiles(self) -> dict[str, FloatArray]:
        """Returns each user's profile as it is stored, (users, *shape), when it is finished.

        Raises:
            ProfileError: It is not finite as it is stored.
        """
        scaled = {name: times(values, self.strengths()) for name, values in self._all.exact().items()}
        return stored(self._engine, scaled, self._supports)

    def held_out(self, user: int) -> HeldOut | None:
        """Returns what a user's held-out examples say; None where there are none, or it does not measure."""
        return self._folds.held_out(user)


def _splits(supports: Sequence[Encoded], folds: int) -> list[Split]:
    return [(user, *rows) for user, own in enumerate(supports) for rows in fold_rows(_texts(own), folds)]


def _texts(own: Encoded) -> list[bytes]:
    """Returns what a text is known by: its tokens, as far as they are read."""
    return [ids[mask > 0].tobytes() for ids, mask in zip(own.tokens.ids, own.tokens.mask, strict=True)]
