"""Every device in this process, one after another: slow, and the place to look when something breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

from flwr.app import Context, Message

from umbel.coordinator.federation.journal import RoundRecord, RoundsResult
from umbel.coordinator.server_app import serve
from umbel.device_client import flower_app
from umbel.device_client.flower_app import COMPUTE
from umbel.simulations.engines.nodes import InProcessGrid
from umbel.simulations.homes.home import home_of


def replying(message: Message, context: Context) -> Message:
    """Answers a message as the device that the context is of; an error is an answer."""
    return flower_app.reply(message, context, home_of)


@final
class SerialGrid(InProcessGrid):
    """Its devices answer one after another."""

    def __init__(
        self,
        config: dict[str, Any],
        population: int,
        respond: Callable[[Message, Context], Message] = replying,
        others: Mapping[int, Context] = MappingProxyType({}),
    ):
        """Makes no node yet.

        Args:
            config: The run config that every device sees.
            population: How many devices there are.
            respond: Answers one device's message; `raising` ends the run at the first error instead.
            others: As in `InProcessGrid`.
        """
        super().__init__(config, population, others)
        self._respond = respond

    def answers(self, asked: Sequence[tuple[Message, Context]]) -> Iterable[Message]:
        """Returns what devices answer."""
        return [self._respond(message, context) for message, context in asked]


def raising(message: Message, context: Context) -> Message:
    """Answers a message; an error is raised as it is, with a note that says where in the run it happened."""
    try:
        return flower_app.answer(message, context, home_of)
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
    respond: Callable[[Message, Context], Message] = replying,
) -> RoundsResult:
    """Runs the rounds of a run config; see `run_rounds`. `workers` are torch's threads, if it computes."""
    Path(str(config["out"])).mkdir(parents=True, exist_ok=True)
    if config.get(COMPUTE):
        from umbel.simulations.torch_graphs.opening import compute_with_torch

        compute_with_torch(str(config[COMPUTE]), threads=workers)
    grid = SerialGrid(config, population, respond)
    return serve(grid, config, on_round=on_round, roll=grid.roll())
