"""When a long run writes a line where no bar can be drawn, so that a log shows that work goes on."""

from __future__ import annotations

import time
from typing import final

_EVERY_S = 60.0


@final
class Pace:
    """Says when a phase is due for a line: at once, unless its minute has begun, and then once a minute."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def begins(self, phase: str) -> None:
        """Starts the phase's minute."""
        self._told[phase] = time.monotonic()

    def due(self, phase: str) -> bool:
        """Says whether the phase may write a line now; if so, its next minute starts."""
        told = self._told.get(phase)
        if told is not None and time.monotonic() - told < _EVERY_S:
            return False
        self.begins(phase)
        return True
