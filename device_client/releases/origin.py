"""Where a device's releases come from: a folder that its owner names, or a channel that it trusts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from umbel.device_client.releases.fetching import OnBytes, fetch
from umbel.device_client.releases.installed import install
from umbel.device_client.releases.sources import source_of
from umbel.device_client.releases.trust import Offer, Pin, look, pinned_root
from umbel.shared.channel import METADATA
from umbel.shared.errors import ReleaseError
from umbel.shared.files import sha256_bytes, sole_use
from umbel.shared.release import Release

RELEASES, TRUST = "releases", "trust"


@final
@dataclass(frozen=True, slots=True)
class Channel:
    """A channel and from which root on it is trusted.

    Attributes:
        source: Its folder or address.
        root: The root file that was pinned.
    """

    source: str
    root: bytes = field(repr=False)

    @property
    def pin(self) -> str:
        """The sha256 of the root file."""
        return sha256_bytes(self.root)

    def look(self, home: Path, source: str | None = None) -> Offer:
        """Asks for the current release.

        Args:
            home: The device's home, where it is kept what was seen.
            source: Another place of the same channel.

        One process at a time.

        Raises:
            ReleaseError: It is not to be believed, or has none.
            UnreachableError: It cannot be read.
        """
        return look(source_of(source or self.source), self.root, home / TRUST)

    def as_setting(self) -> dict[str, str]:
        """Returns what a store keeps of it."""
        return {"source": self.source, "root": self.root.decode()}

    @staticmethod
    def from_setting(row: Any) -> Channel | None:
        """Returns what a store has kept; None if that is nothing."""
        return None if row is None else Channel(row["source"], row["root"].encode())


def is_channel(place: str) -> bool:
    """Says whether a place is a channel: an address, or a folder with metadata."""
    return "://" in place or (Path(place) / METADATA).is_dir()


def trusted(place: str, pin: Pin | None) -> Channel:
    """Returns a channel that is trusted from now on.

    Raises:
        ReleaseError: Nobody says whom to trust, or the channel is another one.
        UnreachableError: It cannot be read.
    """
    where = place if "://" in place else str(Path(place).resolve())
    root = pinned_root(source_of(where), pin or Pin())
    return Channel(where, root)


def begin(
    place: str, pin: Pin | None, home: Path, on_bytes: OnBytes | None
) -> tuple[Release, Channel | None]:
    """Takes over the release with which a device begins.

    Args:
        place: A release's folder, or a channel's folder or address.
        pin: Whom to trust; for a channel alone.
        home: The device's home.
        on_bytes: Hears how far fetching is.

    Returns:
        The release, and the channel if there is one.

    Raises:
        BusyError: Another process does so, too.
        OSError: The home cannot be written.
        ReleaseError: It cannot be used, or is not to be believed.
        UnreachableError: The channel cannot be read.
    """
    if not is_channel(place):
        if pin is not None:
            raise ReleaseError(
                f"{place} is no channel", hint="For a release's folder leave --root and --pin out."
            )
        return install(Path(place), home / RELEASES), None
    channel = trusted(place, pin)
    with sole_use(home / TRUST):
        offer = channel.look(home)
    return fetch(source_of(channel.source), offer, home / RELEASES, on_bytes=on_bytes), channel
