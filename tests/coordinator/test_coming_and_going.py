"""Rounds whose devices come and go, and that are ended in the middle: who takes part is what was begun."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from tests.coordinator.test_strategy import (
    MANIFEST,
    RELEASE,
    SETTINGS,
    answered,
    assert_same,
    grid_of,
    run,
    strategy,
    usual,
)

from umbel.coordinator.federation.journal import Begun, Journal, RoundsResult
from umbel.coordinator.federation.line import Stopped
from umbel.coordinator.federation.sampling import sampled
from umbel.shared.errors import TrainingError
from umbel.shared.messages import Hello, RoundTask, Wire
from umbel.simulations.engines.serial import SerialGrid

ALONE = replace(SETTINGS, evaluate_clients=0)


class Watched(Grid):
    """A grid whose nodes are online only while a test says so.

    Attributes:
        away: Numbers of devices that are not online.
        silent: Those that do not answer.
        asked: What was asked of whom: kind, group and number.
    """

    def __init__(self, inner: SerialGrid):
        self._inner = inner
        self.away: set[int] = set()
        self.silent: set[int] = set()
        self.asked: list[tuple[str, str, int]] = []

    def set_run(self, run: Run) -> None:
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        return self._inner.run

    def create_message(self, *words: Any, **named: Any) -> Message:
        return self._inner.create_message(*words, **named)

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self._inner.get_node_ids() if node - 1000 not in self.away]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        found: list[str] = []
        for message in messages:
            own, number = message.metadata, message.metadata.dst_node_id - 1000
            self.asked.append((own.message_type, own.group_id, number))
            found += ["never answered"] if number in self.silent else self._inner.push_messages([message])
        return found

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._inner.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError

    def trained(self, round_: int) -> list[int]:
        return [number for kind, group, number in self.asked if (kind, group) == ("train", str(round_))]


class Over(Exception):  # noqa: N818
    """A test ends a run here."""


def test_a_round_that_was_begun_goes_on_with_its_devices_whoever_has_come_since(tmp_path: Path) -> None:
    settings = replace(ALONE, clients=2)
    journal = Journal(tmp_path, RELEASE, 0, settings)

    def killed(client: int, task: RoundTask) -> Wire:
        if task.round == 2:
            raise Over
        return usual(client, task)

    few = Watched(grid_of(killed))
    few.away = {3, 4, 5}
    with pytest.raises(Over):
        run(settings, few, population=0, on_round=journal.write, on_begin=journal.begin)
    reached, begun = journal.read(), journal.begun()
    assert reached is not None
    assert begun == Begun(2, tuple(sampled(range(3), 2, 4, 2, "sample")))
    assert begun.clients != tuple(sampled(range(6), 2, 4, 2, "sample"))  # of all that come

    many = Watched(grid_of())
    upto = replace(settings, rounds=2)
    found = run(upto, many, population=0, reached=reached, begun=begun)
    assert many.trained(2) == list(begun.clients)
    undisturbed = Watched(grid_of())
    undisturbed.away = {3, 4, 5}
    assert_same(found.trainables, run(upto, undisturbed, population=0).trainables)
    assert Journal(tmp_path, RELEASE, 0, ALONE).begun() is None  # of other settings


def test_who_was_to_train_and_does_not_come_back_is_named_after_the_deadline() -> None:
    grid = Watched(grid_of())
    grid.away = {4}
    begun = Begun(1, (1, 4))
    found = run(replace(ALONE, rounds=1, timeout_s=0.3), grid, population=0, begun=begun).rounds[0]
    assert (found.clients, found.failures) == (1, 1)
    assert found.notes == ("round 1, train, device 000004: it has not come back",)
    assert grid.trained(1) == [1]


def test_rounds_that_go_on_do_without_a_device_that_is_gone_for_good() -> None:
    """Rounds that nobody had ended would have, too; only a beginning wants all of them."""
    first = run(replace(ALONE, rounds=1), grid_of())
    grid = Watched(grid_of())
    grid.away = {5}
    quick = replace(ALONE, timeout_s=0.3)
    with pytest.raises(TrainingError, match="5 devices can take part, 6 are needed"):
        run(quick, grid)
    found = run(quick, grid, reached=first)
    assert [record.clients for record in found.rounds] == [3, 3, 3]
    assert found.rounds[0] == first.rounds[0]
    assert 5 not in grid.trained(2) + grid.trained(3)
    assert run(quick, grid, begun=Begun(1, (1, 2, 3))).rounds[0].clients == 3


def test_devices_that_come_later_take_part_and_those_that_went_are_not_asked() -> None:
    grid = Watched(grid_of())
    grid.away = {3, 4, 5}

    def on_round(reached: RoundsResult) -> None:
        grid.away = {0, 1, 2} if len(reached.rounds) == 1 else set()

    settings = replace(ALONE, clients=6)
    run(settings, grid, population=0, on_round=on_round)
    assert [grid.trained(number) for number in (1, 2, 3)] == [[0, 1, 2], [3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert [number for kind, _, number in grid.asked if kind == "query"] == [0, 1, 2, 3, 4, 5]


def test_a_device_that_says_nothing_holds_up_one_round_and_not_every_one() -> None:
    grid = Watched(grid_of())
    grid.away = {5}
    grid.silent = {5}

    def on_round(reached: RoundsResult) -> None:
        grid.away = {5} if len(reached.rounds) == 3 else set()

    settings = replace(ALONE, rounds=5, timeout_s=0.3)
    found = run(settings, grid, population=0, on_round=on_round)
    asked = [group for kind, group, number in grid.asked if kind == "query" and number == 5]
    assert len(asked) == 2  # when it came, and when it came again
    assert [record.failures for record in found.rounds] == [0] * 5


def test_without_devices_no_round_is_begun() -> None:
    """Rounds that nobody takes part in would be over in no time, and the run with them."""
    grid = Watched(grid_of())
    looks: list[int] = []

    def on_round(reached: RoundsResult) -> None:
        grid.away = set(range(6)) if len(reached.rounds) == 1 else set()

    def stopped() -> bool:
        looks.append(len(grid.away))
        if looks.count(6) == 3:
            grid.away = set()
        return False

    found = run(ALONE, grid, population=0, on_round=on_round, stopped=stopped)
    assert looks.count(6) == 3
    assert [record.clients for record in found.rounds] == [3, 3, 3]


def test_no_secure_round_is_begun_with_fewer_devices_than_a_sum_needs() -> None:
    """It would change nothing, and the next one, until the rounds are over."""
    grid = Watched(grid_of())
    begun: list[Begun] = []
    grid.away = {4, 5}
    looks: list[int] = []

    def stopped() -> bool:
        looks.append(1)
        return len(looks) == 4

    secure = replace(ALONE, secure=True, clients=5, timeout_s=0.3)
    with pytest.raises(Stopped):
        run(secure, grid, population=0, on_begin=begun.append, stopped=stopped)
    assert begun == []
    grid.away = {5}
    run(replace(secure, rounds=1), grid, population=0, on_begin=begun.append)
    assert begun == [Begun(1, (0, 1, 2, 3, 4))]


def test_a_wait_for_devices_is_told_and_who_refuses_is_not_asked_all_the_time() -> None:
    def respond(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if number in (4, 5):
            return Message(Error(2, "EgressError"), reply_to=message)
        return answered(message, Hello(number).wire())

    grid = Watched(SerialGrid({}, 6, respond))
    told: list[tuple[int, int, int]] = []
    looks: list[int] = []

    def stopped() -> bool:
        looks.append(1)
        return len(looks) == 4

    def on_wait(here: int, wanted: int, connected: int) -> None:
        told.append((here, wanted, connected))

    secure = replace(ALONE, secure=True, clients=5, timeout_s=0.3)
    with pytest.raises(Stopped):
        run(secure, grid, population=0, stopped=stopped, on_wait=on_wait)
    assert told == [(4, 5, 6)]
    assert [number for kind, _, number in grid.asked if kind == "query"] == [0, 1, 2, 3, 4, 5]


def test_a_number_that_is_another_devices_is_not_taken() -> None:
    grid = grid_of()
    owned: dict[int, int] = {3: 9999}  # by a device that is not there now

    def owns(node: int, number: int) -> bool:
        return owned.setdefault(number, node) == node

    made = strategy(replace(ALONE, clients=6, rounds=1), population=0, owns=owns)
    made.start(grid)
    assert made.reached.rounds[0].clients == 5
    assert owned[0] == 1000


def test_who_trains_is_kept_before_anybody_is_asked(tmp_path: Path) -> None:
    journal = Journal(tmp_path, RELEASE, 6, ALONE)
    seen: list[Any] = []

    def looking(client: int, task: RoundTask) -> Wire:
        seen.append(journal.begun())
        return usual(client, task)

    run(replace(ALONE, rounds=1), grid_of(looking), on_begin=journal.begin)
    assert seen == [Begun(1, tuple(sampled(range(6), 3, 4, 1, "sample")))] * 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "umbel.rounds/1"}', "[" * 100_000])
def test_a_note_of_the_beginning_that_is_damaged_is_left(tmp_path: Path, text: str) -> None:
    journal = Journal(tmp_path, RELEASE, 6, ALONE)
    journal.begin(Begun(1, (2,)))
    assert journal.begun() == Begun(1, (2,))
    (tmp_path / "begun.json").write_text(text)
    assert journal.begun() is None
    assert MANIFEST.release_id == RELEASE
