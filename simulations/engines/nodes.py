"""A Flower Grid whose nodes are simulated devices in this process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.supercore.run import Run

from umbel.coordinator.federation.own_grid import OwnGrid

_RUN_ID, _SERVER_NODE = 1, 1


class InProcessGrid(OwnGrid):
    """Its nodes answer within `pull_messages`: an answer waits for those alone that are asked for with it."""

    def __init__(self, config: dict[str, Any], population: int):
        """Makes the nodes.

        Args:
            config: The run config that every device sees.
            population: How many devices there are.
        """
        super().__init__(Run.create_empty(_RUN_ID), _SERVER_NODE, task_id=1)
        self._asked: dict[str, Message] = {}
        # Node ids are not the devices' numbers, as with every other grid.
        self._contexts = {
            number + 1000: Context(
                run_id=_RUN_ID,
                node_id=number + 1000,
                node_config={"partition-id": number, "num-partitions": population},
                state=RecordDict(),
                run_config=dict(config),
            )
            for number in range(population)
        }

    @abstractmethod
    def answers(self, asked: Sequence[tuple[Message, Context]]) -> Iterable[Message]:
        """Returns what devices answer to what they are asked, in this order."""

    def get_node_ids(self) -> Iterable[int]:
        """Returns the nodes' ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keeps what is asked, and returns the messages' ids."""
        keys = []
        for message in messages:
            key = str(uuid4())
            message.metadata.__dict__["_message_id"] = key
            self._asked[key] = message
            keys.append(key)
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Lets each device answer what it was asked, and returns the answers."""
        asked = [self._asked.pop(key) for key in list(message_ids) if key in self._asked]
        return self.answers([(message, self._contexts[message.metadata.dst_node_id]) for message in asked])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Lets each device answer, and returns the answers."""
        return self.pull_messages(self.push_messages(messages))
