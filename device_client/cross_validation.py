"""How much of what was learned holds: profiles learned without some examples, held against those examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import numpy.typing as npt

from umbel.device_client.engine import Engine
from umbel.device_client.held_out import HeldOut, compared, nll_of, others_strengths
from umbel.device_client.learning import NO_SHARED, Encoded, ProfileLearning, State, stored, together
from umbel.device_client.onboarding import Starter
from umbel.device_client.passes import Answering
from umbel.device_client.states import put, taken
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.strength import STRENGTHS, Index, expected_strength

Split = tuple[int, Index, Index]
"""A fold: whose it is, which of their examples to learn from, and which are held out."""


@final
class CrossValidation:
    """Learns from all but each fold, then answers what is held out at every strength, a graph run at a time.

    Where it measures, it answers once more, at the strength that a user's other folds speak for: an example
    has no say in how far what was learned without it is used on it.
    """

    def __init__(
        self,
        engine: Engine,
        supports: Sequence[Encoded],
        recipe: LearningRecipe,
        splits: Sequence[Split],
        *,
        start: Starter | None = None,
        shared: Mapping[str, FloatArray] = NO_SHARED,
        measured: bool = False,
        rows: int | None = None,
    ):
        """Takes the folds; nothing is run yet.

        Args:
            engine: The release.
            supports: Each user's examples.
            recipe: Steps, rates, prior; trust, and whether anything but all of a profile is used.
            splits: The folds.
            start: Gives the profiles to start from, without what is held out; zeros if None.
            shared: As in `learn_profiles`.
            measured: Whether to find what `held_out` tells.
            rows: Examples of a graph run at most; see `ProfileLearning`.
        """
        self._engine, self._supports, self._recipe = engine, supports, recipe
        self._splits, self._start, self._shared = list(splits), start, shared
        self._rows = rows
        held = [supports[user].rows(rows) for user, _, rows in splits]
        self._held = held
        self._asked = together(held) if held else None
        self._fold = np.repeat(np.arange(len(held)), [len(part) for part in held])
        self._owners = np.array([user for user, _, _ in splits], np.int64)
        self._passes = (len(STRENGTHS) + measured) if held else 0
        self._learning: ProfileLearning | None = None
        self._answering: Answering | None = None
        self._answers: list[FloatArray] = []

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return len(self._answers) == self._passes

    def advance(self) -> None:
        """Runs a graph once."""
        if self._learning is None:
            self._learning = self._begun()
        if not self._learning.finished:
            self._learning.advance()
            return
        if self._answering is None:
            self._answering = self._asked_at(self._next_shares(), self._learning.exact())
        self._answering.advance()
        if self._answering.finished:
            self._answers.append(self._answering.logits)
            self._answering = None

    def told(self) -> tuple[str, int, int]:
        """Returns how far it is: what it does, how much of that is done, and how much there is in all."""
        learning = self._learning
        if learning is not None and learning.finished:
            return "weighing it on held-out examples", len(self._answers), self._passes
        return "learning without each fold", learning.steps if learning else 0, self._recipe.steps

    def state(self) -> State:
        """Returns what it takes to go on from here to the same numbers."""
        found: State = {}
        if self._learning is not None:
            put(found, "learning", self._learning.state())
        for number, logits in enumerate(self._answers):
            found[f"answers {number}"] = {"logits": logits}
        if self._answering is not None:
            put(found, "answering", self._answering.state())
        return found

    def restore(self, state: State) -> None:
        """Goes on from what `state` gave, of the same folds.

        Raises:
            KeyError: Something is missing in it.
        """
        learning, answering = taken(state, "learning"), taken(state, "answering")
        if not learning:
            return
        self._learning = self._begun()
        self._learning.restore(learning)
        count = sum(name.startswith("answers ") for name in state)
        self._answers = [state[f"answers {number}"]["logits"] for number in range(count)]
        if answering:
            self._answering = self._asked_at(self._next_shares(), self._learning.exact())
            self._answering.restore(answering)

    def _begun(self) -> ProfileLearning:
        origin = None if self._start is None else self._start([(u, rest) for u, rest, _ in self._splits])
        parts = [self._supports[user].rows(rest) for user, rest, _ in self._splits]
        return ProfileLearning(
            self._engine, parts, self._recipe, start=origin, shared=self._shared, rows=self._rows
        )

    def _next_shares(self) -> FloatArray:
        """Returns how much of each fold's profile is used next: (folds,)."""
        done = len(self._answers)
        if done < len(STRENGTHS):
            return np.full(len(self._held), STRENGTHS[done], np.float32)
        if self._recipe.folds < 2:
            return np.ones(len(self._held), np.float32)
        return others_strengths(self.evidence(), self._owners, self._recipe.trust)

    def _asked_at(self, shares: FloatArray, learned: Mapping[str, FloatArray]) -> Answering:
        assert self._asked is not None
        scaled = {name: times(values, shares) for name, values in learned.items()}
        profile = stored(self._engine, scaled, self._held)
        return Answering(self._engine, self._asked, profile, self._fold, self._shared, self._rows)

    def evidence(self) -> npt.NDArray[np.float64]:
        """Returns the summed nll of what each fold holds out at every strength: (strengths, folds)."""
        assert self._asked is not None
        labels, folds = self._asked.labels, len(self._held)
        return np.stack(
            [
                np.bincount(self._fold, weights=nll_of(logits, labels), minlength=folds)
                for logits in self._answers[: len(STRENGTHS)]
            ]
        ).astype(np.float64)

    def strengths(self) -> dict[int, float]:
        """Returns the expected strength of every user who has folds."""
        if not self._splits:
            return {}
        nll = self.evidence()
        return {
            int(user): expected_strength(nll[:, self._owners == user].sum(1), self._recipe.trust)
            for user in np.unique(self._owners)
        }

    def held_out(self, user: int) -> HeldOut | None:
        """Returns what a user's held-out examples say; None where there are none, or it does not measure."""
        mine = np.isin(self._fold, np.flatnonzero(self._owners == user))
        if self._asked is None or self._passes == len(STRENGTHS) or not mine.any():
            return None
        rows = np.concatenate([held for owner, _, held in self._splits if owner == user])
        return compared(rows, self._asked.labels[mine], self._answers[0][mine], self._answers[-1][mine])


def cross_validated(
    engine: Engine,
    support: Encoded,
    recipe: LearningRecipe,
    folds: Sequence[int] | Index,
    *,
    start: Starter | None = None,
) -> HeldOut | None:
    """Returns what one user's examples say of a release, each held out in the fold that is given.

    With the same folds (`umbel.device_client.held_out.text_folds`), what two releases gain can be compared
    example by example.

    Args:
        engine: The release.
        support: The user's examples.
        recipe: What holds for so many examples (`LearningRecipe.at`).
        folds: (n,) fold of each example; equal texts should share one.
        start: Gives the profiles to start from, without what is held out; zeros if None.

    Returns:
        None where there are less than two folds.

    Raises:
        ProfileError: A profile that was learned is not finite as it is stored.
    """
    number = np.asarray(folds, np.int64)
    rows = np.arange(len(support))
    names = np.unique(number)
    splits = [(0, rows[number != own], rows[number == own]) for own in names] if len(names) > 1 else []
    validation = CrossValidation(engine, [support], recipe, splits, start=start, measured=True)
    while not validation.finished:
        validation.advance()
    return validation.held_out(0)


def times(values: FloatArray, shares: FloatArray) -> FloatArray:
    """Returns profiles (users, *shape) times the share (users,) of each."""
    return np.asarray(values * shares.reshape(-1, *[1] * (values.ndim - 1)), np.float32)
