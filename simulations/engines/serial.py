"""Every device in this process, one after another: slow, and the place to look when something breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, final

from flwr.app import Context, Message

from umbel.coordinator.federation.journal import RoundRecord, RoundsResult
from umbel.coordinator.server_app import serve
from umbel.device_client import flower_app
from umbel.simulations.engines.nodes import InProcessGrid


@final
class SerialGrid(InProcessGrid):
    """Its devices answer one after another."""

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
        super().__init__(config, population)
        self._respond = respond

    def answers(self, asked: Sequence[tuple[Message, Context]]) -> Iterable[Message]:
        """Returns what devices answer."""
        return [self._respond(message, context) for message, context in asked]


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
