"""Who is chosen: from a row that is not written out the same as from a list; a roll spares all questions."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st
from tests.coordinator.test_coming_and_going import Watched
from tests.coordinator.test_strategy import SETTINGS, assert_same, grid_of, run, usual

from umbel.coordinator.federation.sampling import Without, sampled
from umbel.shared.messages import RoundTask, Wire
from umbel.simulations.engines.serial import SerialGrid

NUMBERS = st.lists(st.integers(0, 60), unique=True).map(sorted)


@given(NUMBERS, st.sets(st.integers(-3, 63)))
def test_what_is_left_of_a_row_is_what_a_list_without_them_has(
    numbers: list[int], excluded: set[int]
) -> None:
    left = [number for number in numbers if number not in excluded]
    found = Without(numbers, excluded)
    assert list(found) == left
    assert len(found) == len(left)
    assert found[-3:] == left[-3:]
    assert [number in found for number in range(61)] == [number in left for number in range(61)]


@given(
    st.integers(1, 20_000), st.integers(0, 40), st.sets(st.integers(0, 20_000), max_size=5), st.integers(0, 9)
)
def test_a_sample_of_a_range_is_that_of_a_list(
    total: int, count: int, excluded: set[int], round_: int
) -> None:  # fmt: skip
    """Also beyond 10,000, where numpy chooses in another way."""
    written = [number for number in range(total) if number not in excluded]
    found = sampled(Without(range(total), excluded), count, 3, round_, "sample")
    assert found == sampled(written, count, 3, round_, "sample")
    assert sampled(range(total), count, 3, round_, "sample") == sampled(
        list(range(total)), count, 3, round_, "sample"
    )


class Counting(Sequence[int]):
    """A row of a million numbers that counts how often one is looked at."""

    looks = 0

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: Any) -> Any:
        self.looks += 1
        return range(1_000_000)[index]


def test_a_sample_of_a_million_looks_at_those_alone_that_are_chosen() -> None:
    numbers = Counting()
    assert sampled(numbers, 100, 0, 1, "sample") == sampled(range(1_000_000), 100, 0, 1, "sample")
    assert numbers.looks == 100


def test_rounds_with_a_roll_are_those_in_which_everybody_was_asked() -> None:
    settings = replace(SETTINGS, probation_rounds=1)

    def work(client: int, task: RoundTask) -> Wire:
        wire = usual(client, task)
        return replace(wire, config={**wire.config, "round": 9}) if client == rogue else wire

    rogue = sampled(range(6), 3, 4, 1, "sample")[1]
    asked = run(settings, grid_of(work))
    heard: list[str] = []
    grid = grid_of(work)
    known = run(settings, Heard(grid, heard), roll=grid.roll())
    assert_same(known.trainables, asked.trainables)
    assert [record.refused for record in known.rounds] == [record.refused for record in asked.rounds]
    assert known.rounds[0].refused == (rogue,)
    assert set(heard) == {"train", "evaluate"}


class Heard(Watched):
    """A grid that hears which kinds of messages are sent."""

    def __init__(self, inner: SerialGrid, heard: list[str]):
        super().__init__(inner)
        self.heard = heard

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        found = list(messages)
        self.heard += [message.metadata.message_type for message in found]
        return super().push_messages(found)
