"""Taking part: a connection that breaks is made again, and `once` ends with its round."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from umbel.device_client.joining import taking_part
from umbel.device_client.joining.reached import UnreachedError
from umbel.device_client.joining.taking_part import Link, Participation, Turn, Window
from umbel.shared.errors import LinkError

CUT = UnreachedError("cut")


class Clock:
    """A clock that goes on only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(taking_part, "time", made)
    return made


class Script:
    """A coordinator that does one thing a second: a turn, nothing (None), or an error."""

    def __init__(self, clock: Clock, *what: "Turn | LinkError | None"):
        self.clock, self.left, self.connections = clock, list(what), 0

    @contextmanager
    def connect(self) -> Iterator[Link]:
        self.connections += 1
        yield self

    def turn(self) -> Turn | None:
        self.clock.sleep(1.0)
        found = self.left.pop(0) if self.left else None
        if isinstance(found, LinkError):
            raise found
        return found


def turn(kind: str, round_: str = "1", refused: str = "") -> Turn:
    return Turn(kind, round_, refused, 0.5)


def taken(script: Script, window: Window) -> Participation:
    made = Participation(script.connect, window)
    made.run()
    return made


def test_until_its_window_closes(clock: Clock) -> None:
    script = Script(clock, turn("query", "0"), turn("train"), turn("train", "2", "EgressError"))
    found = taken(script, Window(seconds=10))
    assert (found.trained, found.refused, script.connections) == (1, 1, 1)
    assert clock.now == 110


SECURE = [turn(f"train.{stage}") for stage in ("setup", "share", "collect", "unmask")]


@pytest.mark.parametrize(
    "turns",
    [
        [turn("query", "0"), turn("train")],
        [
            turn("query", "0"),
            *SECURE,
        ],
    ],
)
def test_once_ends_with_its_part_in_a_round(clock: Clock, turns: list[Turn | None]) -> None:
    """The next round's task may be waiting already: it is left to others."""
    script = Script(clock, *turns, turn("train", "2"))
    assert taken(script, Window(once=True)).trained == 1
    assert len(script.left) == 1


def test_once_goes_on_where_it_was_refused_or_fell_out_of_a_secure_sum(clock: Clock) -> None:
    turns = [turn("train", "1", "ExampleError"), turn("train.collect", "2"), *[None] * 8]
    found = taken(Script(clock, *turns, turn("train", "3"), turn("query", "0")), Window(once=True))
    assert (found.trained, found.refused) == (1, 1)


def test_a_connection_that_breaks_is_made_again_later_and_later(clock: Clock) -> None:
    script = Script(clock, *[CUT] * 5, turn("train"), CUT, CUT)
    pauses: list[float] = []
    window = Window(seconds=300)
    made = Participation(script.connect, window, on_break=lambda error, pause_s: pauses.append(pause_s))
    made.run()
    assert (made.trained, script.connections) == (1, 8)
    for pause, about in zip(pauses, (1, 2, 4, 8, 16, 1, 2), strict=True):  # it was there in between
        assert 0.5 * about <= pause <= 1.5 * about


def test_another_coordinator_is_not_tried_again(clock: Clock) -> None:
    script = Script(clock, LinkError("not the coordinator that this device joined"), turn("train"))
    with pytest.raises(LinkError, match="not the coordinator"):
        taken(script, Window(seconds=100))
    assert script.connections == 1


def test_where_nobody_ever_answers_the_window_ends_with_that(clock: Clock) -> None:
    with pytest.raises(UnreachedError):
        taken(Script(clock, *[CUT] * 50), Window(seconds=30))


def test_a_stop_ends_it(clock: Clock) -> None:
    made = Participation(Script(clock, turn("train")).connect, Window(), stopped=lambda: clock.now > 103)
    made.run()
    assert made.trained == 1
