"""The way to the devices: asks them, and takes their answers as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, final

from flwr.app import Message
from flwr.serverapp import Grid

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 0.5
_PULLED_BYTES = 8 * 2**20  # of answers at a time: Flower hands all over that it is asked for and has


Ask: TypeAlias = Callable[[Iterable[Message]], Iterator[Message]]
"""Sends messages, and yields their answers as they come."""


class Stopped(Exception):  # noqa: N818  (an event, like KeyboardInterrupt)
    """The run was asked to stop; what was finished is kept."""


@final
class Line:
    """A grid, with a wait that can be ended."""

    def __init__(self, grid: Grid, stopped: Callable[[], bool] = lambda: False):
        """Keeps the way.

        Args:
            grid: Flower's.
            stopped: Asked while waiting; True ends the run.
        """
        self._grid = grid
        self._stopped = stopped

    def nodes(self) -> set[int]:
        """Returns the ids of the nodes that are there."""
        return set(self._grid.get_node_ids())

    def ask(self, messages: Iterable[Message], timeout: float, answer_bytes: int = 0) -> Iterator[Message]:
        """Sends messages and yields their answers as they come.

        Args:
            messages: What is sent.
            timeout: Longest wait, in seconds.
            answer_bytes: About what an answer has: so many are fetched at a time that memory stays small.

        Raises:
            Stopped: The run is to end.
        """
        waiting = dict.fromkeys(key for key in self._grid.push_messages(messages) if key)
        several = max(1, _PULLED_BYTES // max(1, answer_bytes))
        deadline, pause_s = time.monotonic() + timeout, _FIRST_WAIT_S
        while waiting and time.monotonic() < deadline:
            for keys in _batches(waiting, several):
                for reply in self._grid.pull_messages(keys):
                    if reply.metadata.reply_to_message_id in waiting:
                        del waiting[reply.metadata.reply_to_message_id]
                        yield reply
            if waiting:
                self.pause(pause_s)
                pause_s = min(1.5 * pause_s, _LONGEST_WAIT_S)

    def pause(self, seconds: float = _LONGEST_WAIT_S) -> None:
        """Waits.

        Raises:
            Stopped: The run is to end.
        """
        if self._stopped():
            raise Stopped
        time.sleep(seconds)


def _batches(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yields the keys, `size` at a time in their order; those that were there at the beginning."""
    remaining = list(keys)
    for start in range(0, len(remaining), size):
        yield remaining[start : start + size]
