"""A profile: the private tensors of one user for one release, and how they become bytes and back."""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import numpy as np
import numpy.typing as npt

from umbel.shared.errors import ProfileError

FloatArray = npt.NDArray[np.float32]

_STORAGE: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_TOP = re.compile(r"top:([1-9][0-9]{0,5})(?:@(0|0\.[0-9]{0,5}[1-9]))?")  # one spelling of each Z
_KINDS = f"{', '.join(_STORAGE)}, top:K or top:K@Z"
MAGIC = b"UMBP"
_VERSION = 1
# Far beyond any profile, and little enough that a hostile manifest cannot fill the memory.
_MAX_VALUES = 1 << 24
_MAX_DIMENSIONS = 8
_MAX_NAME = 200
_RELEASE_ID = re.compile("[0-9a-f]{64}")
_RELEARN = "Learn a new one with: umbel device learn."
_HEADER = struct.Struct("<4sHH32s")  # magic, version, flags, release id

MAX_FILE_BYTES = _HEADER.size + 4 * _MAX_VALUES
"""No packed profile is longer."""


@final
@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One private tensor.

    Attributes:
        name: Full name, such as "plora.user".
        shape: Shape for one user.
        storage: How it is kept: "float16", "float32", or a bit per value: "top:K", which is 1 for the K
            largest of each row (the last axis), or "top:K@Z", for which values nearer to 0 than Z are 0 and
            equal ones are chosen together; see `stored`. Z is a decimal of at most six places, 0 <= Z < 1.
            In computations it is always float32; bits are 0.0 and 1.0.
    """

    name: str
    shape: tuple[int, ...]
    storage: str = "float16"

    def __post_init__(self) -> None:
        problems = []
        if not _is_storage(self.storage):
            problems.append(f"storage is '{self.storage}', expected one of {_KINDS}")
        elif self.top and not (self.shape and self.top < self.shape[-1]):
            problems.append(f"storage is '{self.storage}', but shape {self.shape} has no longer rows")
        if any(size < 1 for size in self.shape):
            problems.append(f"shape {self.shape} has a size below 1")
        if problems:
            raise ProfileError(f"private tensor '{self.name}' cannot be described", problems)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def top(self) -> int:
        """How many values of a row are kept as ones; 0 where values are kept as numbers."""
        return _top(self.storage)[0]

    @property
    def dead_zone(self) -> float | None:
        """Z of "top:K@Z"; None under every other storage."""
        return _top(self.storage)[1]

    @property
    def packed_bytes(self) -> int:
        """Bytes it takes in a packed profile."""
        return (self.size + 7) // 8 if self.top else self.size * _STORAGE[self.storage].itemsize

    def stored(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns the values of one user as they are kept: (*shape), of the storage's type.

        With "top:K": 1 for the K largest values of a row, of equal ones the first, and 0 for the others. A
        row of equal values says nothing: it keeps zeros.

        With "top:K@Z": values between -Z and Z count as 0, and 1 stands for every value that is not below the
        K-th largest then: K ones or more. A row of which all would be chosen says nothing: it keeps zeros.
        """
        own = values.reshape(self.shape)
        if not self.top:
            with np.errstate(over="ignore"):
                return np.asarray(own.astype(_STORAGE[self.storage]))
        if self.dead_zone is not None:
            return self._chosen(own, self.dead_zone)
        order = np.argsort(-own, axis=-1, kind="stable")[..., : self.top]
        bits = np.zeros(self.shape, np.uint8)
        np.put_along_axis(bits, order, 1, axis=-1)
        bits[(own == own[..., :1]).all(-1)] = 0
        return bits

    def _chosen(self, own: npt.NDArray[Any], dead_zone: float) -> npt.NDArray[Any]:
        """Returns the bits of "top:K@Z"; it compares in float32, as the graphs do."""
        with np.errstate(over="ignore"):
            clear = own.astype(np.float32)
        clear[np.abs(clear) < np.float32(dead_zone)] = 0
        least = np.sort(clear, axis=-1)[..., -self.top, None]
        bits = (clear >= least).astype(np.uint8)
        bits[bits.all(-1)] = 0
        return bits

    def to_bytes(self, values: npt.NDArray[Any]) -> bytes:
        """Returns the values of one user as `packed_bytes` bytes; bits are packed most significant first."""
        stored = self.stored(values)
        return np.packbits(stored).tobytes() if self.top else stored.tobytes()

    def from_bytes(self, data: bytes) -> FloatArray:
        """Returns what `to_bytes` kept: (1, *shape) float32."""
        if self.top:
            raw = np.unpackbits(np.frombuffer(data, np.uint8), count=self.size)
        else:
            raw = np.frombuffer(data, _STORAGE[self.storage], self.size)
        return raw.astype(np.float32).reshape(1, *self.shape)


@final
@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """The private tensors of a release, in the order in which they are packed."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        counts = Counter(tensor.name for tensor in self.tensors)
        doubled = sorted(name for name, count in counts.items() if count > 1)
        if doubled:
            raise ProfileError(
                "private tensors must have different names", [f"more than once: {name}" for name in doubled]
            )

    @property
    def packed_bytes(self) -> int:
        """Bytes of a packed profile without its header: known from the spec alone."""
        return sum(tensor.packed_bytes for tensor in self.tensors)

    @property
    def file_bytes(self) -> int:
        """Bytes of a packed profile with its header."""
        return _HEADER.size + self.packed_bytes

    def zeros(self, users: int = 1) -> dict[str, FloatArray]:
        """Returns the profile of `users` people about whom nothing is known: name -> (users, *shape)."""
        return {tensor.name: np.zeros((users, *tensor.shape), np.float32) for tensor in self.tensors}

    def rounded(self, profile: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Returns everyone's private tensors (users, *shape) as their storage holds them."""
        specs = {tensor.name: tensor for tensor in self.tensors}
        return {
            name: np.stack([specs[name].stored(own) for own in values]).astype(np.float32)
            for name, values in profile.items()
        }

    def as_json(self) -> list[dict[str, Any]]:
        """Returns the spec as the manifest holds it."""
        return [{"name": t.name, "shape": list(t.shape), "storage": t.storage} for t in self.tensors]

    @classmethod
    def from_json(cls, rows: object) -> ProfileSpec:
        """Reads the spec back from a manifest; nothing about `rows` is taken on trust.

        Raises:
            ProfileError: It is not a list of tensor specs; all problems are listed.
        """
        problems = [] if isinstance(rows, list) else [f"it is a {type(rows).__name__}, expected a list"]
        tensors = []
        for index, row in enumerate(rows if isinstance(rows, list) else ()):
            found = _row_problems(row)
            problems += [f"tensor {index}: {problem}" for problem in found]
            if not found:
                tensors.append(TensorSpec(row["name"], tuple(row["shape"]), row["storage"]))
        if sum(tensor.size for tensor in tensors) > _MAX_VALUES:
            problems.append(f"it has more than {_MAX_VALUES:,} values")
        if problems:
            raise ProfileError("the profile spec is malformed", problems)
        return cls(tuple(tensors))


def top_storage(kept: int, dead_zone: float = 0.0) -> str:
    """Returns the storage that keeps a bit per value: "top:K", or "top:K@Z" where there is a dead zone.

    Args:
        kept: K.
        dead_zone: Z, a decimal of at most six places.

    Raises:
        ProfileError: `dead_zone` is not such a number from 0 to below 1.
    """
    places = f"{dead_zone:.6f}".rstrip("0").rstrip(".")
    if not (0 <= dead_zone < 1 and float(places) == dead_zone):
        problem = f"it is {dead_zone}, expected a decimal of at most six places from 0 to below 1"
        raise ProfileError("the dead zone cannot be written into a storage", [problem])
    return f"top:{kept}@{places}" if dead_zone else f"top:{kept}"


def _is_storage(storage: str) -> bool:
    return storage in _STORAGE or _TOP.fullmatch(storage) is not None


@lru_cache(maxsize=64)
def _top(storage: str) -> tuple[int, float | None]:
    """Returns K and Z of a storage that keeps bits; 0 and None of another one."""
    found = _TOP.fullmatch(storage)
    if found is None:
        return 0, None
    return int(found[1]), None if found[2] is None else float(found[2])


def _row_problems(row: object) -> list[str]:
    """Returns what keeps a row of a manifest from being a TensorSpec."""
    if not isinstance(row, dict) or set(row) != {"name", "shape", "storage"}:
        return ["expected an object with name, shape and storage"]
    name, shape, storage = row["name"], row["shape"], row["storage"]
    problems = []
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        problems.append(f"name must be text of 1 to {_MAX_NAME} characters")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        problems.append(f"shape must be a list of at most {_MAX_DIMENSIONS} sizes")
    elif not all(type(size) is int and 1 <= size <= _MAX_VALUES for size in shape):
        problems.append(f"each size of its shape must be a whole number from 1 to {_MAX_VALUES:,}")
    if not isinstance(storage, str) or not _is_storage(storage):
        problems.append(f"storage must be one of {_KINDS}")
    elif not problems and _top(storage)[0] and not (shape and _top(storage)[0] < shape[-1]):
        problems.append("storage top:K needs rows longer than K")
    return problems


def pack_profile(spec: ProfileSpec, profile: Mapping[str, npt.NDArray[Any]], release_id: str) -> bytes:
    """Packs one user's private tensors.

    Args:
        spec: The tensors of the release.
        profile: name -> (1, *shape) or (*shape) finite values.
        release_id: 64 hex digits of the release that the profile belongs to.

    Returns:
        Header and values, `spec.file_bytes` long.

    Raises:
        ProfileError: Tensors are missing, unknown, of another shape, or not finite once stored; or the
            release id is none.
    """
    problems = [f"unknown tensor: {name}" for name in sorted(set(profile) - {t.name for t in spec.tensors})]
    if not _RELEASE_ID.fullmatch(release_id):
        problems.append("the release id is not 64 lower-case hex digits")
    parts: list[bytes] = []
    for tensor in spec.tensors:
        values = profile.get(tensor.name)
        if values is None:
            problems.append(f"missing tensor: {tensor.name}")
            continue
        if values.size != tensor.size or values.shape not in (tensor.shape, (1, *tensor.shape)):
            problems.append(f"{tensor.name}: shape is {values.shape}, expected {tensor.shape}")
            continue
        if not (np.isfinite(values).all() and np.isfinite(tensor.stored(values)).all()):
            problems.append(f"{tensor.name}: holds values that are not finite as {tensor.storage}")
        parts.append(tensor.to_bytes(values))
    if problems:
        raise ProfileError("the profile cannot be packed", problems)
    return _HEADER.pack(MAGIC, _VERSION, 0, bytes.fromhex(release_id)) + b"".join(parts)


def unpack_profile(spec: ProfileSpec, data: bytes, release_id: str) -> dict[str, FloatArray]:
    """Returns name -> (1, *shape) float32 of a packed profile.

    Raises:
        ProfileError: The bytes are not a profile, of another version, of another release, of the wrong
            length, or hold values that are not finite.
    """
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        problem = (
            f"it has {len(data)} bytes, and its header alone has {_HEADER.size}"
            if len(data) < _HEADER.size
            else f"it does not begin with {MAGIC.decode()}"
        )
        raise ProfileError("this is not an umbel profile", [problem], _RELEARN)
    _, version, flags, owner = _HEADER.unpack_from(data)
    problems = []
    if flags:
        problems.append(f"flags are {flags:#06x}, expected none")
    if version != _VERSION:
        problems.append(f"format version is {version}, expected {_VERSION}")
    if owner.hex() != release_id:
        problems.append(f"it belongs to release {owner.hex()[:12]}, not to {release_id[:12]}")
    elif len(data) != spec.file_bytes:
        problems.append(f"it has {len(data)} bytes, expected {spec.file_bytes}")
    if problems:
        raise ProfileError("the profile does not fit this release", problems, _RELEARN)
    return _values(spec, data)


def _values(spec: ProfileSpec, data: bytes) -> dict[str, FloatArray]:
    profile: dict[str, FloatArray] = {}
    broken: list[str] = []
    start = _HEADER.size
    for tensor in spec.tensors:
        part = data[start : start + tensor.packed_bytes]
        profile[tensor.name] = tensor.from_bytes(part)
        broken += _damage(tensor, profile[tensor.name], part)
        start += tensor.packed_bytes
    if broken:
        raise ProfileError("the profile is damaged", broken, _RELEARN)
    return profile


def _damage(tensor: TensorSpec, values: FloatArray, part: bytes) -> list[str]:
    if tensor.top:
        whole = tensor.to_bytes(values) == part
        ones = str(tensor.top)
        if tensor.dead_zone is not None:
            ones += f" to {tensor.shape[-1] - 1}"
        return [] if whole else [f"{tensor.name}: rows that have neither {ones} ones nor none"]
    return [] if np.isfinite(values).all() else [f"{tensor.name}: values that are not finite"]
