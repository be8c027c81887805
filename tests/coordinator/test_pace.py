"""Lines of a log: one at a phase's beginning, then at most one a minute."""

import time

import pytest

from umbel.coordinator.pace import Pace


def test_each_phase_has_its_own_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    own = Pace()
    own.begins("quiet at first")
    told = []
    for second in range(0, 181, 20):
        now = float(second)
        told += [(second, phase) for phase in ("quiet at first", "at once") if own.due(phase)]
    assert told == [
        (0, "at once"),
        (60, "quiet at first"),
        (60, "at once"),
        (120, "quiet at first"),
        (120, "at once"),
        (180, "quiet at first"),
        (180, "at once"),
    ]
