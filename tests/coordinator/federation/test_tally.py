"""What a round's record keeps of what went wrong, whatever devices send."""

import stat
from pathlib import Path

import pytest

from umbel.coordinator.federation.journal import BEGUN, Begun, Journal
from umbel.coordinator.federation.presence import first_line
from umbel.coordinator.federation.settings import RoundSettings
from umbel.coordinator.federation.tally import Tally


def test_of_very_many_notes_the_first_are_kept_and_the_rest_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tally = Tally()
    for number in range(5000):
        tally.note(f"device {number}: {'x' * 300}")
    notes = tally.record(1, 0.5, None, None).notes
    assert (len(notes), len(caplog.records)) == (101, 100)
    assert notes[-1] == "... and 4900 more"
    few = Tally()
    few.note("one")
    assert few.record(1, 0.5, None, None).notes == ("one",)


@pytest.mark.parametrize("reason", ["\x1b[2J\x1b]0;owned\x07", "a\rb", "\u202egnp.exe", "\x9b31m", "\u2028x"])
def test_what_a_device_says_does_not_steer_a_terminal(reason: str) -> None:
    line = first_line(f"Error {reason}")
    assert line.startswith("Error ") or line in ("Error", "a")
    assert not set(line) & set("\x1b\x07\r\n\x9b\u202e\u2028")


def test_who_was_sampled_is_for_the_operator_alone(tmp_path: Path) -> None:
    Journal(tmp_path, "r", 9, RoundSettings()).begin(Begun(1, (3, 4)))
    assert stat.S_IMODE((tmp_path / BEGUN).stat().st_mode) == 0o600
