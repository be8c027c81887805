"""A release's weights, mapped into memory: the file itself stands behind them, not a copy of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from umbel.shared.errors import ReleaseError
from umbel.shared.profile import FloatArray
from umbel.shared.rebuilt import rebuild_all
from umbel.shared.release import BACKBONE_WEIGHTS, SHARED_WEIGHTS, Release
from umbel.shared.storage import unpacked

REPORT = "Its files are as they were published, so tell its publisher; another copy will not help."
_LENGTH = 8  # bytes in which a safetensors file says how long its header is
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}


def load_weights(release: Release) -> dict[str, FloatArray]:
    """Returns every shared tensor of a release by name, as graphs take them.

    Raises:
        ReleaseError: They do not fit the manifest, though their hashes are right; all problems are told.
    """
    from safetensors import SafetensorError

    weights: dict[str, FloatArray] = {}
    rebuilt = release.manifest.rebuilt
    problems = []
    for name in (BACKBONE_WEIGHTS, SHARED_WEIGHTS):
        try:
            found = mapped(release.blob_path(name))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            problems.append(f"{name} cannot be read ({type(error).__name__})")
            continue
        problems += [f"{name}: '{t}' is in both weights files" for t in found if t in weights]
        found, wrong = unpacked(found, release.manifest.storage)
        problems += [f"{name}: {problem}" for problem in wrong]
        problems += [
            f"{name}: '{t}' is {a.dtype}, not float32"
            for t, a in found.items()
            if a.dtype != "f4" and t not in release.manifest.storage
        ]
        weights |= found
    problems += [f"'{t}' is in a weights file and rebuilt from a seed" for t in rebuilt if t in weights]
    if not problems:
        made, problems = rebuild_all(rebuilt)
        weights |= made
    complete = not problems
    for name, shape in release.manifest.trainables.items():
        there = weights.get(name)
        if complete and (there is None or there.shape != shape):
            size = "nowhere" if there is None else f"of shape {there.shape}"
            problems.append(f"trainable '{name}' is {size} in the weights, expected shape {shape}")
    if problems:
        raise ReleaseError("the weights of the release do not fit its manifest", problems, REPORT)
    return weights


def placed_names(release: Release) -> frozenset[str]:
    """Returns the names of the tensors that graphs find themselves, in the encoder's blob beside them.

    There are none where the blob is a link to a file of another name, which graphs cannot find by its own.
    """
    blob = release.blob_path(BACKBONE_WEIGHTS)
    return frozenset(mapped(blob)) if blob.resolve().name == blob.name else frozenset()


def mapped(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Returns a safetensors file's tensors as read-only views of the file.

    Raises:
        KeyError: A tensor is of a type that no release holds.
        SafetensorError: The file is malformed.
        OSError: It cannot be read.
    """
    from safetensors import safe_open

    with safe_open(path, "numpy"):  # it checks the header: every tensor inside the file, none over another
        pass
    data = np.memmap(path, np.uint8, "r")
    start = _LENGTH + int.from_bytes(data[:_LENGTH].tobytes(), "little")
    header = json.loads(data[_LENGTH:start].tobytes())
    return {
        name: data[start + row["data_offsets"][0] : start + row["data_offsets"][1]]
        .view(_DTYPES[row["dtype"]])
        .reshape(row["shape"])
        for name, row in header.items()
        if name != "__metadata__"
    }
