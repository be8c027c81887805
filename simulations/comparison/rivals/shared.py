"""Adapters trained for everyone from the pretrained encoder: which kind needs fewer numbers for the same?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

from torch import nn

from umbel.coordinator.model import PersonalModel
from umbel.shared.profile import FloatArray
from umbel.simulations.comparison.cohort import Person
from umbel.simulations.comparison.contestant import Contestant, Costs, Options, World
from umbel.simulations.comparison.rivals.common import head_of, predict, train_on_seen

ADAPTER_RATE = 3e-3
HEAD_RATE = 3e-3
LONGER = 3
"""They begin without what the generic model has learned, so they train this many times as long as others."""


class SharedAdapter(Contestant):
    """Trains adapters and a task head on all seen people, the encoder frozen; the same for everybody.

    Its kinds differ in the adapters alone: steps, batches, rates, order of examples and the head's start are
    the same. The generic model is no part of it.
    """

    version = 2
    learns = False
    whole = True
    pretrained = True
    more_people = True

    def __init__(self, world: World):
        super().__init__(world)
        self._model, self._adapters = self.build()
        self._model.requires_grad_(False)
        self._model.eval()

    @abstractmethod
    def build(self) -> tuple[PersonalModel, list[nn.Parameter]]:
        """Returns a model around a copy of the pretrained encoder, and the adapters' parameters."""

    def prepare(self, on_step: Callable[[int, int], None]) -> None:
        """Trains adapters and head."""
        groups = [(self._adapters, ADAPTER_RATE), (head_of(self._model), HEAD_RATE)]
        steps = LONGER * self.world.config.rival_steps
        train_on_seen(self.world, self._model, groups, on_step, steps)

    def costs(self) -> Costs:
        """The adapters' numbers; the task head, alike for all kinds, is left out."""
        return Costs(0, 0, sum(parameter.numel() for parameter in self._adapters))

    def logits(self, people: Sequence[Person], k: int, options: Options) -> list[FloatArray]:
        """Returns the same model's logits for everybody."""
        return [predict(self.world, self._model, person.query) for person in people]
