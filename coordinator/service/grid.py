"""Flower's Grid in the process that serves the link: what rounds ask goes to where nodes fetch it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import final

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID

from umbel.coordinator.federation.own_grid import OwnGrid
from umbel.coordinator.service.link_state import LinkState

_PAUSE_S = 0.1


@final
class LinkGrid(OwnGrid):
    """A Grid over the nodes that have come over the network."""

    def __init__(self, state: LinkState, ring: Callable[[], None]):
        """Begins a run.

        Args:
            state: The link's.
            ring: Wakes the nodes that wait for something to do.
        """
        self._state, self._ring = state, ring
        run = state.begin_run()
        super().__init__(run, SUPERLINK_NODE_ID, run.primary_task_id or 0)
        self._open: dict[str, str] = {}  # message id -> its group, for what has no answer yet

    def get_node_ids(self) -> Iterable[int]:
        """Returns the ids of the nodes that are online."""
        return sorted(self._state.get_nodes(self._run.run_id))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Puts messages where nodes fetch them; what is open from an earlier round is void from then on."""
        asked = list(messages)
        self._close({message.metadata.group_id for message in asked})
        ids = self._state.ask(asked, self._run.run_id)
        self._open |= {own: m.metadata.group_id for own, m in zip(ids, asked, strict=True) if own}
        self._ring()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the answers that have arrived."""
        found = self._state.answers(message_ids, self._run.run_id)
        for answer in found:
            self._open.pop(answer.metadata.reply_to_message_id, None)
        return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Asks nodes, and waits for their answers."""
        waiting, found = {own for own in self.push_messages(messages) if own}, []
        deadline = None if timeout is None else time.monotonic() + timeout
        while waiting and (deadline is None or time.monotonic() < deadline):
            for answer in self.pull_messages(waiting):
                waiting.discard(answer.metadata.reply_to_message_id)
                found.append(answer)
            time.sleep(_PAUSE_S if waiting else 0)
        return found

    def end(self) -> None:
        """Ends the run."""
        self._state.end_run(self._run)
        self._open.clear()

    def _close(self, groups: set[str]) -> None:
        """Drops what is open and of other groups, that is, of rounds that are over."""
        for message_id in [own for own, group in self._open.items() if group not in groups]:
            self._state.drop(message_id)
            del self._open[message_id]
