"""Every device in this process, one after another: slow, and the place to look when something breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, final
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.supercore.run import Run

from umbel.coordinator.federation.journal import RoundRecord, RoundsResult
from umbel.coordinator.federation.own_grid import OwnGrid
from umbel.coordinator.server_app import serve
from umbel.device_client import flower_app

_RUN_ID, _SERVER_NODE = 1, 1


@final
class SerialGrid(OwnGrid):
    """A Flower Grid whose nodes answer within `pull_messages`, so that no answer waits for the others."""

    def __init__(
        self,
        config: dict[str, Any],
        population: int,
        respond: Callable[[Message, Context], Message] = flower_app.reply,
    ):
        """Makes the nodes.

        Args:
            config: The run config that every device sees.
            population: How many devices there are.
            respond: Answers one device's message; `raising` ends the run at the first error instead.
        """
        super().__init__(Run.create_empty(_RUN_ID), _SERVER_NODE, task_id=1)
        self._respond = respond
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
        return [self._respond(message, self._contexts[message.metadata.dst_node_id]) for message in asked]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Lets each device answer, and returns the answers."""
        return self.pull_messages(self.push_messages(messages))


def raising(message: Message, context: Context) -> Message:
    """Answers a message; an error is raised as it is, with a note that says where in the run it happened."""
    try:
        return flower_app.answer(message, context)
    except Exception as error:
        stage, round_ = message.metadata.message_type, message.metadata.group_id
        error.add_note(f"round {round_}, stage {stage}, device {context.node_config['partition-id']:06d}")
        raise


def run_serial(
    config: dict[str, Any],
    population: int,
    workers: int,
    on_round: Callable[[RoundRecord], None] | None,
    *,
    respond: Callable[[Message, Context], Message] = flower_app.reply,
) -> RoundsResult:
    """Runs the rounds of a run config; see `run_rounds`. `workers` changes nothing here."""
    del workers
    Path(str(config["out"])).mkdir(parents=True, exist_ok=True)
    return serve(SerialGrid(config, population, respond), config, on_round=on_round)
