"""Tensors that a release holds as a seed: how the manifest describes them, and how a device rebuilds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from umbel.shared.bank import GENERATOR, RandomTensor
from umbel.shared.checks import count_problems, has_controls, is_sha256, shown
from umbel.shared.errors import ReleaseError
from umbel.shared.files import sha256_bytes
from umbel.shared.profile import FloatArray

MAX_VALUES = 1 << 28
"""Values of all rebuilt tensors of a release together: 1 GiB of float32, beyond BERT-large's bank of the
paper's size, and little enough that a hostile manifest cannot fill the memory."""
_MAX_TENSORS = 4096
_MAX_DIMENSIONS = 8
_MAX_TEXT = 200
_MAX_DEVIATION = 1e6
_KEYS = {"generator", "seed", "part", "shape", "deviation", "sha256"}


@final
@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A tensor that is in no blob.

    Attributes:
        source: What it is rebuilt from.
        sha256: Of its bytes: little-endian float32, the last axis running fastest.
    """

    source: RandomTensor
    sha256: str

    def as_json(self) -> dict[str, Any]:
        """Returns the description as the manifest holds it."""
        return {
            "generator": GENERATOR,
            "seed": self.source.seed,
            "part": self.source.part,
            "shape": list(self.source.shape),
            "deviation": self.source.deviation,
            "sha256": self.sha256,
        }

    def values(self) -> FloatArray:
        """Rebuilds the tensor: (*shape) float32.

        Raises:
            ReleaseError: What came out is not what was published.
        """
        values = self.source.values()
        found = digest(values)
        if found != self.sha256:
            problem = f"sha256 is {found[:12]}..., expected {self.sha256[:12]}..."
            raise ReleaseError("a tensor that was rebuilt from its seed is another one", [problem])
        return values


def described(source: RandomTensor) -> Rebuilt:
    """Returns the description of a tensor that devices shall rebuild; makes it once, for its hash."""
    return Rebuilt(source, digest(source.values()))


def digest(values: FloatArray) -> str:
    """Returns the sha256 of a tensor's bytes on any machine."""
    return sha256_bytes(np.ascontiguousarray(values, "<f4").tobytes())


def read_rebuilt(rows: object) -> dict[str, Rebuilt]:
    """Reads the descriptions back from a manifest; nothing about `rows` is taken on trust.

    Raises:
        ReleaseError: They are malformed, of an unknown generator, or too large; all problems are listed.
    """
    if not isinstance(rows, dict) or not 1 <= len(rows) <= _MAX_TENSORS:
        expected = f"expected an object of 1 to {_MAX_TENSORS} tensors, or no such key"
        raise ReleaseError("the rebuilt tensors are malformed", [expected])
    problems: list[str] = []
    found: dict[str, Rebuilt] = {}
    for name, row in rows.items():
        wrong = [] if _is_text(name) else ["its name is not a short text"]
        wrong += _row_problems(row)
        problems += [f"'{shown(name)}': {problem}" for problem in wrong]
        if not wrong:
            source = RandomTensor(row["seed"], row["part"], tuple(row["shape"]), row["deviation"])
            found[name] = Rebuilt(source, row["sha256"])
    if sum(math.prod(tensor.source.shape) for tensor in found.values()) > MAX_VALUES:
        problems.append(f"they have more than {MAX_VALUES:,} values")
    if problems:
        raise ReleaseError("the rebuilt tensors are malformed", problems)
    return found


def _row_problems(row: object) -> list[str]:
    if not isinstance(row, dict) or set(row) != _KEYS:
        return [f"expected an object with {', '.join(sorted(_KEYS))}"]
    if row["generator"] != GENERATOR:
        return [f"generator is {shown(row['generator'])}, this umbel has '{GENERATOR}'"]
    problems = count_problems("seed", row["seed"], 0, 2**63 - 1)
    problems += [] if _is_text(row["part"]) else ["part is not a short text"]
    problems += _shape_problems(row["shape"])
    if not _is_deviation(row["deviation"]):
        problems.append(f"deviation is not a number above 0 and at most {_MAX_DEVIATION:g}")
    problems += [] if is_sha256(row["sha256"]) else ["sha256 is not 64 lower-case hex digits"]
    return problems


def _shape_problems(shape: Any) -> list[str]:
    if not isinstance(shape, list) or not 1 <= len(shape) <= _MAX_DIMENSIONS:
        return [f"shape is not a list of 1 to {_MAX_DIMENSIONS} sizes"]
    if not all(type(size) is int and 1 <= size <= MAX_VALUES for size in shape):
        return [f"a size of its shape is not a whole number from 1 to {MAX_VALUES:,}"]
    return []


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or has_controls(value):
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)  # half a surrogate pair


def _is_deviation(value: object) -> bool:
    return type(value) in (int, float) and 0 < value <= _MAX_DEVIATION  # type: ignore[operator]


def rebuild_all(rebuilt: Mapping[str, Rebuilt]) -> tuple[dict[str, FloatArray], list[str]]:
    """Returns every tensor that could be rebuilt, by name, and a line for each that is another one."""
    found: dict[str, FloatArray] = {}
    problems = []
    for name, tensor in rebuilt.items():
        try:
            found[name] = tensor.values()
        except ReleaseError as error:
            problems += [f"'{name}', rebuilt from its seed: {problem}" for problem in error.problems]
    return found, problems
