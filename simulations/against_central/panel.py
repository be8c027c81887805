"""People who are measured again and again under other shared tensors; their texts are read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from umbel.device_client.caution import cautious_profiles
from umbel.device_client.engine import Engine
from umbel.device_client.held_out import nll_of
from umbel.device_client.learning import NO_SHARED, example_logits, together
from umbel.device_client.onboarding import examples_starter
from umbel.shared.profile import FloatArray
from umbel.shared.text import IntArray
from umbel.simulations.against_central.groups import Asked
from umbel.simulations.against_central.library import Library

Floats = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Measured:
    """What each person's questions were answered with, in the panel's order.

    Attributes:
        generic: Share of right answers without a profile, (people,).
        personal: The same with the profile that the person's examples give.
        nll: Mean negative log-likelihood of the right label under the personal answers, in nats.
    """

    generic: Floats
    personal: Floats
    nll: Floats


Look = Callable[[Mapping[str, FloatArray]], Measured]


@final
class Panel:
    """Some people, and all of what is asked of them."""

    def __init__(self, library: Library, people: Sequence[Asked]):
        """Takes what their texts are read as.

        Args:
            library: It has their texts; its release is the one that is measured if nothing else is said.
            people: Who is measured.
        """
        self.people = tuple(people)
        self._engine = library.engine
        everything = [example for person in people for example in (*person.learned, *person.asked)]
        whole = library.read(everything)
        sizes = [count for person in people for count in (len(person.learned), len(person.asked))]
        ends = np.cumsum(sizes)
        parts = [whole.rows(np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
        self._learned, self._asked = parts[::2], parts[1::2]
        self._owner: IntArray = np.repeat(np.arange(len(people)), [len(part) for part in self._asked])

    def measure(self, shared: Mapping[str, FloatArray] = NO_SHARED, engine: Engine | None = None) -> Measured:
        """Lets everybody's device learn a profile, and answers what is asked.

        Args:
            shared: Values of the trainables instead of the release's.
            engine: Another release of the same encoder.
        """
        engine = self._engine if engine is None else engine
        if engine.reader != self._engine.reader:
            raise ValueError("the release has another encoder")
        recipe = engine.release.manifest.recipe.at(max(map(len, self._learned)))
        start = examples_starter(engine, self._learned, recipe.start, shared)
        profile, _ = cautious_profiles(engine, self._learned, recipe, start=start, shared=shared)
        queries, nobody = together(self._asked), engine.release.manifest.profile.zeros(len(self.people))
        generic = example_logits(engine, queries, nobody, owner=self._owner, shared=shared)
        personal = example_logits(engine, queries, profile, owner=self._owner, shared=shared)
        return Measured(
            self._means(generic.argmax(1) == queries.labels),
            self._means(personal.argmax(1) == queries.labels),
            self._means(nll_of(personal, queries.labels)),
        )

    def _means(self, values: npt.NDArray[np.generic]) -> Floats:
        """Returns each person's mean."""
        total = np.bincount(self._owner, np.asarray(values, np.float64), minlength=len(self.people))
        return total / np.bincount(self._owner, minlength=len(self.people))
