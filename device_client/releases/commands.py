"""`umbel device update`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umbel.device_client.home_commands import FIRST_USE, HOME, PIN, ROOT, USUAL_PRECISION, Home, opened

if TYPE_CHECKING:
    from umbel.device_client.releases.updating import Updated

_Threads = Annotated[int, typer.Option(min=1, max=256, help="Threads.")]


def update(
    check: Annotated[
        bool, typer.Option("--check", help="Only look whether there is another release.")
    ] = False,
    release: Annotated[
        Path | None, typer.Option("--release", "-r", help="Folder of a release, in place of the channel.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="The trusted channel in another place, this time; with --pin or --root a new one."),
    ] = None,
    root: ROOT = None,
    pin: PIN = None,
    first_use: FIRST_USE = False,
    force: Annotated[
        bool, typer.Option("--force", help="Take it over even if it is not as good, or cannot be compared.")
    ] = False,
    back: Annotated[bool, typer.Option("--back", help="Go back to the release before.")] = False,
    home: Home = HOME,
    precision: USUAL_PRECISION = None,
    threads: _Threads = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")] = False,
) -> None:
    """Take a newer release over, if it is at least as good on your examples.

    It is fetched from the channel that your device trusts: only what changed, and from where it stopped. Your
    profile is learned anew for it, and both releases are tried on your examples, each held out once. The old
    one goes on until the new one has proven as good, and stays here to go back to.

    For instance: umbel device update --check

    Or: umbel device update --release release
    """
    from umbel.device_client import learning_words
    from umbel.device_client.releases.terminal import fetching_bar, given_pin
    from umbel.device_client.releases.updating import Hears, Wanted

    wanted = Wanted(check, back, source, release, given_pin(root, pin, first_use), force)
    with opened(home) as device, fetching_bar(as_json) as on_bytes:
        hears = Hears(on_bytes, _said(as_json), learning_words.bar(as_json))
        try:
            found = device.update(wanted, precision=precision, threads=threads, hears=hears)
        finally:
            learning_words.end_bar(as_json)
        profile = device.status()["profile"]
    typer.echo(json.dumps(found.as_json(), indent=2) if as_json else _words(found, profile is not None))


def _said(quiet: bool) -> Callable[[str], None]:
    """Returns what says on stderr what is done next, where that is a terminal."""

    def on_phase(phase: str) -> None:
        if not quiet and sys.stderr.isatty():
            typer.echo(f"{phase} ...", err=True)

    return on_phase


_UNREAD = "That one was damaged or missing, so they were not compared."


def _words(found: Updated, has_profile: bool) -> str:
    used, other = found.release[:12], (found.other or "")[:12]
    if found.outcome == "current":
        return f"Nothing new: {used} is the current release."
    if found.outcome == "back":
        return (
            f"Release {used} is in use again. {other} is taken over again with: umbel device update --force"
        )
    if found.outcome == "available":
        words = f"Release {other} is another one than yours, {used}: {found.to_fetch:,} bytes to fetch.\n"
        return words + (_kept(found) if found.tried_before else "Take it over: umbel device update")
    if found.outcome == "kept":
        return f"Release {used} goes on. {_kept(found)}"
    words = f"Release {used} has taken over from {other}. "
    words += _UNREAD if found.unread else _proof(found)
    return words if has_profile else words + "\nYou have no profile for it. Make one: umbel device learn"


def _kept(found: Updated) -> str:
    again = "It is tried again when your examples have changed; --force takes it over all the same."
    if found.proof is None:
        return f"You went back from the other one. {again}"
    return f"{_proof(found)} {again}"


def _proof(found: Updated) -> str:
    own = found.proof
    if own is None:
        return "There were no examples to try it on."
    new, old = _told_apart(own.nll_new, own.nll_old)
    return (
        f"On your {own.examples} examples, each held out once, the loss is {new} with the new one and {old} "
        "with the old one."
    )


def _told_apart(one: float, other: float) -> tuple[str, str]:
    """Returns two losses with three decimals, or with as many more, up to six, as tell them apart."""
    digits = next((d for d in range(3, 7) if f"{one:.{d}f}" != f"{other:.{d}f}"), 3)
    return f"{one:.{digits}f}", f"{other:.{digits}f}"
