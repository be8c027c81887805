"""What may leave: for each kind of answer a list of names, shapes, types and ranges; nothing else passes.

The list follows from the release, the task and the device's own number, so that nothing in an answer is
checked against itself. What is said of an answer that does not pass quotes none of its names or values, for
these may be private. Limits: `docs/decisions/0029-egress-gate.md`.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from umbel.shared import errors
from umbel.shared.gain import MOST as MOST_GAIN
from umbel.shared.messages import EVALUATE, GAIN, SCHEMA, TRAIN, RoundTask, Scalar, Wire, l2_norm
from umbel.shared.norms import exceeds
from umbel.shared.release import Manifest
from umbel.shared.secure.messages import Block, Session

QUERY, ERROR = "query", "error"
REASON = "reason"

_NUMBER_BYTES = 8


@final
@dataclass(frozen=True, slots=True)
class Exactly:
    """One value and its type."""

    value: Scalar

    @property
    def most_bytes(self) -> int:
        """What it takes."""
        return scalar_bytes(self.value)

    def problem(self, value: object) -> str:
        """Returns what is wrong with a value, or nothing; the value is not quoted."""
        right = type(value) is type(self.value) and value == self.value
        return "" if right else "is not what the task and the release make it"


@final
@dataclass(frozen=True, slots=True)
class Within:
    """A number of a type, from `low` to `high`."""

    kind: type[int] | type[float]
    low: float
    high: float

    @property
    def most_bytes(self) -> int:
        """What it takes."""
        return _NUMBER_BYTES

    def problem(self, value: object) -> str:
        """Returns what is wrong with a value, or nothing; the value is not quoted."""
        if type(value) is not self.kind:
            return f"is of type {type(value).__name__}, expected {self.kind.__name__}"
        return (
            ""
            if self.low <= value <= self.high
            else f"is out of range, expected {self.low:g} to {self.high:g}"
        )


@final
@dataclass(frozen=True, slots=True)
class OneOf:
    """One of some words."""

    words: frozenset[str]

    @property
    def most_bytes(self) -> int:
        """What the longest takes."""
        return max(map(scalar_bytes, self.words))

    def problem(self, value: object) -> str:
        """Returns what is wrong with a value, or nothing; the value is not quoted."""
        return "" if isinstance(value, str) and value in self.words else "is none of the words on the list"


Rule: TypeAlias = Exactly | Within | OneOf


@final
@dataclass(frozen=True, slots=True)
class Judged:
    """An answer, looked at once.

    Attributes:
        size: Its bytes; see `wire_bytes`.
        norm: L2 norm of all tensors together; None if it has none, or they are no numbers.
        problems: All that keeps it from leaving, one line each.
    """

    size: int
    norm: float | None
    problems: list[str]


@final
@dataclass(frozen=True, slots=True)
class Allowed:
    """What may leave in one answer.

    Attributes:
        kind: "query", "query.gain", "train", "evaluate", "error", or a stage of a secure sum.
        scalars: key -> what its value may be; every key must be there, and no other.
        arrays: name -> shape of a float32 tensor; every one must be there, and no other.
        blocks: name -> type and shape of an array that is no tensor of numbers that mean something: keys,
            shares, masked changes; every one must be there. It has no norm.
        most_norm: Largest L2 norm of all tensors together.
        release: The release's id; empty where the answer does not depend on one.
        round: The task's round; None where there is no task.
    """

    kind: str
    scalars: Mapping[str, Rule]
    arrays: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    blocks: Mapping[str, Block] = field(default_factory=dict)
    most_norm: float = 0.0
    release: str = ""
    round: int | None = None

    @property
    def most_bytes(self) -> int:
        """The most bytes that such an answer has, names included."""
        numbers = sum(_text_bytes(key) + rule.most_bytes for key, rule in self.scalars.items())
        every = self._every_array().items()
        return numbers + sum(
            _text_bytes(name) + np.dtype(kind).itemsize * math.prod(shape) for name, (kind, shape) in every
        )

    def norm(self, wire: Wire) -> float | None:
        """Returns the L2 norm of an answer's tensors; None if it has none, or they are no numbers."""
        return finite_norm(wire) if wire.arrays and not self.blocks else None

    def problems(self, wire: Wire) -> list[str]:
        """Returns all that keeps an answer from leaving, one line each."""
        return self.judged(wire).problems

    def judged(self, wire: Wire) -> Judged:
        """Returns what is to be written down of an answer, and all that keeps it from leaving."""
        size, norm = wire_bytes(wire), self.norm(wire)
        found = [*self._scalar_problems(wire.config), *self._array_problems(wire.arrays)]
        if size > self.most_bytes:
            found.append(f"it has {size} bytes, at most {self.most_bytes} may leave")
        if norm is not None and exceeds(norm, self.most_norm):
            found.append(f"its norm is larger than {self.most_norm:.6g}")
        return Judged(size, norm, found)

    def _scalar_problems(self, config: Mapping[str, Any]) -> list[str]:
        more = len(set(config) - set(self.scalars))
        found = [f"it has {more} values that are not on the list"] if more else []
        for key, rule in self.scalars.items():
            problem = rule.problem(config[key]) if key in config else "is missing"
            found += [f"{key} {problem}"] if problem else []
        if self.kind == EVALUATE and not found and config["correct"] > config["total"]:
            found.append("correct is larger than total")
        return found

    def _array_problems(self, arrays: Mapping[str, npt.NDArray[Any]]) -> list[str]:
        every = self._every_array()
        more = len(set(arrays) - set(every))
        found = [f"it has {more} tensors that are not on the list"] if more else []
        for name, (kind, shape) in every.items():
            problem = _tensor_problem(arrays[name], kind, tuple(shape)) if name in arrays else "is missing"
            found += [f"{name} {problem}"] if problem else []
        return found

    def _every_array(self) -> dict[str, Block]:
        return {name: (np.float32, shape) for name, shape in self.arrays.items()} | dict(self.blocks)


def allowed_hello(client: int) -> Allowed:
    """Returns what may answer a query: the device's own number."""
    return Allowed(QUERY, {"schema": Exactly(SCHEMA), "client": Exactly(client)})


def allowed_gain(release_id: str) -> Allowed:
    """Returns what may answer a question for the gain: one whole number, which the device has noised."""
    scalars: dict[str, Rule] = {
        "schema": Exactly(SCHEMA),
        "release_id": Exactly(release_id),
        "noised": Within(int, -MOST_GAIN, MOST_GAIN),
    }
    return Allowed(GAIN, scalars, release=release_id)


def allowed_contribution(manifest: Manifest, task: RoundTask, most_norm: float = math.inf) -> Allowed:
    """Returns what may answer a training task.

    Args:
        manifest: Of the release that the device has.
        task: What was asked.
        most_norm: The owner's own bound on the norm; the task's clip holds as well.
    """
    scalars = _answer(manifest, task) | {"examples": Within(int, 1, task.settings.example_cap)}
    if task.settings.tell_within:
        scalars |= {"within": Within(bool, 0, 1)}
    bound = min(task.settings.clip, most_norm)
    return Allowed(
        TRAIN,
        scalars,
        manifest.trainables,
        most_norm=bound,
        release=manifest.release_id,
        round=task.round,
    )


def allowed_stage(stage: str, session: Session, blocks: Mapping[str, Block]) -> Allowed:
    """Returns what may answer a stage of a secure sum: arrays of these types and shapes, and no number."""
    scalars = {key: Exactly(value) for key, value in session.config(stage).items()}
    return Allowed(stage, scalars, blocks=blocks, release=session.release_id, round=session.round)


def allowed_evaluation(manifest: Manifest, task: RoundTask) -> Allowed:
    """Returns what may answer an evaluation task: two counts, the first not above the second."""
    scalars = _answer(manifest, task) | {"correct": Within(int, 0, 10**9), "total": Within(int, 1, 10**9)}
    return Allowed(EVALUATE, scalars, release=manifest.release_id, round=task.round)


def allowed_error() -> Allowed:
    """Returns what may leave of an error: its type, if that is umbel's or Python's own."""
    return Allowed(ERROR, {REASON: OneOf(_error_names())})


def of_error(error: Exception) -> Wire:
    """Returns the answer that tells an error's type; of one that is not on the list, that it was one."""
    name = type(error).__name__
    return Wire({}, {REASON: name if name in _error_names() else Exception.__name__})


@cache
def _error_names() -> frozenset[str]:
    known = [*vars(errors).values(), *vars(builtins).values()]
    return frozenset(
        kind.__name__ for kind in known if isinstance(kind, type) and issubclass(kind, Exception)
    )


def finite_norm(wire: Wire) -> float | None:
    """Returns the L2 norm of all tensors together; None if they are not all finite numbers."""
    if not all(array.dtype.kind in "fiu" for array in wire.arrays.values()):
        return None
    with np.errstate(over="ignore"):
        norm = l2_norm(wire.arrays.values())
    return norm if math.isfinite(norm) else None


def wire_bytes(wire: Wire) -> int:
    """Returns how many bytes an answer has: names in UTF-8, 8 a number, and every tensor's own.

    What a transport puts around them is not counted.
    """
    numbers = sum(_text_bytes(key) + scalar_bytes(value) for key, value in wire.config.items())
    return numbers + sum(_text_bytes(name) + array.nbytes for name, array in wire.arrays.items())


def scalar_bytes(value: object) -> int:
    """Returns how many bytes a value of an answer has; a transport also takes lists of them.

    Example:
        >>> scalar_bytes("abc"), scalar_bytes(7), scalar_bytes([7, "abc"])
        (3, 8, 11)
    """
    if isinstance(value, list):
        return sum(map(scalar_bytes, value))
    if isinstance(value, bytes):
        return len(value)
    return _text_bytes(value) if isinstance(value, str) else _NUMBER_BYTES


def _text_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _answer(manifest: Manifest, task: RoundTask) -> dict[str, Rule]:
    return {
        "schema": Exactly(SCHEMA),
        "release_id": Exactly(manifest.release_id),
        "round": Exactly(task.round),
        "seconds": Within(float, 0.0, 1e9),
    }


def _tensor_problem(array: npt.NDArray[Any], kind: type[np.generic], shape: tuple[int, ...]) -> str:
    if type(array) is not np.ndarray or array.dtype != kind:
        return f"is no tensor of {kind.__name__}"
    if array.shape != shape:
        return f"is not of shape {shape}"
    return "" if np.isfinite(array).all() else "holds values that are not finite"
