"""Channels for tests: a publisher whose clock can be set, and releases that need no torch to be made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from umbel.coordinator.channel.channel import Channel
from umbel.coordinator.channel.keys import Keys
from umbel.shared.files import sha256_bytes
from umbel.shared.profile import ProfileSpec, TensorSpec
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Blob, Manifest, Release, write_release

BLOBS = (
    "predict.onnx",
    "learn.onnx",
    "contribute.onnx",
    "backbone.safetensors",
    "shared.safetensors",
    "tokenizer.json",
)


class Publisher:
    """A channel, its keys, and a clock that tests set."""

    def __init__(self, folder: Path, keys: Path, now: datetime | None = None):
        self.folder, self.now = folder, now or datetime.now(UTC)
        self.keys = Keys(keys / "online", keys / "offline", lambda role: "correct horse battery")
        self.channel = Channel(folder, self.keys, lambda: self.now)

    def later(self, **span: float) -> None:
        """Moves the clock."""
        self.now += timedelta(**span)


def plain_release(folder: Path, word: str, *, size: int = 1000) -> Release:
    """Writes a release whose blobs are nothing to run; all but one are the same in all such releases.

    Args:
        folder: Where it goes.
        word: What shared.safetensors holds; in other releases it is another one.
        size: Bytes of each blob.
    """
    blobs = {name: (name.encode() * size)[:size] for name in BLOBS}
    blobs["shared.safetensors"] = (word.encode() * size)[:size]
    manifest = Manifest(
        parent=None,
        task="classification",
        labels=("no", "yes"),
        backbone={"name": "tiny", "family": "bert", "sha256": "0" * 64},
        methods={"headbias": {}},
        max_tokens=16,
        profile=ProfileSpec((TensorSpec("bias", (2,), "float32"),)),
        recipe=LearningRecipe(steps=2),
        trainables={},
        parity={},
        blobs={name: Blob(sha256_bytes(data), len(data)) for name, data in blobs.items()},
    )
    return write_release(folder, manifest, blobs)
