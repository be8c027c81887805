"""States of what is done a graph run at a time: parts under names, put one into another, and as bytes."""

from __future__ import annotations

import numpy as np

from umbel.device_client.learning import State


def put(state: State, name: str, inner: State) -> None:
    """Puts the parts of another state into this one, under a name."""
    state.update({f"{name}/{part}": arrays for part, arrays in inner.items()})


def taken(state: State, name: str) -> State:
    """Returns the parts that `put` has put under a name; none if there are none."""
    begin = f"{name}/"
    return {part[len(begin) :]: arrays for part, arrays in state.items() if part.startswith(begin)}


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """Returns the arrays of one part as bytes, exactly."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(values) for name, values in arrays.items()})


def unpacked(data: bytes) -> dict[str, np.ndarray]:
    """Returns what `packed` was given.

    Raises:
        SafetensorError: It is something else.
    """
    from safetensors.numpy import load

    return load(data)
