"""What is counted in one round."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import final

from umbel.coordinator.federation.journal import RoundRecord
from umbel.shared.messages import RoundTask

_MOST_NOTES = 100  # of a round: the records of all rounds are written anew after each

log = logging.getLogger(__name__)


@final
class Tally:
    """What is counted in one round.

    Attributes:
        asked: Stage -> node id -> device number.
        clients: Devices whose change counted.
        failures: Tasks without a usable answer.
        bytes_up: Serialized bytes of all answers.
        bytes_down: Serialized bytes of all tasks.
        refused: Numbers of the devices whose answer broke the contract.
        clip: The clip of the round, where it follows a quantile.
        within: Noised share of the devices whose change was within it.
    """

    def __init__(self) -> None:
        self.asked: dict[str, Mapping[int, int]] = {}
        self.clients = self.failures = self.bytes_up = self.bytes_down = 0
        self.refused: set[int] = set()
        self.clip: float | None = None
        self.within: float | None = None
        self._notes: list[str] = []
        self._more = 0
        self._tasks: dict[str, RoundTask] = {}

    def ask(self, stage: str, task: RoundTask, clients: Mapping[int, int], task_bytes: int) -> None:
        """Counts a task that goes to several: node id -> device number."""
        self._tasks[stage], self.asked[stage] = task, clients
        self.bytes_down += task_bytes * len(clients)

    def task(self, stage: str) -> RoundTask:
        """Returns the task of a stage."""
        return self._tasks[stage]

    def note(self, line: str) -> None:
        """Keeps a line for the record and logs it; of very many, the first ones."""
        if len(self._notes) < _MOST_NOTES:
            self._notes.append(line)
            log.warning("%s", line)
        else:
            self._more += 1

    def record(
        self, number: int, seconds: float, seen_accuracy: float | None, epsilon: float | None
    ) -> RoundRecord:
        """Returns the round's record."""
        return RoundRecord(
            round=number,
            clients=self.clients,
            failures=self.failures,
            seconds=seconds,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            seen_accuracy=seen_accuracy,
            notes=(*self._notes, *([f"... and {self._more} more"] if self._more else [])),
            refused=tuple(sorted(self.refused)),
            epsilon=epsilon,
            clip=self.clip,
            within=self.within,
        )
