"""Releases that a device has taken over into its home, checked, so that nothing changes under it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from umbel.shared.errors import ReleaseError
from umbel.shared.files import atomic_write, sha256_file, sole_use, sync_folder
from umbel.shared.release import MANIFEST, Release, is_release_id, read_release

_UNFINISHED = ".unfinished-"
_AGAIN = (
    "Fetch it again: umbel device update, where it is still the current one of the channel, or with "
    "--release FOLDER. Or take another one over: with --force."
)


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
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with sole_use(folder):
        clear(folder)
        known = whole(folder, release.release_id)
        if known is not None:
            return known
        fresh = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
        try:
            blobs = fresh / "blobs"
            blobs.mkdir()
            for name in release.manifest.blobs:
                _take(release.blob_path(name), blobs, folder)
            return settle(fresh, (source / MANIFEST).read_bytes(), folder)
        finally:
            clear(folder)


def whole(folder: Path, release: str) -> Release | None:
    """Returns a release that was taken over, checked; one that is damaged is put aside."""
    place = folder / release
    if not place.is_dir():
        return None
    with suppress(ReleaseError):
        return _checked(place)
    _put_aside(place, folder)
    return None


def settle(fresh: Path, manifest: bytes, folder: Path) -> Release:
    """Makes a folder that has all the blobs of a release that release, once every byte of it is checked.

    Raises:
        ReleaseError: A blob is missing or damaged.
        OSError: The folder cannot be written.
    """
    atomic_write(fresh / MANIFEST, manifest)
    taken = read_release(fresh)
    sync_folder(fresh / "blobs")
    place = folder / taken.release_id
    os.rename(fresh, place)
    sync_folder(folder)
    return replace(taken, folder=place)


def installed(folder: Path, release: str) -> Release:
    """Reads a release that was taken over.

    Raises:
        ReleaseError: It is missing or damaged, or its folder holds another one.
    """
    if not is_release_id(release) or not (folder / release).is_dir():
        raise ReleaseError(
            "the release that this device was enrolled with is missing",
            [f"expected it at {folder / release}"],
            _AGAIN,
        )
    return _checked(folder / release)


def linked(sha256: str, blobs: Path, folder: Path) -> bool:
    """Links a blob that another release has, once it is checked; says whether one has it."""
    for other in sorted(folder.glob(f"*/blobs/{sha256}")):
        with suppress(OSError):
            if other.parent != blobs and sha256_file(other) == sha256:
                os.link(other, blobs / sha256)
                return True
    return False


def keep_only(folder: Path, releases: Collection[str]) -> None:
    """Removes all releases but some; what is in use by another process stays until it ends.

    Raises:
        BusyError: Another process takes a release over.
        OSError: The folder cannot be written.
    """
    with sole_use(folder):
        for place in folder.iterdir():
            if is_release_id(place.name) and place.name not in releases:
                _put_aside(place, folder)
        clear(folder)


def clear(folder: Path) -> None:
    """Removes what an interrupted copy has left."""
    for unfinished in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def _checked(place: Path) -> Release:
    """Reads the release that a folder is named after; another one in its place is whole in itself, too."""
    try:
        found = read_release(place)
    except ReleaseError as error:
        raise ReleaseError(error.headline, error.problems, _AGAIN) from None
    if found.release_id != place.name:
        raise ReleaseError(
            "the folder of a release that this device took over holds another one",
            [f"found {found.release_id[:12]}... in {place}"],
            _AGAIN,
        )
    return found


def _take(blob: Path, blobs: Path, folder: Path) -> None:
    """Links the blob of another release that has it, checked, or copies it."""
    if linked(blob.name, blobs, folder):
        return
    shutil.copyfile(blob, blobs / blob.name)
    with (blobs / blob.name).open("rb") as stream:
        os.fsync(stream.fileno())


def _put_aside(place: Path, folder: Path) -> None:
    """Gives a folder a name under which it is no release, in one step."""
    os.rename(place, Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder)) / "aside")
