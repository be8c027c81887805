"""Which release a channel offers, and whether to believe it: The Update Framework, from a pinned root on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root
from tuf.api.serialization import DeserializationError
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from umbel.device_client.releases.sources import AbsentError, AbstractSource
from umbel.shared.channel import METADATA, TARGETS, root_name
from umbel.shared.checks import is_sha256, shown
from umbel.shared.errors import ReleaseError
from umbel.shared.files import plain_bytes, sha256_bytes
from umbel.shared.release import MANIFEST, MAX_MANIFEST_BYTES, Manifest, parse_manifest

_MOST_ROOTS = 256
_MAX_ROOT_BYTES = 512_000
_GOES_ON = "What this device has goes on working."


@final
@dataclass(frozen=True, slots=True)
class Pin:
    """How an owner says whom they trust: one of these.

    Attributes:
        root: A root file of the channel that they were given.
        sha256: The sha256 of one.
        first_use: Whether to trust whoever answers now; nobody then says that it is not somebody else.
    """

    root: Path | None = None
    sha256: str | None = None
    first_use: bool = False

    def __post_init__(self) -> None:
        if (self.root is not None) + (self.sha256 is not None) + self.first_use != 1:
            raise ReleaseError(
                "say whom to trust, in one way",
                hint="Give the channel's root file (--root) or its pin (--pin), which its publisher tells "
                "you by a way that you trust. --trust-on-first-use believes whoever answers now.",
            )
        if self.sha256 is not None and not is_sha256(self.sha256):
            raise ReleaseError("a pin is the sha256 of a root file", [f"found {shown(self.sha256)}"])


@final
@dataclass(frozen=True, slots=True)
class Offer:
    """The release that a channel offers, as is signed for.

    Attributes:
        release_id: Its id, the sha256 of its manifest.
        manifest: Its manifest.
    """

    release_id: str
    manifest: Manifest


def pinned_root(source: AbstractSource, pin: Pin) -> bytes:
    """Returns the root file from which on a channel is trusted.

    Raises:
        OSError: The file that was given cannot be read.
        ReleaseError: None of the channel's is the pinned one, or it is no root file.
        UnreachableError: The channel cannot be read.
    """
    found = plain_bytes(pin.root, _MAX_ROOT_BYTES) if pin.root is not None else None
    if found is None:
        number = 0
        for number, data in enumerate(_roots(source), 1):  # noqa: B007 - read below
            if pin.first_use or sha256_bytes(data) == pin.sha256:
                found = data  # on first use the newest
            if not pin.first_use and found is not None:
                break
        if not number:
            hint = "Look at the address, or the folder, again."
            raise ReleaseError("there is no channel there", [f"{METADATA}/{root_name(1)} is not found"], hint)
    if found is None:
        raise ReleaseError(
            "this channel is not the one that you trust", ["none of its root files has that pin"], _ASK
        )
    _check_root(found)
    return found


def look(source: AbstractSource, root: bytes, place: Path) -> Offer:
    """Asks a channel for its current release; everything is checked from the pinned root on.

    Args:
        source: The channel.
        root: The root file that was pinned.
        place: Where what was seen is kept, so that nothing older is believed later. One process at a time.

    Raises:
        ReleaseError: It is not to be believed, with what is wrong, or has no release.
        UnreachableError: The channel cannot be read.
    """
    (place / TARGETS).mkdir(parents=True, exist_ok=True)
    for left in place.glob("tmp*"):
        left.unlink()  # by an updater that was killed while it wrote
    try:
        updater = Updater(
            str(place), f"{METADATA}/", str(place / TARGETS), f"{TARGETS}/", _Fetcher(source), bootstrap=root
        )
        updater.refresh()
        target = updater.get_targetinfo(MANIFEST)
        if target is None:
            raise ReleaseError("the channel has no release yet", hint=_GOES_ON)
        if target.length > MAX_MANIFEST_BYTES:
            raise DownloadLengthMismatchError
        path = updater.find_cached_target(target) or updater.download_target(target)
    except (RepositoryError, DownloadError) as error:
        raise _told(error) from None
    return _offered(Path(path).read_bytes())


def _offered(data: bytes) -> Offer:
    """Reads a manifest that is signed for: what is not understood in it was not put there by a stranger."""
    try:
        return Offer(sha256_bytes(data), parse_manifest(data, "the channel's manifest"))
    except ReleaseError as error:
        hint = f"It may be for a newer umbel: install that, then update. {_GOES_ON}"
        raise ReleaseError(error.headline, error.problems, hint) from None


@final
class _Fetcher(FetcherInterface):
    """Gives The Update Framework what a source holds."""

    def __init__(self, source: AbstractSource):
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            return self._source.open(url)[1]
        except AbsentError as error:
            raise DownloadHTTPError(error.headline, 404) from error


def _roots(source: AbstractSource) -> Iterator[bytes]:
    for version in range(1, _MOST_ROOTS + 1):
        try:
            yield source.read(f"{METADATA}/{root_name(version)}", _MAX_ROOT_BYTES)
        except AbsentError:
            return


def _check_root(data: bytes) -> None:
    try:
        root = Metadata[Root].from_bytes(data)
        if root.signed.type != Root.type:
            raise RepositoryError
        root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
    except (RepositoryError, ValueError):
        raise ReleaseError("this is no root file of a channel", hint=_ASK) from None


def _told(error: Exception) -> ReleaseError:
    """Returns what a refusal means, and what to do."""
    if isinstance(error.__cause__, ReleaseError) and not isinstance(error, DownloadHTTPError):
        return error.__cause__
    for kind, words in _MEANINGS:
        if isinstance(error, kind):
            return ReleaseError(f"{words}: nothing was taken from it", [_words(error)], f"{_GOES_ON} {_ASK}")
    return ReleaseError("the channel is not to be believed", [_words(error)], f"{_GOES_ON} {_ASK}")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {shown(str(error))}" if str(error) else type(error).__name__


_ASK = "Ask its publisher, by a way that you trust."
_MEANINGS: tuple[tuple[type[Exception], str], ...] = (
    (
        ExpiredMetadataError,
        "the channel has not been refreshed in time, or somebody holds back what is newer",
    ),
    (BadVersionNumberError, "the channel offers something older than this device has seen (a rollback)"),
    (UnsignedMetadataError, "the channel is not signed by the keys that this device trusts"),
    (LengthOrHashMismatchError, "files of the channel do not belong together, or one was changed"),
    (DownloadLengthMismatchError, "a file of the channel is longer than it may be"),
    (DeserializationError, "the channel holds what is no metadata"),
    (DownloadHTTPError, "the channel is incomplete"),
)
