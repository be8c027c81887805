"""Processes that are measured: whole ones, with seconds and peak memory, and ones that wait for orders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, final

from umbel.simulations.bench.rows import BenchError

_LAUNCH = Path(__file__).parent / "launch.py"
_SHOWN = 10  # last lines of what a process that failed had to say

_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}


@final
@dataclass(frozen=True, slots=True)
class Ran:
    """A process that has ended: seconds from its start to its end, its own peak memory, what it printed."""

    seconds: float
    peak_bytes: int
    printed: str


def environment(threads: int, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment of a measured process: threads on purpose, bytecode as Python keeps it."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return own | dict.fromkeys(_POOLS, str(threads)) | _QUIET | dict(more or {})


def run_once(command: Sequence[str], variables: Mapping[str, str]) -> Ran:
    """Runs a process to its end.

    Args:
        command: Its first word is a path.
        variables: Its environment.

    Raises:
        BenchError: It ended with an error; its last words are told.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        launcher = [sys.executable, "-I", "-S", str(_LAUNCH), str(told), *command]
        ended = subprocess.run(
            launcher,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=dict(variables),
            check=False,
        )
        if ended.returncode:
            raise _failed(command, ended.returncode, ended.stderr)
        found = json.loads(told.read_text())
    return Ran(found["seconds"], found["peak_bytes"], ended.stdout)


def _failed(command: Sequence[str], code: int, errors: str) -> BenchError:
    words = [part for part in command[1:] if not part.startswith("/")][:4]
    last = errors.strip().splitlines()[-_SHOWN:]
    return BenchError(f"a measured process ended with {code}: {' '.join(words)}", last)


@final
class Worker:
    """A process that prepares work and times it when told (`rival/harness.py`)."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path):
        """Starts it; what it says on stderr goes to `log`."""
        self._command, self._log = command, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, env=dict(variables)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._stdin.close()
        if kind is not None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def prepare(self, task: str, **options: Any) -> Any:
        """Makes a piece of work ready and returns what it gives."""
        return self._ask({"task": task, "options": options})["answer"]

    def time(self, repeat: int) -> list[float]:
        """Does the work some times and returns the seconds of each."""
        return [float(value) for value in self._ask({"repeat": repeat})["seconds"]]

    def memory(self) -> tuple[int, int]:
        """Returns what the process holds now, and what it held at most, in bytes."""
        found = self._ask({"memory": True})
        return int(found["now"]), int(found["peak"])

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _ask(self, order: Mapping[str, Any]) -> Any:
        assert self._process.stdout is not None
        line = b""
        with suppress(BrokenPipeError):
            self._stdin.write(json.dumps(order).encode() + b"\n")
            self._stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise _failed(self._command, code, self._log.read_text(errors="replace"))
        return json.loads(line)


@final
class Stepwise:
    """A fresh process that does a step when it is told to, and tells its peak memory at its end.

    It says a line after each step, the first of which it does by itself, and goes on when it is given one.
    So the steps of several processes can be done in turns, one at a time.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], folder: Path):
        """Starts it; what it says on stderr goes to a log.

        Args:
            command: Its first word is a path.
            variables: Its environment.
            folder: Where its log goes, and what it took.
        """
        self._command, self._told, self._log = command, folder / "told.json", folder / "log"
        launcher = [sys.executable, "-I", "-S", str(_LAUNCH), str(self._told), *command]
        with self._log.open("wb") as stream:
            self._process: subprocess.Popen[str] = subprocess.Popen(
                launcher, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, env=dict(variables),
                text=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()  # it ends: nobody tells it to go on
        self._process.wait()
        self._process.stdout.close()

    def first(self) -> str:
        """Waits for the first step, and returns what the process says of it.

        Raises:
            BenchError: It ended; its last words are told.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise _failed(self._command, self._process.wait(), self._log.read_text(errors="replace"))
        return line

    def step(self) -> str:
        """Lets it do the next step, and returns what it says of it.

        Raises:
            BenchError: It ended; its last words are told.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self.first()

    def ended(self) -> Ran:
        """Lets it go on after the last step, and returns what it took.

        Raises:
            BenchError: It ended with an error; its last words are told.
        """
        printed, _ = self._process.communicate("\n")
        if self._process.returncode:
            errors = self._log.read_text(errors="replace")
            raise _failed(self._command, self._process.returncode, errors)
        found = json.loads(self._told.read_text())
        return Ran(found["seconds"], found["peak_bytes"], printed)


def umbel_command(*words: str) -> list[str]:
    """Returns the command line of this umbel."""
    return [sys.executable, "-m", "umbel", *words]
