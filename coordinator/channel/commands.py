"""`umbel coordinator channel`: releases that devices fetch and trust."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from umbel.coordinator.channel.channel import Channel

app = typer.Typer(
    no_args_is_help=True,
    help="A channel: a folder of signed releases that any host of static files can serve, and that devices "
    "trust by a key that they know from the beginning (The Update Framework).",
)

Folder = Annotated[Path, typer.Argument(metavar="CHANNEL", help="The channel's folder.")]
KeyFolder = Annotated[
    Path, typer.Option("--keys", "-k", help="Folder of the private keys. Keep it out of what is served.")
]
OfflineFolder = Annotated[
    Path | None,
    typer.Option("--offline", help="Folder of the keys of root and targets, if they lie elsewhere."),
]
_Sealed = Annotated[
    bool, typer.Option("--sealed", help="Seal new keys by a passphrase (UMBEL_CHANNEL_PASSPHRASE, or asked).")
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]
_SECRET = "UMBEL_CHANNEL_PASSPHRASE"


@app.command()
def init(
    folder: Folder,
    keys: KeyFolder,
    offline: OfflineFolder = None,
    sealed: _Sealed = False,
    as_json: _Json = False,
) -> None:
    """Begin a channel, and make its four keys.

    Devices are told its root file, or the pin that this prints: whoever has one of them cannot be given
    anybody else's releases. The keys of root and targets are needed seldom: keep them offline.

    For instance: umbel coordinator channel init channel --keys keys --offline /media/stick/keys
    """
    channel = _opened(folder, keys, offline, sealed)
    channel.create()
    found = channel.status()
    words = (
        f"The channel is in {folder}, its private keys in {keys}"
        + (f" and {offline}" if offline else "")
        + f".\nPin: {found['pin']}\n"
        f"Add a release: umbel coordinator channel add {folder} RELEASE --keys {keys}"
    )
    _tell(found, words, as_json)


@app.command()
def add(
    folder: Folder,
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="The release's folder.")],
    keys: KeyFolder,
    offline: OfflineFolder = None,
    as_json: _Json = False,
) -> None:
    """Make a release the one that devices fetch; blobs that are there already are kept.

    It needs the keys of targets, snapshot and timestamp. Upload what is new afterwards,
    metadata/timestamp.json last.

    For instance: umbel coordinator channel add channel release --keys keys
    """
    from umbel.shared.release import read_release

    read = read_release(release)
    channel = _opened(folder, keys, offline)
    new = channel.add(read)
    found = channel.status() | {"new": new}
    words = f"Devices of {folder} fetch release {read.release_id[:12]} from now on."
    _tell(found, words if new else f"Release {read.release_id[:12]} is the current one already.", as_json)


@app.command()
def refresh(folder: Folder, keys: KeyFolder, offline: OfflineFolder = None, as_json: _Json = False) -> None:
    """Say anew that the channel is up to date, before devices stop believing it.

    Run it every week, also when there is no new release. It needs the keys of snapshot and timestamp; with
    those of root and targets it renews these, too, when half of their year is over.

    For instance: umbel coordinator channel refresh channel --keys keys
    """
    channel = _opened(folder, keys, offline)
    renewed = channel.refresh()
    found = channel.status() | {"renewed": renewed}
    _tell(found, f"Made anew: {', '.join(renewed)}.\n{_roles(found)}", as_json)


@app.command()
def rotate(
    folder: Folder,
    role: Annotated[str, typer.Option(help="Whose key: root, targets, snapshot or timestamp.")],
    keys: KeyFolder,
    offline: OfflineFolder = None,
    sealed: _Sealed = False,
    as_json: _Json = False,
) -> None:
    """Give a role a new key; devices stop believing the old one when they next look.

    It needs the key of root, and those of the roles after the one that changes. A key that is lost, other
    than that of root, need not be there.

    For instance: umbel coordinator channel rotate channel --role timestamp --keys keys
    """
    channel = _opened(folder, keys, offline, sealed)
    place = channel.rotate(role)
    found = channel.status() | {"role": role, "key": str(place)}
    words = f"The new key of {role} is {place}. The old one no longer counts: erase it once this is served."
    words += f"\nThe pin is {found['pin']} now; the one from before still works, too."
    _tell(found, words, as_json)


@app.command()
def status(folder: Folder, as_json: _Json = False) -> None:
    """Say which release is the current one, and until when devices believe what is there.

    For instance: umbel coordinator channel status channel
    """
    from umbel.coordinator.channel.channel import Channel
    from umbel.coordinator.channel.keys import Keys

    found = Channel(folder, Keys(folder, folder, asked)).status()
    words = f"Release: {found['release'] or 'none yet'}\nPin:     {found['pin']}\n{_roles(found)}"
    _tell(found, words, as_json)


def ready(folder: Path | None, keys: Path | None, offline: Path | None) -> Channel | None:
    """Returns a channel to which a release can be added, before the long work of making one; None without.

    Raises:
        ConfigError: Keys are missing, or do not open.
        ReleaseError: The channel is damaged.
    """
    from umbel.shared.errors import ConfigError

    if folder is None and keys is None and offline is None:
        return None
    if folder is None or keys is None:
        raise ConfigError(
            "a channel and the folder of its keys go together", hint="Give --channel and --keys."
        )
    channel = _opened(folder, keys, offline)
    channel.check()
    return channel


def asked(role: str, *, twice: bool = False) -> str:
    """Returns the passphrase of a role's key: from the environment, or asked for at the terminal.

    Raises:
        ConfigError: There is nobody to ask.
    """
    from umbel.shared.errors import ConfigError

    found = os.environ.get(_SECRET)
    if found:
        return found
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError(
            f"the passphrase of the key of {role} is needed, and there is nobody to ask",
            hint=f"Run it in a terminal, or set {_SECRET}.",
        )
    return str(
        typer.prompt(f"Passphrase of the key of {role}", hide_input=True, confirmation_prompt=twice, err=True)
    )


def _opened(folder: Path, keys: Path, offline: Path | None, sealed: bool = False) -> Channel:
    from umbel.coordinator.channel.channel import Channel
    from umbel.coordinator.channel.keys import Keys

    ask: Callable[[str], str] = (lambda role: asked(role, twice=True)) if sealed else asked
    sealed = sealed or bool(os.environ.get(_SECRET))
    return Channel(folder, Keys(keys, offline or keys, cache(ask), sealed))


def _roles(found: dict[str, Any]) -> str:
    """Returns a line for each role: until when it is believed, and what to do about it."""
    lines = []
    for role, own in found["roles"].items():
        words = f"{role:<10} version {own['version']}, believed until {own['expires'][:10]}"
        if own["expired"]:
            words += ": devices take nothing more. Run: umbel coordinator channel refresh"
        elif own["due"]:
            words += ": refresh it soon" + (", with its key" if role in ("root", "targets") else "")
        lines.append(words)
    return "\n".join(lines)


def _tell(found: dict[str, Any], words: str, as_json: bool) -> None:
    typer.echo(json.dumps(found, indent=2) if as_json else words)
