"""Checkpoints: all that a training needs to go on to the same bits, in safetensors and JSON, never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from umbel.shared.checks import parsed_json
from umbel.shared.errors import TrainingError
from umbel.shared.files import atomic_write

CHECKPOINT = "checkpoint.safetensors"
_META = "umbel"
_DIGEST = "sha256"


@final
@dataclass(slots=True)
class Progress:
    """How far a training has come.

    Attributes:
        step: Steps done.
        epoch: Current epoch, from 0.
        batch: Next batch of the epoch.
        best_step: Step of the best held-out loss so far.
        best_loss: That loss; None before the first look.
        stale: Looks since then.
        stopped: Why training ended; empty while it goes on.
        curve: Every look: step, training loss, held-out loss and accuracy.
        recent: Training losses since the last look.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_step: int = 0
    best_loss: float | None = None
    stale: int = 0
    stopped: str = ""
    curve: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    fingerprint: str,
    progress: Progress,
    weights: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Writes a checkpoint over the last one, atomically, readable by its owner only.

    It is the only file of a training that holds the seen users' private tensors.

    Args:
        folder: The training's folder.
        fingerprint: Hash of configuration and examples; another training does not resume from it.
        progress: How far it has come.
        weights: Current values of everything trained.
        best: Their values at the best look.
        optimizer: Its moments are kept.
    """
    tensors = {f"weight/{name}": value for name, value in weights.items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{key}": value for key, value in state.items()}
    contiguous = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    state = json.dumps({"fingerprint": fingerprint, "progress": asdict(progress)})
    meta = {_META: state, _DIGEST: _digest(state, contiguous)}
    atomic_write(folder / CHECKPOINT, save(contiguous, meta), mode=0o600)


def load_checkpoint(folder: Path, fingerprint: str) -> tuple[Progress, dict[str, Tensor]] | None:
    """Returns the progress and the tensors of a checkpoint, or None where there is none.

    Raises:
        TrainingError: It is damaged, or belongs to another configuration or other examples.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        state, tensors = _read(path)
        meta = parsed_json(state)
        progress, owner = Progress(**meta["progress"]), str(meta["fingerprint"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise TrainingError(
            f"the checkpoint {path} is damaged",
            [type(error).__name__],
            "Pass --restart to train from the start, or choose another --out.",
        ) from error
    if owner != fingerprint:
        raise TrainingError(
            f"{folder} holds a training of another configuration or of other examples",
            [f"its fingerprint is {owner[:12]}, this training's is {fingerprint[:12]}"],
            "Choose another --out, or pass --restart to begin again there.",
        )
    return progress, tensors


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Returns the JSON and the tensors of a checkpoint file whose digest is right."""
    data = path.read_bytes()
    tensors = load(data)
    header = parsed_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    state = str(header["__metadata__"][_META])
    if header["__metadata__"][_DIGEST] != _digest(state, tensors):
        raise ValueError("the digest differs")
    return state, tensors


def _digest(state: str, tensors: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of everything in a checkpoint: the format itself would not see a flipped bit."""
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"|{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def restore(
    tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Puts a checkpoint's values back in place and returns the best ones.

    Args:
        tensors: What `load_checkpoint` gave; its fingerprint says that names and shapes fit.
        weights: Written into.
        optimizer: Its moments are set.
    """
    with torch.no_grad():
        for name, value in weights.items():
            value.copy_(tensors[f"weight/{name}"])
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, number, key = name.split("/")
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return {name.removeprefix("best/"): value for name, value in tensors.items() if name.startswith("best/")}
