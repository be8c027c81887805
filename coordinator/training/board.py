"""TensorBoard events of a training, written while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

FOLDER = "tensorboard"
_KEYS = ("loss", "heldout_loss", "heldout_accuracy")


@final
class Board:
    """Writes each look at held-out examples once; a resumed training begins a new file with all of them."""

    def __init__(self, out: Path):
        self._folder = out / FOLDER
        self._writer: Any = None
        self._written = 0

    def follow(self, curve: Sequence[dict[str, Any]]) -> None:
        """Writes the looks that are not written yet."""
        if len(curve) == self._written:
            return
        if self._writer is None:
            self._writer = self._open()
        for row in curve[self._written :]:
            for key in _KEYS:
                self._writer.add_scalar(key, row[key], int(row["step"]))
        self._writer.flush()
        self._written = len(curve)

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        for old in self._folder.glob("events.*"):
            old.unlink()
        return SummaryWriter(str(self._folder))
