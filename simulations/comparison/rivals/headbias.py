"""The generic model plus a private bias per label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from umbel.shared.bias import fit_bias
from umbel.shared.profile import FloatArray
from umbel.simulations.comparison.cohort import Person
from umbel.simulations.comparison.contestant import Contestant, Costs, Options
from umbel.simulations.comparison.rivals.common import STORED_BYTES, first, labels_per_person, predict


@final
class HeadBias(Contestant):
    """logits + b, b fitted to the person's examples under a Gaussian prior; a number is kept in 2 bytes."""

    name = "headbias"
    title = "Private bias per label"
    version = 2

    def options(self) -> Sequence[Options]:
        """Returns the precisions of the prior that are tried."""
        return tuple({"prior": prior} for prior in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0))

    def costs(self) -> Costs:
        """One number for each label that can occur for a person."""
        numbers = round(labels_per_person(self.world))
        return Costs(STORED_BYTES * numbers, numbers, 0)

    def logits(self, people: Sequence[Person], k: int, options: Options) -> list[FloatArray]:
        """Fits each person's bias and adds it."""
        return [self._logits(person, k, options["prior"]) for person in people]

    def _logits(self, person: Person, k: int, prior: float) -> FloatArray:
        found = predict(self.world, self.world.generic, person.query)
        rows = first(person.support, k)
        if not len(rows):
            return found
        able = np.arange(found.shape[1]) if person.labels is None else person.labels
        support = predict(self.world, self.world.generic, rows)[:, able]
        bias = fit_bias(support, np.searchsorted(able, rows.label), prior)
        found[:, able] += bias.astype(np.float32)
        return found
