"""The generic model for everybody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from umbel.shared.profile import FloatArray
from umbel.simulations.comparison.cohort import Person
from umbel.simulations.comparison.contestant import Contestant, Costs, Options
from umbel.simulations.comparison.rivals.common import predict


@final
class Generic(Contestant):
    """The same answers for everybody: what all others must beat."""

    name = "generic"
    title = "Generic model"
    learns = False
    more_people = True

    def costs(self) -> Costs:
        """Nothing beyond the generic model."""
        return Costs(0, 0, 0)

    def logits(self, people: Sequence[Person], k: int, options: Options) -> list[FloatArray]:
        """Returns the generic model's logits."""
        return [predict(self.world, self.world.generic, person.query) for person in people]
