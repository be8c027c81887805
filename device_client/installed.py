"""Releases that a device has taken over into its home, checked, so that nothing changes under it."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from umbel.shared.errors import ReleaseError
from umbel.shared.files import atomic_write, sha256_file, sole_use, sync_folder
from umbel.shared.release import MANIFEST, Release, is_release_id, read_release

_UNFINISHED = ".unfinished-"


def install(source: Path, folder: Path) -> Release:
    """Copies a release into `folder`/<its id>, whole or not at all; blobs that are there are linked.

    Args:
        source: A release's folder.
        folder: Where a device keeps its releases.

    Raises:
        BusyError: Another process takes a release over.
        ReleaseError: It is no release, or is damaged; all problems are listed.
        OSError: The disk is full, or the folder cannot be written; then nothing of it is left.
    """
    release = read_release(source)
    place = folder / release.release_id
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with sole_use(folder):
        _clear(folder)
        if place.is_dir():
            with suppress(ReleaseError):
                return read_release(place)
            os.rename(place, Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder)) / "damaged")
        fresh = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
        try:
            for name in release.manifest.blobs:
                _take(release.blob_path(name), fresh / "blobs", folder)
            atomic_write(fresh / MANIFEST, (source / MANIFEST).read_bytes())
            taken = read_release(fresh)
            sync_folder(fresh / "blobs")
            os.rename(fresh, place)
            sync_folder(folder)
        finally:
            _clear(folder)
    return replace(taken, folder=place)


def installed(folder: Path, release: str) -> Release:
    """Reads a release that was taken over.

    Raises:
        ReleaseError: It is missing or damaged.
    """
    if not is_release_id(release) or not (folder / release).is_dir():
        raise ReleaseError(
            "the release that this device was enrolled with is missing",
            [f"expected it at {folder / release}"],
            "Copy it there again, or take the home from a backup.",
        )
    return read_release(folder / release)


def _take(blob: Path, blobs: Path, folder: Path) -> None:
    """Links the blob of another release that has it, checked, or copies it."""
    blobs.mkdir(exist_ok=True)
    for other in sorted(folder.glob(f"*/blobs/{blob.name}")):
        with suppress(OSError):
            if sha256_file(other) == blob.name:
                os.link(other, blobs / blob.name)
                return
    shutil.copyfile(blob, blobs / blob.name)
    with (blobs / blob.name).open("rb") as stream:
        os.fsync(stream.fileno())


def _clear(folder: Path) -> None:
    """Removes what an interrupted copy has left."""
    for unfinished in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)
