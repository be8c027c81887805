"""`umbel coordinator init, enroll, serve, status, renew, bar`: rounds with real devices."""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from umbel.coordinator.federation.gains import GainFigures
    from umbel.coordinator.federation.journal import RoundRecord
    from umbel.coordinator.federation.settings import RoundSettings
    from umbel.coordinator.service.folder import Address
    from umbel.coordinator.service.serving import Service

PORT = 8443
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The coordinator's folder.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]
_Names = Annotated[
    list[str] | None, typer.Option("--san", help="A further name or address for the certificate; repeatable.")
]
_CaKey = Annotated[
    Path | None, typer.Option("--ca-key", help="The authority's private key, if it is not in the folder.")
]


def add_to(app: typer.Typer) -> None:
    """Adds these commands to an app."""
    for command in (init, enroll, serve, status, renew, bar):
        app.command()(command)
    app.command(name="publish-rounds")(publish_rounds)


def init(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Name or address under which devices reach this machine.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = PORT,
    san: _Names = None,
    as_json: _Json = False,
) -> None:
    """Begin a coordinator: an authority of its own, a server certificate, and a place for what rounds reach.

    Private keys have mode 0600. That of the authority is needed only to renew: move private/ca.key to a safe
    place, and name it with --ca-key then. Given again, the command changes nothing.

    For instance: umbel coordinator init federation --host rounds.example.org
    """
    from umbel.coordinator.service.folder import Address
    from umbel.coordinator.service.folder import Folder as Kept

    made, new = Kept.make(folder, Address(host, port, tuple(san or ())))
    found = {"folder": str(folder), "url": made.address.url, "new": new, "expires": made.expiry()}
    words = (
        f"A coordinator begins in {folder}; devices reach it at {made.address.url}.\n"
        f"Its private keys are in {folder / 'private'}: back them up, and show them to nobody.\n"
        f"Invite devices: umbel coordinator enroll {folder} --count 3"
    )
    _tell(
        found,
        words if new else f"There is this coordinator in {folder} already; nothing was changed.",
        as_json,
    )


def enroll(
    folder: Folder,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100_000, help="How many devices.")] = 1,
    days: Annotated[float, typer.Option(min=0.0001, max=366, help="After how many days codes expire.")] = 7.0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for one file each, in place of printing them.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Make invitations: one line for one device, with a code that is good once and expires.

    Give each to its device's owner by a way that you trust: whoever has it first can join in their place. It
    also says which certificate to trust, so that nothing else need be checked. Works while 'serve' runs.

    For instance: umbel coordinator enroll federation --count 3
    """
    from datetime import timedelta

    from umbel.coordinator.service.certificates import certificate_pem
    from umbel.coordinator.service.folder import Folder as Kept
    from umbel.coordinator.service.roster import Roster, fresh_codes
    from umbel.shared.checks import number_problems, refuse_odd
    from umbel.shared.invitation import Invitation

    refuse_odd(number_problems("--days", days, 0.0001, 366))  # the option's own bounds let nan through
    kept = Kept.read(folder)
    authority = certificate_pem(kept.authority()).decode()
    codes = fresh_codes(count)
    lines = [Invitation(kept.address.url, authority, code).as_text() for code in codes]
    with Roster.open(kept.roster) as roster, _written(lines, out) as files:
        roster.open_codes(codes, timedelta(days=days))  # once somebody has them
    told = [str(file) for file in files] or lines
    found = {"url": kept.address.url, "days": days, "invitations": told}
    words = "\n".join(told)
    if not as_json and out is None:
        typer.echo("On the device: umbel device join INVITATION. Each line is for one device.", err=True)
    _tell(found, words, as_json)


def serve(
    folder: Folder,
    release: Annotated[Path, typer.Option("--release", "-r", help="Folder of the release to train on.")],
    settings: Annotated[
        Path | None,
        typer.Option("--settings", "-s", help="TOML file with settings of the rounds: NAME = VALUE a line."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting: NAME=VALUE, such as rounds=20; repeatable."),
    ] = None,
    devices: Annotated[
        int,
        typer.Option(
            "--devices", min=0, help="Wait for so many, of whom rounds sample; 0: begin when no more come."
        ),
    ] = 0,
    bind: Annotated[str, typer.Option(help="Listen on this address of the machine only.")] = "",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Listen on another port, behind a forwarder, say.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, for each thing that happens.")
    ] = False,
) -> None:
    """Listen for devices over TLS, and run rounds with those that joined, until the rounds are done.

    Settings, and what they are unless given: rounds 10, clients 10 (devices in a round), timeout_s 3600 (how
    long a round waits for a device at most), local_steps 4, local_rate 0.05, clip 1, min_replies 1, seed 0,
    secure true and min_devices_in_a_sum 5 (no change is seen but in a sum over so many). With a privacy
    budget: noise_multiplier, epsilon_budget, delta, and --devices, of which rounds sample. All of them:
    docs/federation.md; an unknown name lists them.

    What a round has reached is kept before the next one begins: stopped or killed, give the same command
    again, and it goes on in that round with its devices.

    Devices whose owners allow it also tell, once for each release, what their profile gains them with it,
    noised; of five or more the mean is shown, here and by 'status'.

    Publish what was reached: umbel coordinator publish-rounds.

    For instance: umbel coordinator serve federation --release release --set rounds=20 --set clients=10
    """
    from umbel.coordinator.federation.settings import RoundSettings
    from umbel.coordinator.service.folder import Folder as Kept
    from umbel.coordinator.service.serving import Listening, serving
    from umbel.coordinator.service.settings import given_settings
    from umbel.shared.release import read_release

    kept, read = Kept.read(folder), read_release(release)
    config = given_settings(settings, change or [])
    wanted = RoundSettings.from_run_config(config)  # before anything listens
    trainables = read.manifest.trainables
    numbers = sum(math.prod(shape) for shape in trainables.values())
    _quiet()
    with (
        _stopping() as stopped,
        serving(kept, numbers, Listening(bind, port), tensors=len(trainables)) as service,
    ):
        _listens(service, kept.address, read.release_id, as_json)
        _budget(wanted, devices, as_json)
        reached = service.run(
            read,
            config,
            devices,
            on_round=_round(service, as_json),
            on_gain=_gain(as_json),
            on_wait=_wait(as_json),
            stopped=stopped,
        )
    out = kept.rounds(read.release_id)
    words = f"{len(reached.rounds)} rounds are done. Publish them: umbel coordinator publish-rounds {folder}"
    _say(
        as_json,
        f"{words} --release {release} --out next",
        event="done",
        rounds=len(reached.rounds),
        out=str(out),
    )


def status(folder: Folder, as_json: _Json = False) -> None:
    """Say who may take part, who was heard of when, what rounds have reached, and when certificates end.

    For instance: umbel coordinator status federation
    """
    from umbel.coordinator.service.status import status_of, words_of

    found = status_of(folder)
    _tell(found, words_of(found), as_json)


def renew(
    folder: Folder,
    host: Annotated[
        str | None, typer.Option(help="Another name or address; the old one must still lead here.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Another port.")] = None,
    san: _Names = None,
    ca_key: _CaKey = None,
    as_json: _Json = False,
) -> None:
    """Make the server's key and certificate anew; devices notice nothing. Restart 'serve' afterwards.

    Do it once a year, or when the key may have been seen by somebody.

    For instance: umbel coordinator renew federation
    """
    from umbel.coordinator.service.folder import Address
    from umbel.coordinator.service.folder import Folder as Kept

    kept = Kept.read(folder)
    own = kept.address
    names = own.names if san is None else tuple(san)
    if host is not None and host != own.host:
        names = (*names, own.host)  # devices that joined know the coordinator by it
    kept.renew(Address(host or own.host, port or own.port, names), ca_key)
    found = {"url": kept.address.url, "names": kept.address.all_names(), "expires": kept.expiry()}
    told, until = ", ".join(kept.address.all_names()), kept.expiry()["server"][:10]
    words = f"The certificate for {told} is new, and good until {until}."
    _tell(found, words + "\nRestart 'umbel coordinator serve' to use it.", as_json)


def bar(
    folder: Folder,
    device: Annotated[str, typer.Argument(help="The device's name or number in 'umbel coordinator status'.")],
    as_json: _Json = False,
) -> None:
    """Shut a device out, for good: it was lost, or misbehaves. A running 'serve' follows within seconds.

    'umbel coordinator status' shows each device's name, and the number by which a round's notes call it.

    For instance: umbel coordinator bar federation 6e1b9c0d2f4a
    """
    from umbel.coordinator.service.folder import Folder as Kept
    from umbel.coordinator.service.roster import Roster, name_of
    from umbel.shared.errors import ConfigError

    with Roster.open(Kept.read(folder).roster) as roster:
        known = [
            own.key
            for own in roster.devices()
            if device == name_of(own.key) or (own.number is not None and device == str(own.number))
        ]
        if not known:
            raise ConfigError(f"no device is called '{device}'", hint="See: umbel coordinator status.")
        new = roster.bar(known[0])
    _tell({"device": name_of(known[0]), "new": new}, f"{name_of(known[0])} is shut out.", as_json)


def publish_rounds(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="The coordinator's folder, or one that 'umbel rounds' wrote."),
    ],
    release: Annotated[
        Path, typer.Option("--release", "-r", help="Folder of the release that was trained on.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new release.")],
    as_json: _Json = False,
) -> None:
    """Write the release that follows another one after rounds: other values of what rounds train.

    Give it to devices by a channel: umbel coordinator channel add.

    For instance: umbel coordinator publish-rounds federation --release release --out next
    """
    from umbel.coordinator.federation.journal import ROUNDS, kept_rounds, kept_trainables
    from umbel.coordinator.publish import publish_update
    from umbel.coordinator.service.folder import Folder as Kept
    from umbel.shared.release import read_release

    read = read_release(release)
    reached = (folder / ROUNDS).is_file()  # of simulated rounds
    kept = folder if reached else Kept.read(folder).rounds(read.release_id)
    rounds, values = kept_trainables(kept, read.release_id)
    made, privacy = publish_update(read, values, out), kept_rounds(kept)["privacy"]
    found = {"release": str(out), "id": made.release_id, "parent": read.release_id, "rounds": rounds}
    found |= {"privacy": privacy}
    words = f"Release {made.release_id[:12]} is in {out}: {read.release_id[:12]} after {rounds} rounds."
    if privacy is not None:
        words += f"\nThey cost each device epsilon {privacy['epsilon']:.3f} at delta {privacy['delta']:g}."
    _tell(found, f"{words}\nGive it to devices: umbel coordinator channel add CHANNEL {out}", as_json)


@contextmanager
def _written(lines: Sequence[str], out: Path | None) -> Iterator[list[Path]]:
    """Writes each line into a file of its own in a folder, if one is wanted; all or none stay."""
    from umbel.shared.files import atomic_write, sha256_bytes

    files: list[Path] = []
    try:
        for line in lines if out is not None else ():
            assert out is not None
            files.append(out / f"invitation-{sha256_bytes(line.encode())[:16]}.txt")
            atomic_write(files[-1], line.encode() + b"\n", mode=0o600)
        yield files
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise


def _listens(service: Service, address: Address, release_id: str, as_json: bool) -> None:
    known = service.known()
    words = f"Listening; devices reach this coordinator at {address.url}. {known} are known. Ctrl-C stops it."
    _say(as_json, words, event="listening", url=address.url, known=known, release=release_id)


def _budget(settings: RoundSettings, devices: int, as_json: bool) -> None:
    """Says how far the privacy budget will go; without one, or without the number of devices, nothing."""
    from umbel.coordinator.federation.privacy.budget import rounds_paid

    promised = settings.privacy()
    if promised is None or not promised.epsilon_budget or not devices:
        return
    paid = rounds_paid(promised, min(1.0, settings.clients / devices), settings.rounds)
    words = f"The privacy budget, epsilon {promised.epsilon_budget:g}, pays for {paid} of the"
    _say(
        as_json,
        f"{words} {settings.rounds} rounds.",
        event="budget",
        rounds=settings.rounds,
        rounds_paid=paid,
        **asdict(promised),
    )


def _round(service: Service, as_json: bool) -> Callable[[RoundRecord], None]:
    def on_round(record: RoundRecord) -> None:
        words = "\n  ".join([record.line(), *record.notes])
        _say(as_json, words, event="round", online=service.online(), **asdict(record))

    return on_round


def _wait(as_json: bool) -> Callable[[int, int, int], None]:
    def on_wait(here: int, wanted: int, connected: int) -> None:
        words = f"Waiting for devices: {here} of at least {wanted} can take part."
        if connected > here:
            words += f" {connected - here} more are connected, but refuse or have not said a word yet."
        _say(as_json, words, event="waiting", here=here, wanted=wanted, connected=connected)

    return on_wait


def _gain(as_json: bool) -> Callable[[GainFigures], None]:
    return lambda figures: _say(as_json, figures.words(), event="gain", **asdict(figures))


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Gives what says whether Ctrl-C or SIGTERM has come; the second one is not waited for.

    What was finished is kept. After Ctrl-C the command ends as one that was interrupted, after SIGTERM, which
    a service manager sends, as one that is done.
    """
    from umbel.coordinator.federation.line import Stopped

    asked = threading.Event()
    came: list[int] = []

    def stop(number: int, _frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        came.append(number)
        asked.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    except Stopped:
        if came and came[0] == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise typer.Exit from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _quiet() -> None:
    """Keeps off the terminal what is said otherwise, or is not for an operator."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # it tells of every bad request, in its words
    logging.getLogger("umbel.coordinator.federation.tally").setLevel(logging.ERROR)  # the round's notes


def _say(as_json: bool, words: str, **row: Any) -> None:
    typer.echo(json.dumps(row) if as_json else words)
    sys.stdout.flush()


def _tell(found: Mapping[str, Any], words: str, as_json: bool) -> None:
    typer.echo(json.dumps(found, indent=2) if as_json else words)
