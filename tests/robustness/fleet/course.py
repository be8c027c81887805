"""A run of rounds of real processes, with all the blows of a scene."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from tests.federation import PATIENCE_S, Federation
from tests.robustness.fleet.scene import HANG, KILL, Blow, Scene

from umbel.coordinator.federation.journal import ROUNDS

_LOOK_S = 0.05
_TAP, _LIAR = "tests.robustness.fleet.tap", "tests.robustness.fleet.liar"
Process = subprocess.Popen[str]


@final
class Course:
    """The coordinator, the devices, and what becomes of them.

    Attributes:
        sent: The folder of what left the devices, a file for each process.
        told: Every blow, with what was going on when it came.
    """

    def __init__(self, own: Federation, scene: Scene, sent: Path):
        """Prepares it; nothing runs yet."""
        self.own, self.scene, self.sent = own, scene, sent
        self.told: list[dict[str, Any]] = []
        self._devices: dict[int, list[Process]] = {number: [] for number in range(scene.devices)}
        self._serving = self._serve()
        self._hanging: list[tuple[int, Process]] = []  # until which round is over, and who
        sent.mkdir()

    def run(self) -> None:
        """Runs it to its end, and ends the devices in good order.

        Raises:
            AssertionError: Something does not come in time, or a process ends that should not.
        """
        self._until(lambda: self.own.events(self._serving, "listening"))
        for number, line in enumerate(self.own.invite(self.scene.devices)):
            self._join(number, line)
        for blow in self.scene.blows:
            self._strike(blow)
        self._until(lambda: self._serving.poll() is not None)
        assert self._serving.poll() == 0, self.own.said(self._serving)
        for device in [started[-1] for started in self._devices.values()]:
            device.send_signal(signal.SIGTERM)
            assert self.own.ended(device) == 0, self.own.said(device)

    def records(self) -> list[dict[str, Any]]:
        """Returns the records of the rounds that are done."""
        journal = self.own.folder.rounds(self.own.release.release_id) / ROUNDS
        rows: list[dict[str, Any]] = json.loads(journal.read_bytes())["rounds"] if journal.is_file() else []
        return rows

    def processes(self) -> int:
        """Returns how many processes devices had in all."""
        return sum(len(started) for started in self._devices.values())

    def _strike(self, blow: Blow) -> None:
        self._until(lambda: self._answered(blow))
        time.sleep(blow.after_s)
        finished, victim = len(self.records()), self._devices[blow.device][-1]
        self.told.append({**asdict(blow), "in_round": finished == blow.round - 1})
        if blow.kind == KILL:
            self.own.kill(victim)
            self._join(blow.device)
        elif blow.kind == HANG:
            os.killpg(victim.pid, signal.SIGSTOP)
            self._hanging.append((blow.round, victim))
        else:
            self.own.kill(self._serving)
            self._serving = self._serve()

    def _answered(self, blow: Blow) -> bool:
        """Says whether the moment of a blow has come."""
        turns = [turn for own in self._devices[blow.device] for turn in self.own.events(own, "turn")]
        return any((turn["kind"], turn["round"]) == (blow.stage, str(blow.round)) for turn in turns)

    def _until(self, wanted: Callable[[], object]) -> None:
        """Waits until something holds; lets whoever hangs go on once its round is over."""
        deadline = time.monotonic() + PATIENCE_S
        while not wanted():
            assert time.monotonic() < deadline, self.own.said(self._serving)
            assert self._serving.poll() in (None, 0), self.own.said(self._serving)
            finished = len(self.records()) if self._hanging else 0
            for over in [own for own in self._hanging if own[0] <= finished]:
                os.killpg(over[1].pid, signal.SIGCONT)
                self._hanging.remove(over)
            time.sleep(_LOOK_S)

    def _serve(self) -> Process:
        return self.own.serve(settings=self.scene.settings)

    def _join(self, number: int, *words: str) -> None:
        file = str(self.sent / f"{number:02d}-{len(self._devices[number])}")
        lies = json.dumps(dict(self.scene.lies))
        program = [_LIAR, file, lies] if number == self.scene.liar else [_TAP, file]
        self._devices[number].append(self.own.join(number, *words, program=program))
