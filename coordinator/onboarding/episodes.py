"""Episodes: seen users play new ones. Who plays, and what is known of each, is a function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from umbel.coordinator.config import OnboardingConfig
from umbel.coordinator.training.data import Rows, stack
from umbel.shared.episodes import drawn_part
from umbel.shared.onboarding import UNKNOWN
from umbel.shared.rng import generator
from umbel.shared.text import IntArray


@final
@dataclass(frozen=True, slots=True)
class Episode:
    """Some users who play new ones.

    Attributes:
        users: (users,) which seen users; `Rows.user` below counts these.
        support: What is known of them: their labelled examples and, labelled -1, further texts.
        query: Other examples of theirs.
    """

    users: IntArray
    support: Rows
    query: Rows

    def labelled(self) -> Rows:
        """Returns the support's examples that have a label."""
        return self.support.take(np.flatnonzero(self.support.label != UNKNOWN))


@final
class Players:
    """Seen users who have examples enough to play: one to be judged on, and one to be known by."""

    def __init__(self, rows: Rows, users: int):
        """Groups the examples by user.

        Args:
            rows: Examples of seen users.
            users: How many seen users there are.
        """
        self.rows = rows
        order = np.argsort(rows.user, kind="stable")
        ends = np.cumsum(np.bincount(rows.user, minlength=users))
        groups = np.split(order, ends[:-1])
        self.able = np.array([user for user, own in enumerate(groups) if len(own) > 1], np.int64)
        self._groups = groups

    def episode(self, config: OnboardingConfig, users: int, seed: int, step: int) -> Episode:
        """Draws an episode: who plays, and of each what is known and asked (`drawn_part`).

        Args:
            config: How many examples each of them gives.
            users: How many play, at most.
            seed: Of everything random.
            step: Which episode.
        """
        rng = generator(seed, step, "", "episode")
        chosen = rng.permutation(self.able)[:users]
        support, query = [], []
        for number, user in enumerate(chosen):
            own = self._groups[user]
            part = drawn_part(rng, len(own), config.query, config.most_labelled, config.most_texts)
            known, asked = own[part.known], own[part.query]
            label = self.rows.label[known].copy()
            label[part.labelled :] = UNKNOWN
            support.append(Rows(self.rows.text[known], np.full(len(known), number), label))
            query.append(Rows(self.rows.text[asked], np.full(len(asked), number), self.rows.label[asked]))
        return Episode(chosen, stack(support), stack(query))
