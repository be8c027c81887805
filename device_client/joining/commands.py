"""`umbel device join` and `leave`: take part in a coordinator's rounds."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.device_client.home_commands import HOME, Home, opened

if TYPE_CHECKING:
    from umbel.device_client.joining.membership import Membership
    from umbel.device_client.joining.taking_part import Window
    from umbel.device_client.owner import Device
    from umbel.shared.invitation import Invitation

_LONGEST_NAME, _MOST_BYTES = 256, 1 << 16
_ASKED = {"query": "asked for its number", "query.gain": "asked for its gain"}
_UNTOLD = {"query.gain": "none is told"}  # as with most owners: no fault
_Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a line, for each thing that happens.")
]


def add_to(app: typer.Typer) -> None:
    """Adds these commands to an app."""
    for command in (join, leave):
        app.command()(command)


def join(
    invitation: Annotated[
        str | None,
        typer.Argument(
            metavar="[INVITATION]",
            help="The line that the coordinator's operator gave you, or a file that holds it: other users of "
            "a machine can read command lines.",
        ),
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(help="Without an invitation: the coordinator's address, https://host:port.")
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option("--ca", help="With --coordinator: the certificate to trust, as a file (PEM)."),
    ] = None,
    code: Annotated[str | None, typer.Option(help="With --coordinator: the one-time code.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Take part in one round, then end.")] = False,
    window: Annotated[
        float | None, typer.Option(min=1, help="End after so many seconds, whatever came.")
    ] = None,
    home: Home = HOME,
    as_json: _Json = False,
) -> None:
    """Take part in a coordinator's rounds, until you stop it (Ctrl-C).

    The first time, the invitation's code is redeemed: the coordinator then knows this device by a key of its
    own, which lies sealed in your store. After that, no invitation is needed.

    What leaves is what your policy allows ('umbel device policy'), and 'umbel device egress' shows it. The
    coordinator sends numbers, never code: what runs is what you have installed.

    For instance: umbel device join umbel1-eyJjYSI6...

    Later, on a timer, in the night: umbel device join --once --window 3600
    """
    from umbel.device_client.joining.taking_part import Window
    from umbel.shared.checks import number_problems, refuse_odd

    given = _given(invitation, coordinator, ca, code)
    refuse_odd([] if window is None else number_problems("--window", window, 1, float("inf")))
    with opened(home) as device:
        _refuse_never(device)
        _refuse_empty(device)
        membership = _joined(device, given, as_json)
        own = device.home
    _take_part(membership, own, Window(once=once, seconds=window), as_json)


def leave(home: Home = HOME, as_json: _Json = False) -> None:
    """Forget the coordinator: its address, and the key by which it knows this device.

    What you learned, and what has left already, stays as it is. To join again you need another invitation.

    For instance: umbel device leave
    """
    with opened(home) as device:
        was = device.membership()
        if was is not None:
            device.keep_membership(None)
    found = {"left": None if was is None else was.url}
    words = "This device had joined no coordinator." if was is None else f"This device has left {was.url}."
    typer.echo(json.dumps(found) if as_json else words)


def _given(text: str | None, coordinator: str | None, ca: Path | None, code: str | None) -> Invitation | None:
    """Returns the invitation that a command line holds; None if it has none."""
    from umbel.shared.errors import ConfigError
    from umbel.shared.files import plain_bytes
    from umbel.shared.invitation import Invitation

    parts = (coordinator, ca, code)
    if text is not None and any(parts):
        raise ConfigError("give an invitation, or --coordinator, --ca and --code, not both")
    if text is not None:
        file = Path(text)
        if len(text) < _LONGEST_NAME and file.is_file():
            text = plain_bytes(file, _MOST_BYTES).decode(errors="replace")
        return Invitation.from_text(text)
    if not any(parts):
        return None
    if coordinator is None or ca is None or code is None:
        raise ConfigError("--coordinator, --ca and --code go together")
    return Invitation(
        coordinator.rstrip("/"), plain_bytes(ca, _MOST_BYTES).decode(errors="replace"), code.lower()
    )


def _refuse_never(device: Device) -> None:
    """Says at once what would be refused later, message by message."""
    from umbel.device_client.egress.policy import NEVER
    from umbel.shared.errors import EgressError

    if device.policy().rule == NEVER:
        raise EgressError(
            "your policy is that nothing may leave this device, so it cannot take part in rounds",
            hint="Say what may: umbel device policy --help. Nothing was sent, and the code is still good.",
        )


def _refuse_empty(device: Device) -> None:
    """Says at once what would fail in every round, and with few devices would cost all of them the round."""
    from umbel.shared.errors import ExampleError

    examples, _texts = device.counts()
    if not examples:
        raise ExampleError(
            "your device has no examples, so it has nothing to take part with",
            hint="Add what you judged: umbel device add FILE. Nothing was sent, and the code is still good.",
        )


def _joined(device: Device, given: Invitation | None, as_json: bool) -> Membership:
    """Returns the device's place at the coordinator; redeems the code if that was not done yet."""
    from umbel.device_client.events import now
    from umbel.device_client.joining.asking import ask_in
    from umbel.device_client.joining.membership import Membership
    from umbel.shared.errors import ConfigError

    membership = device.membership()
    new = given is not None and (membership is None or not membership.is_for(given))
    if new and membership is not None and membership.joined is not None:
        raise ConfigError(
            f"this device has joined {membership.url} already",
            hint="Go on with it: umbel device join. Or leave it first: umbel device leave.",
        )
    if given is not None and new:
        membership = Membership.begun(given)
        device.keep_membership(membership)  # before it is sent: an answer that is lost must not cost the code
    if membership is None:
        raise ConfigError(
            "this device has joined no coordinator", hint="Give its invitation: umbel device join INVITATION."
        )
    if membership.joined is None:
        ask_in(membership)
        membership = membership.at(now())
        device.keep_membership(membership)
        words = f"This device is known to {membership.url} now."
        _tell(as_json, words, event="joined", coordinator=membership.url)
    return membership


def _take_part(membership: Membership, home: Path, window: Window, as_json: bool) -> None:
    from umbel.device_client.flower_link import Memory, connected
    from umbel.device_client.joining.taking_part import Participation, Turn
    from umbel.shared.checks import shown
    from umbel.shared.errors import LinkError

    def on_turn(turn: Turn) -> None:
        refused = _UNTOLD.get(turn.kind, f"refused ({turn.refused})")
        done = refused if turn.refused else f"answered in {turn.seconds:.1f} s"
        what = _ASKED.get(turn.kind, f"round {shown(turn.round)}, {shown(turn.kind)}")
        _tell(as_json, f"{what}: {done}", event="turn", **asdict(turn))

    def on_break(error: LinkError, pause_s: float) -> None:
        words = f"{error.headline}; the next try is in {pause_s:.0f} s"
        _tell(as_json, words, event="break", why=error.headline, pause_s=round(pause_s, 1))

    memory = Memory()
    taking = Participation(
        lambda: connected(membership, home, memory), window, on_turn=on_turn, on_break=on_break
    )
    _tell(as_json, f"Waiting for {membership.url}.", event="waiting", coordinator=membership.url)
    with _ended_by_sigterm():
        taking.run()
    words = f"Took part in {taking.trained} rounds; {taking.refused} times this device refused."
    _tell(as_json, words, event="ended", trained=taking.trained, refused=taking.refused)


class _Terminated(BaseException):
    """SIGTERM: end as if all had been done."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM, which a service manager stops a program with, end the work in good order."""

    def end(_number: int, _frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _Terminated:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(as_json: bool, words: str, **row: Any) -> None:
    typer.echo(json.dumps(row) if as_json else words)
    sys.stdout.flush()
