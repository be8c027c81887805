"""What a benchmark finds: samples beside what they are compared with, and whether bounds hold."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, final

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from umbel.shared.checks import parsed_json
from umbel.shared.errors import UmbelError
from umbel.shared.files import atomic_write

RESULT = "result.json"
_config = ConfigDict(extra="forbid")


class BenchError(UmbelError):
    """A benchmark cannot be measured, or the two sides do not give the same answers."""


@final
@dataclass(frozen=True, slots=True, config=_config)
class Sample:
    """Repetitions of one figure."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(map(math.isfinite, self.values)):
            raise ValueError("a sample has numbers, and finite ones")

    @property
    def median(self) -> float:
        """The figure that is told."""
        return statistics.median(self.values)


@final
@dataclass(frozen=True, slots=True, kw_only=True, config=_config)
class Row:
    """One figure of umbel's beside what it is compared with.

    Attributes:
        part: What is measured, such as "learn, whole process".
        encoder: Which encoder; empty where there is none.
        setting: Sizes and the like, such as "16 examples x 64 tokens".
        threads: Threads of both sides; 0 where it does not matter.
        unit: "s" or "bytes".
        ours: umbel's samples.
        against: What it is compared with; empty where nothing is.
        theirs: Its samples.
        sense: "times": theirs / ours, how many times as fast; "share": ours / theirs.
        bound: What the ratio must be: at least this many times, at most this share; None: it is only told.
        users: People whose work a sample is; 0 where they do not count.
    """

    part: str
    encoder: str
    setting: str
    threads: int
    unit: Literal["s", "bytes"]
    ours: Sample
    against: str = ""
    theirs: Sample | None = None
    sense: Literal["times", "share"] = "times"
    bound: float | None = None
    users: int = 0

    @property
    def ratio(self) -> float | None:
        """The ratio of the medians; None where nothing is compared, or the one below is 0."""
        if self.theirs is None:
            return None
        ours, theirs = self.ours.median, self.theirs.median
        over, under = (theirs, ours) if self.sense == "times" else (ours, theirs)
        return over / under if under else None

    @property
    def holds(self) -> bool | None:
        """Whether the bound holds; None where there is none, or nothing was compared."""
        if self.ratio is None or self.bound is None:
            return None
        return self.ratio >= self.bound if self.sense == "times" else self.ratio <= self.bound


@final
@dataclass(frozen=True, slots=True, kw_only=True, config=_config)
class Measured:
    """The rows of one measurement, or of all, and how they came about.

    Attributes:
        command: "device", "serving", "simulation", "population" or "training".
        settings: What the figures depend on, besides the machine.
        machine: Where it ran.
        seconds: What measuring took.
        rows: What was found.
        notes: What a reader should know besides.
    """

    command: str
    settings: Mapping[str, str]
    machine: Mapping[str, str]
    seconds: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


_adapter: TypeAdapter[Measured] = TypeAdapter(Measured)


def rendered(found: Measured) -> str:
    """Returns it as JSON, each row with the ratio and whether its bound holds."""
    row = _adapter.dump_python(found, mode="json")
    for own, told in zip(found.rows, row["rows"], strict=True):
        told |= {"ratio": own.ratio, "holds": own.holds, "ours_median": own.ours.median}
    return json.dumps(row, indent=1)


def write_measured(path: Path, found: Measured) -> None:
    """Writes it as JSON, whole or not at all."""
    atomic_write(path, rendered(found).encode() + b"\n")


def read_measured(path: Path) -> Measured:
    """Reads what `write_measured` wrote.

    Raises:
        BenchError: The file is missing or is none.
    """
    try:
        row = parsed_json(path.read_bytes())
        for told in row["rows"]:
            for name in ("ratio", "holds", "ours_median"):
                told.pop(name, None)
        return _adapter.validate_python(row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise BenchError(
            f"{path} is no result of a benchmark",
            [type(error).__name__],
            "Make one with: umbel bench device, or umbel bench serving.",
        ) from None


def failing(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows whose bound does not hold."""
    return [row for row in rows if row.holds is False]
