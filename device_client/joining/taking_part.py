"""Takes part in rounds: waits to be asked, answers, and begins again when the connection breaks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, final

from umbel.device_client.joining.reached import UnreachedError
from umbel.shared.errors import LinkError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_STEP_S = 0.2
_TRAINED = (
    "train",
    "train.unmask",
)  # what a device's part in a round ends with, without and with a secure sum

_GAIN = "query.gain"


@final
@dataclass(frozen=True, slots=True)
class Turn:
    """One message that a device was sent, and what came of it.

    Attributes:
        kind: "query", "query.gain", "train", "evaluate", or a stage of a secure sum, such as "train.setup".
        round: The round that it belongs to, as the coordinator numbers it.
        refused: The type of the error that was answered with; empty if the device did what it was asked.
        seconds: What it took.
    """

    kind: str
    round: str
    refused: str
    seconds: float


class Link(Protocol):
    """A connection to a coordinator."""

    def turn(self) -> Turn | None:
        """Waits a while for a message, answers it, and says what it was; None if there was none.

        Raises:
            UnreachedError: The connection broke.
            LinkError: The coordinator is another one, or does not know this device.
        """


@final
@dataclass(frozen=True, slots=True)
class Window:
    """When to stop.

    Attributes:
        once: After its part in one round.
        seconds: After so long; None for no end.
    """

    once: bool = False
    seconds: float | None = None


@final
class Participation:
    """Takes part until its window closes or it is stopped."""

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[Link]],
        window: Window,
        *,
        stopped: Callable[[], bool] = lambda: False,
        on_turn: Callable[[Turn], None] = lambda turn: None,
        on_break: Callable[[LinkError, float], None] = lambda error, pause_s: None,
    ):
        """Makes it ready.

        Args:
            connect: Makes a connection.
            window: When to stop.
            stopped: Asked between turns.
            on_turn: Hears of each turn.
            on_break: Hears why a connection broke, and after how many seconds the next one is tried.
        """
        self._connect, self._window, self._stopped = connect, window, stopped
        self._on_turn, self._on_break = on_turn, on_break
        self._began = time.monotonic()
        self._met = 0  # how often the coordinator has answered
        self.trained = self.refused = 0

    def run(self) -> None:
        """Takes part.

        Raises:
            LinkError: The coordinator is another one, or does not know this device; or nobody answered while
                the window was open.
        """
        pause_s, met = _FIRST_PAUSE_S, 0
        while not self._is_over():
            try:
                with self._connect() as link:
                    self._turns(link)
            except UnreachedError as error:
                if self._met > met:  # it worked for a while
                    pause_s, met = _FIRST_PAUSE_S, self._met
                if not self._met and self._left() <= pause_s:
                    raise
                # From the system, not from a seed: devices that lost a coordinator must not return as one.
                wait_s = pause_s * (0.5 + secrets.randbelow(1000) / 1000)
                self._on_break(error, wait_s)
                self._sleep(wait_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _turns(self, link: Link) -> None:
        while not self._is_over():
            turn = link.turn()
            self._met += 1
            if turn is None:
                continue
            if turn.refused:
                self.refused += turn.kind != _GAIN  # most owners tell none, and take part all the same
            elif turn.kind in _TRAINED:
                self.trained += 1
            self._on_turn(turn)

    def _is_over(self) -> bool:
        if self._stopped() or self._left() <= 0:
            return True
        # At once: the next round's task may come in the very next answer.
        return self._window.once and self.trained > 0

    def _left(self) -> float:
        if self._window.seconds is None:
            return float("inf")
        return self._window.seconds - (time.monotonic() - self._began)

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._is_over():
            time.sleep(_STEP_S)
