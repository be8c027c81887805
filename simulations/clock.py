"""How long each phase of a run took, over all its stops and starts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from umbel.shared.checks import number_problems, parsed_json
from umbel.shared.files import atomic_write


@final
@dataclass(slots=True)
class Clock:
    """Seconds by phase, kept in the run's folder, so that a resumed run still tells what the whole took."""

    path: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def load(self) -> None:
        """Takes up what an earlier, stopped run has measured."""
        with suppress(OSError, ValueError, AttributeError):  # worth no run that can go on
            found = parsed_json(self.path.read_bytes()).items()
            self.seconds = {name: float(value) for name, value in found if _is_time(name, value)}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time that the block takes, however it ends."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begun)

    def add(self, name: str, seconds: float) -> None:
        """Adds some time to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        atomic_write(self.path, json.dumps(self.seconds).encode())


def _is_time(name: str, value: object) -> bool:
    """Says whether a name and a value, read from a file, can be a phase and its seconds."""
    return name.isascii() and not number_problems(name, value, 0.0, 1e9)
