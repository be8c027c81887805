"""What a curious coordinator does with what it has of a device: guesses at the owner's profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, npt.NDArray[Any]]


def private_direction(tensors: Tensors) -> npt.NDArray[np.float64]:
    """Guesses PLoRA's p_u (d_u,), up to its size and sign.

    The layer adds s B (A x + P p_u), so P's gradient is s B^T (sum of the gradients of the outputs) p_u^T:
    every row of it, of every layer and step, is a multiple of p_u.

    Args:
        tensors: Changes of matrices P (r, d_u); the other tensors are left alone.
    """
    rows = np.concatenate([value for name, value in sorted(tensors.items()) if name.endswith(".P")])
    return leading_row(rows)


def leading_row(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns the direction (d,) along which rows (n, d) are longest together."""
    found: npt.NDArray[np.float64] = np.linalg.svd(rows.astype(np.float64), full_matrices=False)[2][0]
    return found


def chosen_adapters(bank: npt.NDArray[Any], count: int | None = None) -> set[int]:
    """Guesses X-PEFT's mask of a layer: an adapter that was not chosen has no gradient.

    Args:
        bank: (N, ...), the change of a layer's adapters.
        count: How many to name, those that changed most; None: all that changed.
    """
    norms = np.sqrt(np.square(bank.reshape(len(bank), -1).astype(np.float64)).sum(1))
    if count is None:
        return set(np.flatnonzero(norms).tolist())
    return set(np.argsort(-norms)[:count].tolist())


def cosine(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Returns |cos| of the angle between two vectors."""
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    return float(abs(first.astype(np.float64).ravel() @ second.astype(np.float64).ravel()) / lengths)


def overlap(guessed: Sequence[int] | set[int], true: Sequence[int] | set[int]) -> float:
    """Returns which share of the true ones was guessed."""
    return len(set(guessed) & set(true)) / len(set(true))
