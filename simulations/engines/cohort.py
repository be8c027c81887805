"""A whole cohort in this process: devices' private steps run together, a person per row of one batch.

Every device does what it does alone, by the same code (`umbel.device_client.flower_app`), until it wants a
profile. There it waits; once all of a pack wait, their profiles are learned in one go, and each goes on with
its own. So messages, checks, the gate and errors are those of any other engine. Packs are a function of the
round and its devices, so the same seed gives the same numbers; another engine's sums are in another order, so
its numbers are equal to float32's rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from flwr.app import Context, Message

from umbel.coordinator.federation.journal import RoundRecord, RoundsResult
from umbel.coordinator.server_app import serve
from umbel.device_client import flower_app
from umbel.device_client.rounds import Steps, Wanted, learned
from umbel.shared.profile import FloatArray
from umbel.simulations.engines.nodes import InProcessGrid
from umbel.simulations.homes.home import home_of

PACK = 64  # devices: what they hold while they wait is small, and beyond it a batch gets no faster
_ROWS = (
    256  # texts of a graph run: the more, the less a run costs beside them; a device has no room for so many
)


@final
class CohortGrid(InProcessGrid):
    """Its devices answer in packs."""

    def __init__(self, config: dict[str, Any], population: int, pack: int = PACK):
        """Makes the nodes.

        Args:
            config: The run config that every device sees.
            population: How many devices there are.
            pack: How many answer together.
        """
        super().__init__(config, population)
        self._pack = pack

    def answers(self, asked: Sequence[tuple[Message, Context]]) -> Iterator[Message]:
        """Yields what devices answer."""
        for start in range(0, len(asked), self._pack):
            yield from answered_together(asked[start : start + self._pack])


@final
@dataclass(slots=True)
class _Device:
    """A device at work.

    Attributes:
        message: What it was asked.
        context: Flower's, of its node.
        steps: Its work.
        wanted: What it waits for; None at the end.
        answer: What it has answered.
    """

    message: Message
    context: Context
    steps: Steps[Message]
    wanted: Wanted | None = None
    answer: Message | None = None

    def go_on(self, profile: dict[str, FloatArray] | None) -> None:
        """Works until it wants a profile or has an answer; whatever goes wrong is its answer."""
        try:
            self.wanted = self.steps.send(profile) if profile is not None else next(self.steps)
        except StopIteration as end:
            self.wanted, self.answer = None, end.value
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Answers with an error."""
        self.steps.close()
        self.wanted = None
        self.answer = flower_app.refusal(self.message, self.context, error, home_of)


def answered_together(asked: Sequence[tuple[Message, Context]]) -> list[Message]:
    """Returns what several devices answer; where they want profiles, these are learned together."""
    devices = [_Device(m, context, flower_app.answering(m, context, home_of)) for m, context in asked]
    for device in devices:
        device.go_on(None)
    while waiting := [device for device in devices if device.wanted is not None]:
        for alike in _alike(waiting):
            _give(alike)
    return [device.answer for device in devices if device.answer is not None]


def _alike(waiting: Sequence[_Device]) -> list[list[_Device]]:
    """Returns the devices by what a batch must have in common: the engine and the recipe."""
    groups: dict[tuple[int, str], list[_Device]] = {}
    for device in waiting:
        wanted = device.wanted
        assert wanted is not None
        recipe = wanted.task.recipe(wanted.engine.release.manifest, len(wanted.support))
        groups.setdefault((id(wanted.engine), repr(recipe)), []).append(device)
    return list(groups.values())


def _give(alike: Sequence[_Device]) -> None:
    """Learns what devices wait for, and lets them go on; if that fails for one, each learns for itself."""
    wanted = [device.wanted for device in alike if device.wanted is not None]
    try:
        rows = _ROWS if len(wanted) > 1 else None
        profile = learned(wanted[0].engine, [own.support for own in wanted], wanted[0].task, rows)
    except Exception as error:
        if len(alike) == 1:
            alike[0].fail(error)
            return
        for device in alike:
            _give([device])
        return
    for row, device in enumerate(alike):
        device.go_on({name: values[row : row + 1] for name, values in profile.items()})


def run_cohort(
    config: dict[str, Any],
    population: int,
    workers: int,
    on_round: Callable[[RoundRecord], None] | None,
) -> RoundsResult:
    """Runs the rounds of a run config; see `run_rounds`. `workers` are threads here."""
    Path(str(config["out"])).mkdir(parents=True, exist_ok=True)
    own = {**config, "threads": workers}
    grid = CohortGrid(own, population)
    return serve(grid, own, on_round=on_round, roll=grid.roll())
