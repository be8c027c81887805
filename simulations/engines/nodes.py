"""A Flower Grid whose nodes are simulated devices in this process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.supercore.run import Run

from umbel.coordinator.federation.own_grid import OwnGrid
from umbel.coordinator.federation.roll import Roll
from umbel.device_client.flower_app import DEVICES
from umbel.shared.errors import ConfigError
from umbel.simulations.homes.home import table_stamp

_RUN_ID, _SERVER_NODE = 1, 1
_FIRST_NODE = 1000  # node ids are not the devices' numbers, as with every other grid


class InProcessGrid(OwnGrid):
    """Its nodes answer within `pull_messages`: an answer waits for those alone that are asked for with it.

    A node is nothing until it is asked: of those that keep something for the next message, such as their part
    in a secure sum, the context is held; of the others there is none. So a population costs no memory.
    """

    def __init__(
        self, config: dict[str, Any], population: int, others: Mapping[int, Context] = MappingProxyType({})
    ):
        """Makes no node yet.

        Args:
            config: The run config that every device sees.
            population: How many devices there are.
            others: Node id -> context of nodes besides, that are no simulated devices.
        """
        super().__init__(Run.create_empty(_RUN_ID), _SERVER_NODE, task_id=1)
        self._config, self._population = config, population
        self._asked: dict[str, Message] = {}
        self._held: dict[int, Context] = {}
        self._others = others
        self._devices = Path(str(config[DEVICES])) if config.get(DEVICES) else None
        self._people = table_stamp(self._devices) if self._devices else None

    @abstractmethod
    def answers(self, asked: Sequence[tuple[Message, Context]]) -> Iterable[Message]:
        """Returns what devices answer to what they are asked, in this order."""

    def get_node_ids(self) -> Iterable[int]:
        """Returns the nodes' ids."""
        own = range(_FIRST_NODE, _FIRST_NODE + self._population)
        return [*own, *self._others] if self._others else own

    def roll(self) -> Roll:
        """Returns which device is at which node: whoever knows that need not ask each for its number."""
        return Roll(_FIRST_NODE, self._population)

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
        """Lets each device answer what it was asked, and returns the answers.

        Raises:
            ConfigError: The table of people that the run began with is gone, or is another one now.
        """
        self._check_people()
        messages = [self._asked.pop(key) for key in list(message_ids) if key in self._asked]
        return self._answers([(message, self._context(message.metadata.dst_node_id)) for message in messages])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Lets each device answer, and returns the answers."""
        return self.pull_messages(self.push_messages(messages))

    def _check_people(self) -> None:
        """Ends the run, rather than that everybody fails in each round that is left, or others take part."""
        if self._people is not None and self._devices and table_stamp(self._devices) != self._people:
            raise ConfigError(
                "the people of these rounds have changed while they ran",
                [f"{self._devices} holds another table of people now, or none"],
                "Put back the one that was there, and run the same again: finished rounds are kept.",
            )

    def _answers(self, asked: Sequence[tuple[Message, Context]]) -> Iterator[Message]:
        try:
            yield from self.answers(asked)
        finally:
            for _, context in asked:
                if context.state:
                    self._held[context.node_id] = context
                else:
                    self._held.pop(context.node_id, None)

    def _context(self, node: int) -> Context:
        """Returns what a node has kept, or a new context."""
        kept = self._others.get(node) or self._held.get(node)
        if kept is not None:
            return kept
        number = node - _FIRST_NODE
        return Context(
            run_id=_RUN_ID,
            node_id=node,
            node_config={"partition-id": number, "num-partitions": self._population},
            state=RecordDict(),
            run_config=dict(self._config),
        )
