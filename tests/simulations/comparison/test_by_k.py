"""Options that are chosen for each k apart: who asks for it, and how it is told."""

from typing import Any

from umbel.simulations.comparison.config import ContestantConfig
from umbel.simulations.comparison.measuring import _groups, _told


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
