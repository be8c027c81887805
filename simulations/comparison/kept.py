"""Trained tensors that are kept in a place's folder, so that they need not be trained twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from umbel.shared.files import atomic_write


def keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors by name."""
    atomic_write(path, save({name: value.detach().contiguous().clone() for name, value in tensors.items()}))


def read_kept(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """Returns kept tensors, if there are some of exactly these names and shapes that hold numbers."""
    try:
        tensors = load(path.read_bytes()) if path.is_file() else {}
    except SafetensorError:
        return None
    fits = {name: tuple(value.shape) for name, value in tensors.items()} == dict(shapes)
    return tensors if fits and all(bool(torch.isfinite(t).all()) for t in tensors.values()) else None
