"""What devices tell of their owners' gain with a release: how many told it, and the mean; no number of one.

Each number is noised by its device (`shared/gain.py`), and counted once for each device and release. Numbers
are added to what is kept only `LEAST` or more at a time: then no difference between two copies of the file
is one device's number. Until then their sum is in memory alone, and is asked for anew the next time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, final

from umbel.shared.checks import count_problems, parsed_json
from umbel.shared.errors import ConfigError
from umbel.shared.files import atomic_write
from umbel.shared.gain import MOST, STEPS, noise_variance

FILE: Final = "gain.json"
LEAST: Final = 5
"""Of fewer numbers nothing is kept and no mean is told."""

_SCHEMA: Final = "umbel.gain/1"


@final
@dataclass(frozen=True, slots=True)
class GainFigures:
    """What the numbers come to.

    Attributes:
        reports: How many devices told one.
        mean: Their mean: an estimate of the mean gain that leans to no side.
        error: Its standard error.
    """

    reports: int
    mean: float
    error: float

    def words(self) -> str:
        """Returns it as a line."""
        return (
            f"Gain: {self.mean:+.3f}, give or take {self.error:.3f} (one standard error), as "
            f"{self.reports:,} devices told it, each with noise of its own."
        )


@final
@dataclass(slots=True)
class Sums:
    """Sums of numbers in steps of the grid, and who told them.

    Attributes:
        reported: The devices' numbers.
        total: Sum of what they told.
        squares: Sum of its squares.
    """

    reported: set[int]
    total: int = 0
    squares: int = 0

    def add(self, client: int, noised: int) -> None:
        """Counts a device."""
        self.reported.add(client)
        self.total += noised
        self.squares += noised**2

    def join(self, other: Sums) -> None:
        """Counts all of another's, who are others."""
        self.reported |= other.reported
        self.total += other.total
        self.squares += other.squares

    def figures(self) -> GainFigures | None:
        """Returns the mean and its standard error; None of fewer than `LEAST`.

        The variance of one number is that of the noise, which is known, or that of the numbers, if larger.
        """
        count = len(self.reported)
        if count < LEAST:
            return None
        spread = (count * self.squares - self.total**2) / (count * (count - 1))
        error = math.sqrt(max(spread, noise_variance()) / count)
        return GainFigures(count, self.total / count / STEPS, error / STEPS)


@final
class Gains:
    """What is kept of a release's gain, in the out folder of its rounds."""

    def __init__(self, folder: Path, release_id: str):
        """Reads what is kept.

        Raises:
            ConfigError: It is damaged, or of another release.
        """
        self._path, self._release_id = folder / FILE, release_id
        self._kept = _read(self._path, release_id)
        self._new = Sums(set())

    def wants(self, client: int) -> bool:
        """Says whether a device has told nothing yet."""
        return client not in self._kept.reported and client not in self._new.reported

    def add(self, client: int, noised: int) -> None:
        """Counts what a device tells, once."""
        if self.wants(client):
            self._new.add(client, noised)

    def keep(self) -> GainFigures | None:
        """Keeps what is new, if it is of enough devices; returns what all come to then, else None.

        Raises:
            ConfigError: The folder cannot be written.
        """
        if len(self._new.reported) < LEAST:
            return None
        self._kept.join(self._new)
        self._new = Sums(set())
        row = {"schema": _SCHEMA, "release": self._release_id, **asdict(self._kept)}
        row["reported"] = sorted(self._kept.reported)
        try:
            atomic_write(self._path, json.dumps(row).encode() + b"\n")
        except OSError as error:
            problem = f"{self._path}: {error.strerror or type(error).__name__}"
            raise ConfigError("the gain cannot be kept", [problem], "Make the folder writable.") from None
        return self._kept.figures()


def kept_gain(folder: Path) -> dict[str, Any] | None:
    """Returns what an out folder says of its release's gain; None if too few devices have told theirs.

    Raises:
        ConfigError: It is damaged.
    """
    figures = _read(folder / FILE, None).figures()
    return None if figures is None else asdict(figures)


def _read(path: Path, release_id: str | None) -> Sums:
    if not path.is_file():
        return Sums(set())
    try:
        row = parsed_json(path.read_bytes())
        problems, found = _problems(row, release_id), Sums(set(row["reported"]), row["total"], row["squares"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems, found = [type(error).__name__], Sums(set())
    if problems:
        hint = "Restore it, or remove it: devices are asked again then."
        raise ConfigError(f"{path} is no record of gains", problems, hint)
    return found


def _problems(row: Mapping[str, Any], release_id: str | None) -> list[str]:
    most = len(row["reported"]) * MOST
    found = [line for own in row["reported"] for line in count_problems("a device", own, 0, 2**63 - 1)]
    found += count_problems("total", row["total"], -most, most)
    found += count_problems("squares", row["squares"], 0, most * MOST)
    found += [] if row["schema"] == _SCHEMA else ["it is of another version"]
    return found + ([] if release_id in (None, row["release"]) else ["it is of another release"])
