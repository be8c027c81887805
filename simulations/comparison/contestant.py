"""What a contestant is: something that learns from a person's few examples and predicts their others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import torch

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.training.collaborative import Factors
from umbel.coordinator.training.data import Rows
from umbel.shared.profile import FloatArray
from umbel.simulations.comparison.cohort import Cohort, Person
from umbel.simulations.comparison.config import DataSetConfig

Options = Mapping[str, float]
"""What a contestant chooses on calibration people, such as {"rate": 0.003}."""


@final
@dataclass(frozen=True, slots=True)
class Costs:
    """What a contestant costs.

    Attributes:
        private_bytes: What one person's device keeps.
        private_numbers: How many numbers are learned for one person.
        shared_numbers: How many numbers were trained for everyone, beyond the generic model.
    """

    private_bytes: int
    private_numbers: int
    shared_numbers: int


def mixed(bfloat16: bool) -> Any:
    """Returns the context in which matrix products are in bfloat16, if so wanted."""
    return torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)


@final
@dataclass(frozen=True, slots=True)
class World:
    """What all contestants of one data set and seed have in common.

    Attributes:
        cohort: The people.
        config: The data set's section: steps, batch sizes, k.
        backbone: The pretrained encoder.
        generic: The generic model, trained on all seen people, without methods; nobody may change it. For
            contestants that begin with the pretrained encoder it is untrained.
        seed: Of everything random.
        batch_size: Examples per training step.
        folder: Where a contestant may keep checkpoints of its training.
        bfloat16: Matrix products are in bfloat16, everybody's.
        factors: What judgements alone say of the people for whom private tensors are trained; None: nothing.
    """

    cohort: Cohort
    config: DataSetConfig
    backbone: Backbone
    generic: PersonalModel
    seed: int
    batch_size: int
    folder: Path
    bfloat16: bool
    factors: Factors | None

    def precision(self) -> Any:
        """Returns the context in which models run."""
        return mixed(self.bfloat16)

    def batch(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns ids (n, seq), mask (n, seq) and labels (n,) of some rows."""
        tokens = self.cohort.data.tokens.rows(rows.text)
        return torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask), torch.from_numpy(rows.label)


class Contestant(ABC):
    """One way to fit a model to a person.

    Attributes:
        version: Goes up when the same settings would give other figures: then finished cells are run again.
        name: Its name in configuration and results.
        title: Its name for people.
        learns: Whether it learns anything for a person; without, it is measured at k = 0 alone.
        whole: Whether it needs the whole encoder; the others get one of the personal layers alone, over
            states that were computed once.
        pretrained: Whether it begins with the pretrained encoder: its world's generic model is untrained.
        by_k: Whether its options are chosen for each k apart.
        more_people: Whether further people are asked, too, new ones and calibration people: a person costs it
            next to nothing.
    """

    version: ClassVar[int] = 1
    name: ClassVar[str]
    title: ClassVar[str]
    learns: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    pretrained: ClassVar[bool] = False
    by_k: bool = False
    more_people: bool = False

    def __init__(self, world: World):
        self.world = world

    def prepare(self, on_step: Callable[[int, int], None]) -> None:
        """Trains what it shares, if anything, on seen people; hears nothing of anybody else."""
        on_step(1, 1)

    def options(self) -> Sequence[Options]:
        """Returns what is tried on calibration people; one needs no trial."""
        return ({},)

    @abstractmethod
    def costs(self) -> Costs:
        """Returns what it costs; asked after `prepare`."""

    def seen(self) -> tuple[int, int] | None:
        """Returns how many held-out examples of seen people are right under what training learned for them.

        Of how many, as well; None for whoever learns nothing for seen people, or is not asked for it.
        """
        return None

    @abstractmethod
    def logits(self, people: Sequence[Person], k: int, options: Options) -> list[FloatArray]:
        """Learns from each person's `support[:k]`, each for themselves, and predicts their query.

        Returns:
            For each person (query, labels) logits: log-probabilities up to a constant per row. Where a person
            has `labels`, the others' columns may hold anything.
        """


def restricted(logits: FloatArray, person: Person) -> FloatArray:
    """Returns the logits with -1e9 at labels that cannot occur for the person."""
    if person.labels is None:
        return logits
    found = np.full_like(logits, -1e9)
    found[:, person.labels] = logits[:, person.labels]
    return found


def label_mask(person: Person, labels: int) -> npt.NDArray[np.float32]:
    """Returns (labels,): 0 where a label can occur for the person, -1e9 elsewhere; to be added to logits."""
    mask = np.full(labels, 0.0 if person.labels is None else -1e9, np.float32)
    if person.labels is not None:
        mask[person.labels] = 0.0
    return mask
