"""How options are chosen: for each k apart or for all, on whom, and how it is told."""

from typing import Any

import numpy as np
import pytest

from umbel.coordinator.training.data import Rows
from umbel.simulations.comparison.cohort import Person
from umbel.simulations.comparison.config import ContestantConfig
from umbel.simulations.comparison.measuring import _choose, _groups, _told


def test_what_was_chosen_is_told_by_k_where_it_depends_on_it() -> None:
    assert _told({0: {"rate": 1.0}, 4: {"rate": 1.0}}) == {"rate": 1.0}
    told = _told({0: {"rate": 1.0}, 4: {"rate": 1.0}, 16: {"rate": 2.0}})
    assert told == {"rate at k = 4": 1.0, "rate at k = 16": 2.0}


def test_each_k_is_a_group_of_its_own_where_it_is_wanted() -> None:
    class World:
        class config:  # noqa: N801 - stands for a data set's section
            k = (4, 16)

    class One:
        learns = True
        by_k = True

    one: Any = One()
    world: Any = World()
    assert _groups(one, world) == [(4,), (16,)]
    one.by_k = False
    assert _groups(one, world) == [(4, 16)]
    one.learns = False
    assert _groups(one, world) == [(0,)]


def test_older_cells_are_hashed_as_they_were() -> None:
    row: dict[str, Any] = {"methods": {"headbias": {}}, "cold_start": {"folds": 2}}
    assert "by_k" not in ContestantConfig.model_validate(row).resolved()["cold_start"]
    row["cold_start"]["by_k"] = True
    assert ContestantConfig.model_validate(row).resolved()["cold_start"]["by_k"] is True


@pytest.mark.parametrize(("cheap", "asked"), [(False, 2), (True, 5)])
def test_further_calibration_people_are_asked_where_that_costs_nothing(cheap: bool, asked: int) -> None:
    heard: list[int] = []

    class World:
        class cohort:  # noqa: N801 - stands for the people
            calibration = (person(),) * 2
            more_calibration = (person(),) * 3
            tasks = False

    class One:
        learns = True
        more_people = cheap

        def options(self) -> list[dict[str, float]]:
            return [{"rate": 1.0}, {"rate": 2.0}]

        def logits(self, people: Any, k: int, options: Any) -> list[Any]:
            heard.append(len(people))
            right = options["rate"]
            return [np.array([[right, 0.0]], np.float32) for _ in people]

    one: Any = One()
    world: Any = World()
    assert _choose(one, world, (4,)) == {"rate": 2.0}
    assert heard == [asked] * 2


def person() -> Person:
    row = Rows(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
    return Person("somebody", row, row)
