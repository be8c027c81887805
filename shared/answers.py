"""What a release says of the answers that people see: how near 8 bits come, and how sure they may sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, final

from umbel.shared.checks import count_problems, key_problems, number_problems, shown
from umbel.shared.errors import ReleaseError

_TEMPERATURES = (0.05, 20.0)
_MOST_TEXTS = 10**9


@final
@dataclass(frozen=True, slots=True)
class Int8:
    """How far the graphs in 8 bits are from those in float32, as their publisher measured it.

    Attributes:
        texts: How many texts.
        moved: Mean change of their probabilities, from 0 to 1 (total variation).
        changed: Share of them whose most likely label is another one.
        turned: How far the gradient by a profile turns, 1 - cosine, of the private tensor that turns most.
    """

    texts: int
    moved: float
    changed: float
    turned: float

    def as_json(self) -> dict[str, Any]:
        """Returns it as the manifest holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: object) -> Self:
        """Reads it back; nothing about `row` is taken on trust.

        Raises:
            ReleaseError: It is malformed: all problems are told.
        """
        found = _keys(cls, row, "int8")
        problems = count_problems("texts", found["texts"], 1, _MOST_TEXTS)
        for name in ("moved", "changed"):
            problems += number_problems(name, found[name], 0.0, 1.0)
        problems += number_problems("turned", found["turned"], 0.0, 2.0)
        if problems:
            raise ReleaseError("int8 is malformed", problems)
        return cls(**found)


@final
@dataclass(frozen=True, slots=True)
class Calibration:
    """Temperatures: what people see is softmax(logits / temperature), so that 0.8 means 8 of 10 are right.

    The most likely label stays the same.

    Attributes:
        generic: Of answers without a profile.
        personal: Of answers with one.
    """

    generic: float = 1.0
    personal: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """Returns it as the manifest holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: object) -> Self:
        """Reads it back; nothing about `row` is taken on trust.

        Raises:
            ReleaseError: It is malformed: all problems are told.
        """
        found = _keys(cls, row, "calibration")
        problems = [p for name in found for p in number_problems(name, found[name], *_TEMPERATURES)]
        if problems:
            raise ReleaseError("the calibration is malformed", problems)
        return cls(**found)


def _keys(kind: type[Any], row: object, what: str) -> Mapping[str, Any]:
    """Returns an object of exactly the keys of a dataclass."""
    names = {field.name for field in fields(kind)}
    if not isinstance(row, dict):
        raise ReleaseError(f"{what} is malformed", [f"found {shown(row)}, expected an object"])
    problems = key_problems(row, names)
    if problems:
        raise ReleaseError(f"{what} is malformed", problems)
    return row
