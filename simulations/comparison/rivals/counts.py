"""What seen people said of each text, for everybody: no model reads anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import numpy as np

from umbel.coordinator.training.adapt import opinions
from umbel.coordinator.training.data import stack
from umbel.shared.profile import FloatArray
from umbel.simulations.comparison.cohort import Person
from umbel.simulations.comparison.contestant import Contestant, Costs, Options, World

_PRIOR = 2.0  # judgements that speak for the mean over all texts


@final
class Counts(Contestant):
    """p(label | text) = (n_text,label + 2 p(label)) / (n_text + 2), n over all seen people.

    Where new people judge texts that seen people have judged, this is about as far as an answer that depends
    on the text alone can go; of other texts it knows nothing.
    """

    name = "counts"
    title = "What seen people said of each text"
    learns = False
    pretrained = True
    more_people = True

    def __init__(self, world: World):
        super().__init__(world)
        self._logits = np.zeros((0, 0), np.float32)

    def prepare(self, on_step: Callable[[int, int], None]) -> None:
        """Counts the seen people's judgements of each text."""
        data = self.world.cohort.data
        said = opinions(stack((data.train, data.validation)), len(data.labels))
        counts = np.zeros((len(data.tokens), len(data.labels)))
        counts[said.text] = said.counts
        mean = (counts.sum(0) + 1.0) / (counts.sum() + len(data.labels))
        share = (counts + _PRIOR * mean) / (counts.sum(1, keepdims=True) + _PRIOR)
        self._logits = np.log(share).astype(np.float32)
        on_step(1, 1)

    def costs(self) -> Costs:
        """A number per text and label for everybody, nothing for anybody."""
        return Costs(0, 0, self._logits.size)

    def logits(self, people: Sequence[Person], k: int, options: Options) -> list[FloatArray]:
        """Looks the texts up."""
        return [self._logits[person.query.text] for person in people]
