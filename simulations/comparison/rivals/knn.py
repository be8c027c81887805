"""Nearest neighbours among a person's own examples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import final

import numpy as np

from umbel.coordinator.training.data import Rows
from umbel.shared.bias import softmax
from umbel.shared.profile import FloatArray
from umbel.simulations.comparison.cohort import Person
from umbel.simulations.comparison.contestant import Contestant, Costs, Options, World, label_mask
from umbel.simulations.comparison.rivals.common import embedded, first

_LEAST = 1e-6  # probability of a label that nothing speaks for: logits stay finite


@final
class NearestNeighbours(Contestant):
    """log(share * votes + (1 - share) * generic probabilities).

    votes = softmax(cos(query, example) / temperature) over the person's examples, summed by label; states are
    the generic model's, averaged over tokens. The device keeps the examples themselves.
    """

    name = "knn"
    title = "Nearest neighbours among own examples"

    def __init__(self, world: World):
        super().__init__(world)
        self._known: dict[bytes, tuple[FloatArray, FloatArray]] = {}

    def options(self) -> Sequence[Options]:
        """Returns every pair of a temperature and a share; share 1 is the neighbours alone."""
        return tuple({"temperature": t, "share": s} for t, s in product((0.03, 0.1, 0.3), (0.3, 0.6, 1.0)))

    def costs(self) -> Costs:
        """The examples' bytes; no number is learned."""
        return Costs(example_bytes(self.world), 0, 0)

    def logits(self, people: Sequence[Person], k: int, options: Options) -> list[FloatArray]:
        """Lets each person's examples vote."""
        return [self._logits(person, k, options["temperature"], options["share"]) for person in people]

    def _logits(self, person: Person, k: int, temperature: float, share: float) -> FloatArray:
        query, logits = self._embedded(person.query)
        rows = first(person.support, k)
        if not len(rows):
            return logits.copy()
        support, _ = self._embedded(rows)
        votes = softmax(query @ support.T / temperature) @ np.eye(logits.shape[1])[rows.label]
        generic = softmax(logits + label_mask(person, logits.shape[1]))
        mixed = share * votes + (1.0 - share) * generic
        return np.log(np.maximum(mixed, _LEAST)).astype(np.float32)

    def _embedded(self, rows: Rows) -> tuple[FloatArray, FloatArray]:
        """Embeds rows once, however many options are tried on them."""
        key = rows.text.tobytes()
        if key not in self._known:
            self._known[key] = embedded(self.world, self.world.generic, rows)
        return self._known[key]


def example_bytes(world: World) -> int:
    """Returns the mean bytes of a person's examples at the largest k: texts in UTF-8, a byte per label."""
    kept = []
    for person in world.cohort.people:
        texts = first(person.support, world.config.k[-1]).text
        kept.append(sum(len(world.cohort.texts[int(text)].encode()) + 1 for text in texts))
    return round(float(np.mean(kept)))
