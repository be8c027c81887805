"""What a comparison has found: one cell per data set, seed and contestant, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError, model_validator

from umbel.coordinator.config import Strict
from umbel.shared.checks import parsed_json
from umbel.shared.errors import UmbelError
from umbel.shared.files import atomic_write
from umbel.simulations.comparison.config import NAME
from umbel.simulations.results import Machine

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Number = Annotated[float, Field(ge=0, le=1e9)]
_Bits = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$", max_length=200_000)]
Precision = Literal["bfloat16", "float32"]
"""Of matrix products."""

_K = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,6})$")]


@final
class ComparisonError(UmbelError):
    """A file of a comparison cannot be read."""


@final
class Measured(Strict):
    """One contestant at one k.

    Attributes:
        right: How many query examples of each person are predicted right; people in the cohort's order.
        asked: How many there are.
        nll: Mean negative log-likelihood of each person's query examples, in nats.
        seconds: Seconds of learning and predicting per person.
        hits: Of each person one bit per query example, 1 where it is right, in hexadecimal; None in results
            from before this was kept.
    """

    right: tuple[_Count, ...]
    asked: tuple[_Count, ...]
    nll: tuple[_Number, ...]
    seconds: _Number
    hits: tuple[_Bits, ...] | None = None

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.hits is not None:
            pairs = zip(self.right, self.asked, strict=False)
            expected = [(right, 2 * -(-asked // 8)) for right, asked in pairs]
            if [(int(bits or "0", 16).bit_count(), len(bits)) for bits in self.hits] != expected:
                raise ValueError("hits are not the bits of what is right")
        return self


@final
class Seen(Strict):
    """Held-out examples of seen people, under the private tensors that training learned for them.

    Attributes:
        right: How many are predicted right.
        asked: How many there are.
    """

    right: _Count
    asked: _Count


@final
class Cell(Strict):
    """One contestant on one data set under one seed.

    Attributes:
        settings: Hash of all in the configuration that the figures depend on.
        identity: Hash of all that the figures depend on: settings, precision, weights and examples.
        examples: Hash of the weights and examples: the same for all cells of a data set and seed.
        precision: Of its matrix products: what the machine that measured it has units for.
        users: A hash of each person's id, in the order of the figures: who is whom under another seed.
        group: "rival" learns without umbel; "method" is one of umbel's, "combination" several.
        people: New people measured (tasks, where profiles are tasks), the same for all contestants.
        learned: Whether anything was learned for a person; if not, `k` holds "0" alone.
        private_bytes: What one person's device keeps.
        private_numbers: How many numbers are learned for one person.
        shared_numbers: How many numbers were trained for everyone beyond the generic model.
        chosen: The options chosen on calibration people.
        k: Count of own examples -> figures.
        best: Accuracy of the best possible answers for each person, where it is known.
        best_generic: The same for answers that do not depend on the person.
        train_seconds: Training of the shared part.
        choose_seconds: Choosing options.
        seen: What seen people get, whose private tensors were trained with everything else: a ceiling.
    """

    schema_: Literal["umbel.cell/1"] = Field(default="umbel.cell/1", alias="schema")
    settings: str
    identity: str
    examples: str
    precision: Precision
    users: tuple[str, ...]
    data: str = Field(pattern=NAME)
    seed: int
    contestant: str = Field(pattern=NAME)
    title: str
    group: Literal["rival", "method", "combination"]
    labels: _Count
    people: _Count
    learned: bool
    private_bytes: _Count
    private_numbers: _Count
    shared_numbers: _Count
    chosen: dict[str, float]
    k: dict[_K, Measured] = Field(min_length=1)
    best: tuple[_Share, ...] | None = None
    best_generic: tuple[_Share, ...] | None = None
    train_seconds: _Number
    choose_seconds: _Number
    seen: Seen | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        wrong = [
            f"k = {k}: not {self.people} people, or more is right than was asked"
            for k, row in self.k.items()
            if not len(row.right) == len(row.asked) == len(row.nll) == self.people
            or any(right > asked for right, asked in zip(row.right, row.asked, strict=True))
        ]
        if len(set(self.users)) != self.people or len(self.users) != self.people:
            wrong.append(f"users: not {self.people} different ones")
        known = [0 if given is None else len(given) for given in (self.best, self.best_generic)]
        if known[0] != known[1] or known[0] > self.people or (self.best is not None and not self.best):
            wrong.append(f"best and best_generic: of {known[0]} and {known[1]} of {self.people} people")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


@final
class Comparison(Strict):
    """All cells, with the configuration and the machine."""

    schema_: Literal["umbel.comparison/1"] = Field(default="umbel.comparison/1", alias="schema")
    config: dict[str, object]
    machine: Machine
    cells: tuple[Cell, ...]


class _AskedData(BaseModel):
    """What a page reads of a data set's section."""

    k: tuple[_Count, ...] = ()


class _AskedContestant(BaseModel):
    """What a page reads of a contestant's section."""

    title: str = ""
    data: tuple[str, ...] = ()
    methods: dict[str, dict[str, object]] = {}


class _Asked(BaseModel):
    """What a page reads of a configuration, which may be that of an older version."""

    seeds: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    data: dict[str, _AskedData] = {}
    contestants: dict[str, _AskedContestant] = {}


def write_cell(path: Path, cell: Cell) -> None:
    """Writes one cell."""
    atomic_write(path, _text(cell).encode())


def read_cell(path: Path) -> Cell:
    """Reads one cell.

    Raises:
        ComparisonError: The file is not one.
    """
    try:
        return Cell.model_validate(parsed_json(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        raise ComparisonError(f"{path} is not a cell of a comparison", _problems(error)) from error


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Writes all cells as one file, in the order given."""
    atomic_write(path, _text(comparison).encode())


def read_comparison(path: Path) -> Comparison:
    """Reads the file of a comparison.

    Raises:
        ComparisonError: The file is not one.
    """
    try:
        row = parsed_json(path.read_bytes())
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair cannot be written on a page
        found = Comparison.model_validate(row)
        _Asked.model_validate_json(json.dumps(found.config), strict=True)
        return found
    except (OSError, ValueError, ValidationError) as error:
        raise ComparisonError(f"{path} is not a comparison", _problems(error)) from error


def cell_name(data: str, seed: int, contestant: str) -> str:
    """Returns a cell's file name."""
    return f"{data}.{seed}.{contestant}.json"


def hit_bits(bits: str, count: int) -> npt.NDArray[np.bool_]:
    """Returns which of a person's `count` query examples are right, from `Measured.hits`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=count).astype(np.bool_)


def _problems(error: Exception) -> list[str]:
    if not isinstance(error, ValidationError):
        return [type(error).__name__]
    rows = error.errors(include_url=False, include_input=False, include_context=False)
    return [f"{'.'.join(map(str, row['loc'])) or 'as a whole'}: {row['msg']}" for row in rows]


def _text(model: Strict) -> str:
    return json.dumps(model.model_dump(mode="json", by_alias=True), indent=1) + "\n"


__all__: Sequence[str] = (
    "Cell",
    "Comparison",
    "ComparisonError",
    "Measured",
    "Precision",
    "Seen",
    "cell_name",
    "hit_bits",
    "read_cell",
    "read_comparison",
    "write_cell",
    "write_comparison",
)
