"""What came out, as JSON: every person's figures, every look on the way, and what the rounds sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, final

import numpy as np
from pydantic import Field, ValidationError

from umbel.coordinator.config import Strict
from umbel.shared.checks import parsed_json
from umbel.shared.errors import UmbelError
from umbel.shared.files import atomic_write
from umbel.simulations.against_central.panel import Measured
from umbel.simulations.results import Machine

SCHEMA: Literal["umbel.against-central/1"] = "umbel.against-central/1"
_Count = Annotated[int, Field(ge=0, le=2**53)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Number = Annotated[float, Field(ge=0, le=1e12)]
_DIGITS = 6
Part = TypeVar("Part", bound=Strict)


@final
class ResultError(UmbelError):
    """A file cannot be read as a result of this kind."""


@final
class Look(Strict):
    """One look on the way.

    Attributes:
        at: Steps or rounds so far; 0: the start.
        nll: Mean over the validation people; by it the best look is chosen.
        validation: Their mean share of right personal answers.
        unseen: That of the new people; nothing is chosen by it.
    """

    at: _Count
    nll: _Number
    validation: _Share
    unseen: _Share


@final
class Tried(Strict):
    """One set of options of a side: its looks, and how long it took."""

    options: dict[str, bool | int | float | str]
    looks: tuple[Look, ...]
    seconds: _Number

    def best(self) -> Look:
        """Returns the look with the least nll."""
        return min(self.looks, key=lambda look: look.nll)


@final
class Scores(Strict):
    """What each new person's questions were answered with, people in the seed's order."""

    generic: tuple[_Share, ...]
    personal: tuple[_Share, ...]
    nll: tuple[_Number, ...]

    @classmethod
    def of(cls, measured: Measured) -> Scores:
        """Rounds what was measured, so that memory and file hold the same numbers."""
        rows = (measured.generic, measured.personal, measured.nll)
        generic, personal, nll = (tuple(np.round(row, _DIGITS).tolist()) for row in rows)
        return cls(generic=generic, personal=personal, nll=nll)


@final
class Traffic(Strict):
    """What rounds sent, per device and round, and what they took.

    Attributes:
        rounds: How many.
        devices: Devices per round whose change was used, the mean.
        failures: Tasks without a usable answer.
        bytes_up: Serialized bytes of a device's answers.
        bytes_down: Serialized bytes of what a device was asked.
        seconds: Wall-clock per round, all devices one after the other.
    """

    rounds: _Count
    devices: _Number
    failures: _Count
    bytes_up: _Number
    bytes_down: _Number
    seconds: _Number


@final
class Secure(Strict):
    """The first rounds run again with secure sums.

    Attributes:
        traffic: What they sent.
        change: L2 norm of how far these rounds moved the shared tensors.
        difference: L2 norm of how far off they end from rounds without secure sums.
    """

    traffic: Traffic
    change: _Number
    difference: _Number


@final
class Seed(Strict):
    """Everything under one split of the people.

    Attributes:
        seed: Which.
        public: How many people the first release was trained on.
        devices: How many people have devices.
        validation: How many people options were chosen by.
        public_examples: Examples of the public people.
        device_examples: Examples on all devices.
        people: The new people's ids.
        asked: How many questions each of them has.
        shared_numbers: How many shared numbers are trained.
        profile_bytes: What a profile takes.
        start: The new people under the release that both sides begin with.
        central: Under the release after central training.
        federated: Under the release after the rounds.
        central_tried: What was tried of central training.
        federated_tried: What was tried of rounds.
        traffic: Of the rounds that were chosen.
        secure: None if it was not asked for.
    """

    seed: int
    public: _Count
    devices: _Count
    validation: _Count
    public_examples: _Count
    device_examples: _Count
    people: tuple[str, ...]
    asked: tuple[_Count, ...]
    shared_numbers: _Count
    profile_bytes: _Count
    start: Scores
    central: Scores
    federated: Scores
    central_tried: tuple[Tried, ...]
    federated_tried: tuple[Tried, ...]
    traffic: Traffic
    secure: Secure | None = None


@final
class AgainstCentral(Strict):
    """The whole result."""

    schema_: Literal["umbel.against-central/1"] = Field(SCHEMA, alias="schema")
    config: dict[str, Any]
    machine: dict[str, Any]
    seeds: tuple[Seed, ...] = Field(min_length=1)


def chosen(tried: tuple[Tried, ...]) -> int:
    """Returns which of what was tried has the look with the least nll."""
    return min(range(len(tried)), key=lambda number: tried[number].best().nll)


def rendered(result: Strict) -> str:
    """Returns a result as JSON."""
    return json.dumps(result.model_dump(mode="json", by_alias=True), ensure_ascii=False) + "\n"


def write(path: Path, result: Strict) -> None:
    """Writes a result, or a part of one."""
    atomic_write(path, rendered(result).encode())


def read(kind: type[Part], path: Path) -> Part:
    """Reads a result, or a part of one.

    Raises:
        ResultError: The file is not one.
    """
    try:
        return kind.model_validate(parsed_json(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise ResultError(f"{path} is not a result of rounds against central training") from error


def machine_row(machine: Machine) -> dict[str, Any]:
    """Returns where it ran, as JSON."""
    from dataclasses import asdict

    return asdict(machine)
