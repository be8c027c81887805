"""What a comparison has found: one cell per data set, seed and contestant, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, final

from pydantic import Field, ValidationError

from umbel.coordinator.config import Strict
from umbel.shared.checks import parsed_json
from umbel.shared.errors import UmbelError
from umbel.shared.files import atomic_write
from umbel.simulations.results import Machine

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$"  # a cell's file is named by them


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
    """

    right: tuple[int, ...]
    asked: tuple[int, ...]
    nll: tuple[float, ...]
    seconds: float = Field(ge=0)


@final
class Cell(Strict):
    """One contestant on one data set under one seed.

    Attributes:
        settings: Hash of all in the configuration that the figures depend on.
        identity: Hash of the settings and of the weights and examples that the figures depend on.
        examples: Hash of those weights and examples: the same for all cells of a data set and seed.
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
    """

    schema_: Literal["umbel.cell/1"] = Field(default="umbel.cell/1", alias="schema")
    settings: str
    identity: str
    examples: str
    users: tuple[str, ...]
    data: str = Field(pattern=_NAME)
    seed: int
    contestant: str = Field(pattern=_NAME)
    title: str
    group: Literal["rival", "method", "combination"]
    labels: int
    people: int
    learned: bool
    private_bytes: int
    private_numbers: int
    shared_numbers: int
    chosen: dict[str, float]
    k: dict[str, Measured]
    best: tuple[float, ...] | None = None
    best_generic: tuple[float, ...] | None = None
    train_seconds: float
    choose_seconds: float


@final
class Comparison(Strict):
    """All cells, with the configuration and the machine."""

    schema_: Literal["umbel.comparison/1"] = Field(default="umbel.comparison/1", alias="schema")
    config: dict[str, object]
    machine: Machine
    cells: tuple[Cell, ...]


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
        raise ComparisonError(f"{path} is not a cell of a comparison", [type(error).__name__]) from error


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Writes all cells as one file, in the order given."""
    atomic_write(path, _text(comparison).encode())


def read_comparison(path: Path) -> Comparison:
    """Reads the file of a comparison.

    Raises:
        ComparisonError: The file is not one.
    """
    try:
        return Comparison.model_validate(parsed_json(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise ComparisonError(f"{path} is not a comparison", [type(error).__name__]) from error


def cell_name(data: str, seed: int, contestant: str) -> str:
    """Returns a cell's file name."""
    return f"{data}-{seed}-{contestant}.json"


def _text(model: Strict) -> str:
    return json.dumps(model.model_dump(mode="json", by_alias=True), indent=1) + "\n"


__all__: Sequence[str] = (
    "Cell",
    "Comparison",
    "ComparisonError",
    "Measured",
    "cell_name",
    "read_cell",
    "read_comparison",
    "write_cell",
    "write_comparison",
)
