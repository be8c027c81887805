"""A profile: the private tensors of one user for one release, and how they become bytes and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from umbel.shared.errors import ProfileError

FloatArray = npt.NDArray[np.float32]

_STORAGE: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_MAGIC = b"UMBP"
_VERSION = 1
_HEADER = struct.Struct("<4sHH32s")  # magic, version, flags, release id


@final
@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One private tensor.

    Attributes:
        name: Full name, such as "plora.user".
        shape: Shape for one user.
        storage: "float16" or "float32": how it is kept; in computations it is always float32.
    """

    name: str
    shape: tuple[int, ...]
    storage: str = "float16"

    def __post_init__(self) -> None:
        problems = []
        if self.storage not in _STORAGE:
            problems.append(f"storage is '{self.storage}', expected one of {', '.join(_STORAGE)}")
        if any(size < 1 for size in self.shape):
            problems.append(f"shape {self.shape} has a size below 1")
        if problems:
            raise ProfileError(f"private tensor '{self.name}' cannot be described", problems)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def packed_bytes(self) -> int:
        """Bytes it takes in a packed profile."""
        return self.size * _STORAGE[self.storage].itemsize


@final
@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """The private tensors of a release, in the order in which they are packed."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ProfileError("private tensors must have different names", [f"twice: {name}" for name in doubled])

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

    def as_json(self) -> list[dict[str, Any]]:
        """Returns the spec as the manifest holds it."""
        return [{"name": t.name, "shape": list(t.shape), "storage": t.storage} for t in self.tensors]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any]]) -> ProfileSpec:
        """Reads the spec back from a manifest.

        Raises:
            ProfileError: A row is not a tensor spec.
        """
        try:
            return cls(tuple(TensorSpec(str(r["name"]), tuple(int(n) for n in r["shape"]), str(r["storage"])) for r in rows))
        except (KeyError, TypeError, ValueError) as error:
            raise ProfileError("the profile spec is malformed", [f"{type(error).__name__}: {error}"]) from error


def pack_profile(spec: ProfileSpec, profile: Mapping[str, npt.NDArray[Any]], release_id: str) -> bytes:
    """Packs one user's private tensors.

    Args:
        spec: The tensors of the release.
        profile: name -> (1, *shape) or (*shape) finite values.
        release_id: 64 hex digits of the release that the profile belongs to.

    Returns:
        Header and values, `spec.file_bytes` long.

    Raises:
        ProfileError: Tensors are missing, unknown, of another shape, or not finite once stored.
    """
    problems = [f"unknown tensor: {name}" for name in sorted(set(profile) - {t.name for t in spec.tensors})]
    parts: list[bytes] = []
    for tensor in spec.tensors:
        values = profile.get(tensor.name)
        if values is None:
            problems.append(f"missing tensor: {tensor.name}")
            continue
        if values.size != tensor.size or values.shape not in (tensor.shape, (1, *tensor.shape)):
            problems.append(f"{tensor.name}: shape is {values.shape}, expected {tensor.shape}")
            continue
        with np.errstate(over="ignore"):
            stored = values.astype(_STORAGE[tensor.storage])
        if not np.isfinite(stored).all():
            problems.append(f"{tensor.name}: holds values that are not finite as {tensor.storage}")
        parts.append(stored.tobytes())
    if problems:
        raise ProfileError("the profile cannot be packed", problems)
    return _HEADER.pack(_MAGIC, _VERSION, 0, bytes.fromhex(release_id)) + b"".join(parts)


def unpack_profile(spec: ProfileSpec, data: bytes, release_id: str) -> dict[str, FloatArray]:
    """Returns name -> (1, *shape) float32 of a packed profile.

    Raises:
        ProfileError: The bytes are not a profile, of another version, of another release, of the wrong length, or hold
            values that are not finite.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ProfileError("this is not an umbel profile", hint="Learn a new one with: umbel device learn.")
    _, version, _, owner = _HEADER.unpack_from(data)
    problems = []
    if version != _VERSION:
        problems.append(f"format version is {version}, expected {_VERSION}")
    if owner.hex() != release_id:
        problems.append(f"it belongs to release {owner.hex()[:12]}, not to {release_id[:12]}")
    elif len(data) != spec.file_bytes:
        problems.append(f"it has {len(data)} bytes, expected {spec.file_bytes}")
    if problems:
        raise ProfileError(
            "the profile does not fit this release", problems, "Learn a new one with: umbel device learn."
        )
    return _values(spec, data)


def _values(spec: ProfileSpec, data: bytes) -> dict[str, FloatArray]:
    profile: dict[str, FloatArray] = {}
    start = _HEADER.size
    for tensor in spec.tensors:
        raw = np.frombuffer(data, _STORAGE[tensor.storage], tensor.size, start)
        profile[tensor.name] = raw.astype(np.float32).reshape(1, *tensor.shape)
        start += tensor.packed_bytes
    broken = [name for name, values in profile.items() if not np.isfinite(values).all()]
    if broken:
        raise ProfileError("the profile is damaged", [f"{name}: values that are not finite" for name in broken])
    return profile
