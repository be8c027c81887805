"""Fetching a release: only the blobs that are not there, from where it stopped, whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import final

from umbel.device_client.releases.installed import clear, linked, settle, whole
from umbel.device_client.releases.sources import AbstractSource, UnreachableError
from umbel.device_client.releases.trust import Offer
from umbel.shared.channel import BLOBS, TARGETS
from umbel.shared.errors import ReleaseError
from umbel.shared.files import sha256_file, sole_use
from umbel.shared.release import Blob, Release

_AREA = ".fetching"
_PART = ".part"
_SPARE_BYTES = 32 << 20
_TRIES = 4

OnBytes = Callable[[int, int], None]
"""Hears how many bytes are here, of how many."""


def fetch(
    source: AbstractSource,
    offer: Offer,
    folder: Path,
    *,
    on_bytes: OnBytes | None = None,
    pause_s: float = 1.0,
) -> Release:
    """Fetches what an offered release has that no other release here has, and takes it over.

    What was fetched when it stopped, for whatever reason, is gone on from.

    Args:
        source: The channel.
        offer: What it offers, as is signed for.
        folder: Where a device keeps its releases.
        on_bytes: Hears how far it is.
        pause_s: How long it waits before it asks a host again that stopped answering; then twice as long.

    Raises:
        BusyError: Another process takes a release over.
        OSError: The folder cannot be written.
        ReleaseError: There is no room, or a blob is not what is signed for.
        UnreachableError: The source stopped answering; what was fetched is kept.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with sole_use(folder):
        clear(folder)
        known = whole(folder, offer.release_id)
        if known is not None:
            return known
        blobs = folder / _AREA / BLOBS
        blobs.mkdir(parents=True, exist_ok=True)
        wanted = {blob.sha256: blob for blob in offer.manifest.blobs.values()}
        _drop_strangers(blobs, wanted)
        missing = [
            blob for name, blob in wanted.items() if not _has(blobs, blob) and not linked(name, blobs, folder)
        ]
        _check_room(folder, blobs, missing)
        _Fetching(source, blobs, missing, on_bytes, pause_s).run()
        return settle(folder / _AREA, offer.manifest.to_bytes(), folder)


def missing_bytes(offer: Offer, folder: Path) -> int:
    """Returns how many bytes of an offered release would have to be fetched, by the names of what is here."""
    wanted = {blob.sha256: blob.size_bytes for blob in offer.manifest.blobs.values()}
    here = {path.name for path in folder.glob("*/blobs/*")}
    return sum(size for name, size in wanted.items() if name not in here)


@final
class _Fetching:
    """The blobs that are missing, one after the other."""

    def __init__(
        self,
        source: AbstractSource,
        blobs: Path,
        missing: Sequence[Blob],
        on_bytes: OnBytes | None,
        pause_s: float,
    ):
        self._source, self._blobs, self._missing, self._pause_s = source, blobs, missing, pause_s
        self._on_bytes, self._done = on_bytes, 0
        self._total = sum(blob.size_bytes for blob in missing)

    def run(self) -> None:
        for blob in self._missing:
            self._fetch(blob)
            self._done += blob.size_bytes

    def _fetch(self, blob: Blob) -> None:
        """Fetches one blob; one that turns out wrong after it was gone on from is fetched once more."""
        part = self._blobs / f"{blob.sha256}{_PART}"
        for _ in range(2):
            went_on = self._fill(blob, part)
            if sha256_file(part) == blob.sha256:
                with part.open("rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(part, self._blobs / blob.sha256)
                return
            part.unlink()
            if not went_on:
                break
        raise ReleaseError(
            "a blob is not what the channel's manifest says, so it was thrown away",
            [f"expected sha256 {blob.sha256[:12]}..."],
            "What this device has goes on working. Tell the channel's publisher.",
        )

    def _fill(self, blob: Blob, part: Path) -> bool:
        """Fetches what a part lacks, asking again while it gets on; says whether a part was there before."""
        went_on, tries = part.is_file() and _size(part) > 0, 0
        while _size(part) != blob.size_bytes or not part.is_file():
            before = _size(part)
            try:
                self._append(blob, part)
            except UnreachableError as error:
                tries = 1 if _size(part) > before else tries + 1
                if tries >= _TRIES:
                    raise _stopped(error, self._done + _size(part), self._total) from None
                time.sleep(self._pause_s * 2 ** (tries - 1))
        return went_on

    def _append(self, blob: Blob, part: Path) -> None:
        start = _size(part)
        start, chunks = self._source.open(
            f"{TARGETS}/{BLOBS}/{blob.sha256}", start if start < blob.size_bytes else 0
        )
        with part.open("r+b" if part.is_file() else "wb") as stream:
            stream.truncate(start)
            stream.seek(start)
            for chunk in chunks:
                start += len(chunk)
                if start > blob.size_bytes:
                    stream.truncate(0)
                    raise ReleaseError(
                        "a blob is longer than the channel's manifest says",
                        [f"more than {blob.size_bytes:,} bytes"],
                        "What this device has goes on working. Tell the channel's publisher.",
                    )
                stream.write(chunk)
                if self._on_bytes is not None:
                    self._on_bytes(self._done + start, self._total)
        if start < blob.size_bytes:
            raise UnreachableError("the source stopped before the end of a blob")


def _stopped(error: UnreachableError, here: int, total: int) -> UnreachableError:
    kept = f"{here:,} of {total:,} bytes are here and kept: give the same command again to go on."
    return UnreachableError(error.headline, error.problems, kept)


def _drop_strangers(blobs: Path, wanted: dict[str, Blob]) -> None:
    """Removes what was begun of another release, and files that are not whole."""
    for path in blobs.iterdir():
        blob = wanted.get(path.name.removesuffix(_PART))
        whole_file = path.name.endswith(_PART) or (blob is not None and _size(path) == blob.size_bytes)
        if blob is None or not whole_file:
            path.unlink()


def _has(blobs: Path, blob: Blob) -> bool:
    path = blobs / blob.sha256
    if path.is_file() and sha256_file(path) != blob.sha256:
        path.unlink()
    return path.is_file()


def _check_room(folder: Path, blobs: Path, missing: Sequence[Blob]) -> None:
    here = sum(_size(blobs / f"{blob.sha256}{_PART}") for blob in missing)
    needed = sum(blob.size_bytes for blob in missing) - here
    free = shutil.disk_usage(folder).free
    if missing and free < needed + _SPARE_BYTES:
        raise ReleaseError(
            "there is no room for this release",
            [f"{needed:,} bytes are to be fetched, {free:,} are free at {folder}"],
            "Free some space and give the same command again. What this device has goes on working.",
        )


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
