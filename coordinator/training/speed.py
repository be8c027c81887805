"""What keeps a GPU busy: a step that waits for no number, batches in pinned memory, compiled losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from umbel.shared.errors import TrainingError

_LOOK_EVERY = 25
"""Steps whose losses stay on a GPU before they are read: reading waits for all that was asked of it."""


@final
class Steps:
    """What steps tell of themselves: losses, and whether somebody has pressed Ctrl-C.

    On a processor each step is heard at once. On a GPU they are heard together, now and then: the numbers of
    a step that was not finite are found later, but before anything is kept of what followed it.
    """

    def __init__(self, on_gpu: bool, of: str = "", rates: str = "the learning rates"):
        """Begins.

        Args:
            on_gpu: Whether reading a number has to wait.
            of: Words behind a step's number, if a loss is not finite.
            rates: What to lower then.
        """
        self._every = _LOOK_EVERY if on_gpu else 1
        self._of, self._rates = of, rates
        self._told: list[tuple[int, Tensor]] = []
        self._heard: list[float] = []
        self._stop = False

    def took(self, step: int, told: Tensor) -> None:
        """Notes a step.

        Args:
            step: Its number.
            told: (3,) loss, nll, and above 0 if somebody wants the training to end.

        Raises:
            TrainingError: The loss of this step, or of an earlier one, is not finite.
        """
        self._told.append((step, told))
        if len(self._told) >= self._every:
            self._read()

    def heard(self, nll: list[float] | None = None, *, now: bool = False) -> bool:
        """Adds the nll of steps that were heard to a list; says whether training shall end.

        Args:
            nll: The list.
            now: Hear all steps.

        Raises:
            TrainingError: A loss is not finite.
        """
        if now:
            self._read()
        if nll is not None:
            nll += self._heard
        self._heard = []
        return self._stop

    def _read(self) -> None:
        if not self._told:
            return
        rows = torch.stack([told for _, told in self._told]).tolist()
        numbers, self._told = [number for number, _ in self._told], []
        for number, (loss, nll, stop) in zip(numbers, rows, strict=True):
            if not math.isfinite(loss):
                raise diverged(number, self._of, self._rates)
            self._heard.append(nll)
            self._stop = self._stop or stop > 0


def diverged(step: int, of: str = "", rates: str = "the learning rates") -> TrainingError:
    """Returns the error of a loss that is not finite."""
    return TrainingError(
        f"the loss is no longer finite at step {step}{of}", hint=f"Lower {rates} under [training]."
    )


def placed(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Returns an array as a tensor; on its way to a GPU nobody waits for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def compiled(
    function: Callable[..., Any], wanted: Literal["auto"] | bool, device: torch.device
) -> Callable[..., Any]:
    """Returns a function that torch.compile has made faster, where that is wanted.

    Args:
        function: Of tensors and modules.
        wanted: "auto" compiles on a GPU; a processor would need a compiler, and gains little.
        device: Where it runs.
    """
    if wanted is False or (wanted == "auto" and device.type != "cuda"):
        return function
    return torch.compile(function)


def fuse_attention(encoder: Any, device: torch.device) -> None:
    """Lets an encoder attend by one fused kernel where it is trained on a GPU; graphs need the plain one."""
    if device.type == "cuda":
        encoder.set_attn_implementation("sdpa")
