"""Who is there: nodes come and go under random ids, devices are known by the number that they tell."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeAlias, final

from flwr.app import ArrayRecord, Message, MessageType

from umbel.coordinator.federation.envelopes import enveloped, opened
from umbel.coordinator.federation.line import Line
from umbel.coordinator.federation.roll import Roll
from umbel.shared.checks import tamed
from umbel.shared.errors import MessageError, TrainingError
from umbel.shared.messages import SCHEMA, read_hello

SILENT = "no answer"
_SETTLE_S = 1.0
GREETING_S = 10.0
_AGAIN_S = 30.0  # after a refusal: an owner may allow more meanwhile, and must not be asked all the time
_TOLD_S = 2.0

OnWait: TypeAlias = Callable[[int, int, int], None]
"""Hears how many devices can take part, how many are waited for, and how many are connected."""


def _silent(_here: int, _wanted: int, _connected: int) -> None:
    """Tells nobody."""


@final
class Presence:
    """Knows the devices."""

    def __init__(
        self,
        line: Line,
        population: int,
        least: int,
        owns: Callable[[int, int], bool],
        on_wait: OnWait = _silent,
        roll: Roll | None = None,
    ):
        """Knows nobody yet.

        Args:
            line: The way to the devices.
            population: How many devices to wait for; 0 to begin when their number no longer grows.
            least: With fewer no round is begun.
            owns: Says whether a node may go by the number that it tells.
            on_wait: Hears of devices that are missing: at once, and when their count has changed.
            roll: Who is at which node, where that is known: then nobody is waited for or asked.
        """
        self._line = line
        self._population = population
        self._least = least
        self._owns = owns
        self._numbers: dict[int, int] = {}  # node id -> the device's number
        self._online: set[int] = set()  # node ids
        self._mute: set[int] = set()  # node ids that have not answered yet
        self._refused: dict[int, float] = {}  # node id -> when it said that it does not take part
        self._on_wait = on_wait
        self._roll = roll
        self._waited: tuple[int, int, int] | None = None  # what was told last, and when
        self._told_at = -_TOLD_S

    def known(self) -> Sequence[int]:
        """Returns the numbers of the devices that are there, sorted."""
        return sorted(self.nodes()) if self._roll is None else self._roll.numbers

    def nodes(self) -> Mapping[int, int]:
        """Returns device number -> node id of those that are there."""
        if self._roll is not None:
            return self._roll
        return {number: node for node, number in self._numbers.items() if node in self._online}

    def meet(self, timeout: float, *, goes_on: bool = False) -> None:
        """Waits for the devices and asks each for its number.

        Args:
            timeout: Longest wait, in seconds.
            goes_on: Whether rounds were begun before: then those who do not come are done without, as they
                would have been if nobody had ended the run.

        Raises:
            TrainingError: Too few devices came, or two have the same number.
        """
        if self._roll is not None:
            return
        nodes = self._gathered(timeout)
        silent = self._introduce(nodes, timeout)
        self._online = set(nodes)
        needed = 1 if goes_on else max(1, self._population)
        if len(self._numbers) < needed:
            headline = f"{len(self._numbers)} devices can take part, {needed} are needed"
            problems = [f"{count} devices: {reason}" for reason, count in silent.items() if count]
            raise TrainingError(
                "the rounds cannot begin", [headline, *problems], "See the devices' own logs."
            )

    def greet(self, timeout: float, wanted: Collection[int] = ()) -> None:
        """Gets to know who has come since.

        With fewer devices than a round needs none is begun: it waits for them, however long that takes. A
        device that has not said a word is not asked again while it stays: it would hold up every round.

        Args:
            timeout: Longest wait for those who are wanted, in seconds.
            wanted: Numbers of the devices that were to train in a round that was begun before.
        """
        if self._roll is not None:
            return
        deadline, wanted = time.monotonic() + timeout, set(wanted)
        while True:
            self._online = self._line.nodes()
            self._mute &= self._online
            new = self._online - set(self._numbers) - self._mute - self._refused_lately()
            self._mute |= new  # until they answer
            self._introduce(sorted(new), min(timeout, GREETING_S))
            known = set(self.known())
            if len(known) >= self._least and (wanted <= known or time.monotonic() > deadline):
                return
            if len(known) < self._least:
                self._waits(len(known), self._least, len(self._online))
            self._line.pause()

    def _refused_lately(self) -> set[int]:
        """Returns the nodes that refused so short a while ago that they are not asked again."""
        since = time.monotonic() - _AGAIN_S  # who goes and comes again is asked at once
        self._refused = {
            node: at for node, at in self._refused.items() if node in self._online and at > since
        }
        return set(self._refused)

    def _waits(self, here: int, wanted: int, connected: int) -> None:
        """Tells who is missing, if that has changed since it was told; not each one of many that come."""
        now, state = time.monotonic(), (here, wanted, connected)
        if state != self._waited and now - self._told_at >= _TOLD_S:
            self._waited, self._told_at = state, now
            self._on_wait(here, wanted, connected)

    def _introduce(self, nodes: Iterable[int], timeout: float) -> Counter[str]:
        """Asks nodes for their devices' numbers, and returns why some gave none, and how many."""
        content = enveloped(ArrayRecord(), {"schema": SCHEMA})
        messages = [Message(content, node, MessageType.QUERY, group_id="0") for node in nodes]
        silent: Counter[str] = Counter({SILENT: len(messages)})
        answers: Iterable[Message] = self._line.ask(messages, timeout) if messages else []
        for reply in sorted(answers, key=lambda reply: reply.metadata.src_node_id):
            silent[SILENT] -= 1
            self._mute.discard(reply.metadata.src_node_id)
            reason = self._not_taken(reply)
            if reason:
                self._refused[reply.metadata.src_node_id] = time.monotonic()
                silent[reason] += 1
        return silent

    def _not_taken(self, reply: Message) -> str:
        """Takes a device's number in, or returns why not."""
        node = reply.metadata.src_node_id
        if reply.has_error():
            return first_line(reply.error.reason or "error")
        try:
            number = read_hello(opened(reply.content)).client
        except MessageError as error:
            return "; ".join(error.problems)
        others = {own for known, own in self._numbers.items() if known != node}
        if number in others or not self._owns(node, number):
            return f"number {number} is given by more than one device"
        self._numbers[node] = number
        return ""

    def _gathered(self, timeout: float) -> list[int]:
        """Returns the nodes once there are enough, or once their number has stopped to grow."""
        deadline, grew, nodes = time.monotonic() + timeout, time.monotonic(), self._line.nodes()
        while time.monotonic() < deadline:
            if self._population and len(nodes) >= self._population:
                break
            settled = time.monotonic() - grew >= _SETTLE_S
            if not self._population and len(nodes) >= self._least and settled:
                break
            if len(nodes) < (self._population or self._least):
                self._waits(len(nodes), self._population or self._least, len(nodes))
            self._line.pause(0.1)
            before, nodes = len(nodes), self._line.nodes()
            grew = grew if len(nodes) == before else time.monotonic()
        return sorted(nodes)


def first_line(text: str) -> str:
    r"""Returns the first line of what a device says went wrong, as a log and a terminal bear it.

    Example:
        >>> first_line("\x1b]0;title\nmore"), first_line(" ")
        ('\ufffd]0;title', 'no reason given')
    """
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return tamed(line if len(line) <= 200 else f"{line[:200]}...")
