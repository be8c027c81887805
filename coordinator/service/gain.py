"""Asks devices for their gain with the release that is served, each of them once while it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

from flwr.app import ArrayRecord, Message

from umbel.coordinator.federation.envelopes import enveloped, opened
from umbel.coordinator.federation.gains import GainFigures, Gains
from umbel.coordinator.federation.line import Ask
from umbel.shared.errors import MessageError
from umbel.shared.messages import GAIN, GainQuestion, read_gain


@final
class GainAsker:
    """Is called before every round with who is there."""

    def __init__(
        self, gains: Gains, release_id: str, on_gain: Callable[[GainFigures], None] = lambda figures: None
    ):
        """Takes what is kept already.

        Args:
            gains: Where the numbers are counted.
            release_id: The release that is served.
            on_gain: Hears what all numbers come to whenever there are enough new ones.
        """
        self._gains, self._question, self._on_gain = gains, GainQuestion(release_id), on_gain
        self._asked: set[int] = set()

    def __call__(self, ask: Ask, nodes: Mapping[int, int]) -> None:
        """Asks those who were not asked yet; who tells nothing is asked again by the next `serve` only.

        Args:
            ask: Sends messages and yields their answers.
            nodes: Device number -> node id, of those who are there.
        """
        new = {node: own for own, node in nodes.items() if node not in self._asked and self._gains.wants(own)}
        if not new:
            return
        self._asked |= set(new)
        content = enveloped(ArrayRecord(), self._question.wire().config)
        for reply in ask([Message(content, node, GAIN, group_id=GAIN) for node in sorted(new)]):
            client = new.get(reply.metadata.src_node_id)
            if client is not None and not reply.has_error():
                self._take(client, reply)
        figures = self._gains.keep()
        if figures is not None:
            self._on_gain(figures)

    def _take(self, client: int, reply: Message) -> None:
        try:
            self._gains.add(client, read_gain(opened(reply.content), self._question).noised)
        except MessageError:
            return  # it tells nothing that can be counted, as one that tells nothing
