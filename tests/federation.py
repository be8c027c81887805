"""A federation of real processes on this machine: a coordinator that serves, and devices that join it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umbel.coordinator.service.folder import Address, Folder
from umbel.device_client.egress.policy import Policy
from umbel.device_client.owner import Device
from umbel.shared.examples import Example, write_examples
from umbel.shared.release import Release

PATIENCE_S = 240.0  # a loaded machine takes its time
UMBEL = ("umbel",)
_ROOT = Path(__file__).parents[1]
SETTINGS = ("seed=3", "local_rate=0.5", "timeout_s=120")


def free_port() -> int:
    """Returns a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def examples_of(number: int) -> list[Example]:
    """Returns what a device's owner has judged; each device's are other ones."""
    good = [
        Example("owner", f"good tender film {'very ' * number}", "yes"),
        Example("owner", "we like it", "yes"),
    ]
    return [
        *good,
        Example("owner", "bad slow book", "no"),
        Example("owner", f"not {'a ' * number}book", "no"),
    ]


@dataclass
class Federation:
    """A coordinator's folder, devices' homes, and the processes that were started.

    Attributes:
        path: Where it all lies.
        release: What everybody begins with.
        devices: How many.
        examples: What the owner of a device has judged.
        least_in_a_sum: Over how many devices a sum must be for owners to let a change into it.
    """

    path: Path
    release: Release
    devices: int
    examples: Callable[[int], list[Example]] = examples_of
    least_in_a_sum: int = 1
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder, _ = Folder.make(self.path / "fed", Address("127.0.0.1", free_port()))
        for number in range(self.devices):
            with Device.enroll(self.home(number), self.release.folder) as device:
                device.add(self.examples(number))
                device.keep_policy(Policy("always", least_in_a_sum=self.least_in_a_sum))
                device.client_number(number)  # so that a simulation can have devices of these numbers
            write_examples(self.path / f"simulated/{number:06d}/examples.jsonl", self.examples(number))

    def home(self, number: int) -> Path:
        """Returns a device's home."""
        return self.path / f"home-{number}"

    def invite(self, count: int = 1, *words: str) -> list[str]:
        """Makes invitations."""
        found = self.run(
            "coordinator", "enroll", str(self.folder.path), "--count", str(count), "--json", *words
        )
        invitations: list[str] = json.loads(found.stdout)["invitations"]
        return invitations

    def serve(self, *changes: str, settings: Sequence[str] = SETTINGS) -> subprocess.Popen[str]:
        """Starts the coordinator; what it says is one JSON object a line."""
        words = [
            "coordinator",
            "serve",
            str(self.folder.path),
            "--release",
            str(self.release.folder),
            "--json",
        ]
        words += ["--bind", "127.0.0.1", "--devices", str(self.devices)]
        return self.start(*words, *(f"--set={change}" for change in (*settings, *changes)))

    def join(self, number: int, *words: str, program: Sequence[str] = UMBEL) -> subprocess.Popen[str]:
        """Starts a device, by umbel or by another program, which has words of its own."""
        words = ("device", "join", *words, "--home", str(self.home(number)), "--json")
        return self.start(*words, program=program)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        return subprocess.run(
            _command(words),
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def start(self, *words: str, program: Sequence[str] = UMBEL) -> subprocess.Popen[str]:
        """Starts a command in a process group of its own."""
        with (self.path / f"log-{len(self.running):03d}").open("w") as log:
            process = subprocess.Popen(
                _command(words, program),
                env=_environment(),
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def said(self, process: subprocess.Popen[str]) -> str:
        """Returns what a process has said so far."""
        return (self.path / f"log-{self.running.index(process):03d}").read_text()

    def events(self, process: subprocess.Popen[str], kind: str = "") -> list[dict[str, Any]]:
        """Returns the events that a process has told."""
        rows = [json.loads(line) for line in self.said(process).splitlines() if line.startswith("{")]
        return [row for row in rows if kind in ("", row["event"])]

    def ended(self, process: subprocess.Popen[str]) -> int:
        """Waits for a process's end and returns its status."""
        try:
            return process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.said(process)) from None

    def until(self, process: subprocess.Popen[str], wanted: Callable[[], object]) -> None:
        """Waits until something holds, while a process runs."""
        deadline = time.monotonic() + PATIENCE_S
        while not wanted():
            assert time.monotonic() < deadline, self.said(process)
            assert process.poll() is None, self.said(process)
            time.sleep(0.02)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kills a process and all that it started, at once."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        """Leaves nothing running."""
        for process in self.running:
            self.kill(process)


def _command(words: Sequence[str], program: Sequence[str] = UMBEL) -> list[str]:
    return [sys.executable, "-m", *program, *words]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
