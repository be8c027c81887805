"""`umbel device` for whoever has a home: enroll, add, list, status, log, rekey, export, import, forget."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.device_client.texts import file_texts

if TYPE_CHECKING:
    from umbel.device_client.owner import Device
    from umbel.device_client.vault.store import Entry, Erased

Home = Annotated[
    Path,
    typer.Option("--home", envvar="UMBEL_HOME", help="The device's home: its store, key and releases."),
]
HOME = Path("~/.umbel")
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]
ROOT = Annotated[
    Path | None, typer.Option("--root", help="With a channel: its root file, from whom you trust.")
]
PIN = Annotated[
    str | None,
    typer.Option("--pin", help="With a channel: the sha256 of its root file, from whom you trust."),
]
FIRST_USE = Annotated[
    bool, typer.Option("--trust-on-first-use", help="With a channel: trust whoever answers this time.")
]
_PRECISION = "int8: compute with the encoder in 8 bits where the release can. float32: do not."
PRECISION = Annotated[str, typer.Option(help=_PRECISION)]
USUAL_PRECISION = Annotated[
    str | None,
    typer.Option(
        help=f"{_PRECISION} Unless given, as what was begun, or your profile, was computed; int8 at first."
    ),
]
_PAGE = 50
LAST = Annotated[
    int | None,
    typer.Option(
        min=1, max=10**9, metavar="N", help=f"Only the last ones; {_PAGE} unless given, with --json all."
    ),
]
SECRET = "UMBEL_PASSPHRASE"
_LONGEST = 120
_NEW_SECRET = "UMBEL_NEW_PASSPHRASE"
_EXPORT_SECRET = "UMBEL_EXPORT_PASSPHRASE"


def asked(variable: str = SECRET, what: str = "Passphrase", *, twice: bool = False) -> Callable[[], str]:
    """Returns what gives a passphrase: from the environment, or asked for at the terminal."""

    def ask() -> str:
        from umbel.shared.errors import StoreError

        found = os.environ.get(variable)
        if found is not None:
            return found
        if sys.stdin is None or not sys.stdin.isatty():
            raise StoreError(
                "a passphrase is needed, and there is nobody to ask",
                hint=f"Run it in a terminal, or set {variable}.",
            )
        return str(typer.prompt(what, hide_input=True, confirmation_prompt=twice, err=True))

    return ask


def opened(home: Path) -> Device:
    """Opens the device of a home."""
    from umbel.device_client.owner import Device

    return Device.open(home.expanduser(), ask=asked())


def add_to(app: typer.Typer) -> None:
    """Adds these commands to an app."""
    for command in (enroll, add, status, log, rekey, export, forget):
        app.command()(command)
    app.command(name="import")(import_)
    app.command(name="list")(list_)


def enroll(
    release: Annotated[
        str,
        typer.Option(
            "--release",
            "-r",
            help="Folder of the release to begin with; or a channel of releases, by its folder or address.",
        ),
    ],
    root: ROOT = None,
    pin: PIN = None,
    first_use: FIRST_USE = False,
    home: Home = HOME,
    key: Annotated[
        str,
        typer.Option(
            help="What holds the store's key: file (yours alone), keyring (the system's), or passphrase."
        ),
    ] = "file",
    as_json: _Json = False,
) -> None:
    """Make this machine your device: take a release over, and make a sealed store for what is yours.

    Examples and profiles lie encrypted in one file. With --key passphrase nothing on this machine opens it
    without you; it is asked for, or read from UMBEL_PASSPHRASE.

    From a channel 'umbel device update' fetches newer releases. Its publisher tells you the pin, or gives you
    the root file, by a way that you trust; nobody else's releases are taken from then on.

    For instance: umbel device enroll --release release

    Or: umbel device enroll --release https://example.org/channel --pin 6e1b...
    """
    from umbel.device_client.owner import Device
    from umbel.device_client.releases.terminal import fetching_bar, given_pin

    own = given_pin(root, pin, first_use)
    with (
        fetching_bar(as_json) as on_bytes,
        Device.enroll(
            home.expanduser(), release, pin=own, key=key, ask=asked(twice=True), on_bytes=on_bytes
        ) as device,
    ):
        found = device.status()
    words = f"This is your device now: {found['home']} (key: {found['key']}).\n"
    if found["pin"]:
        words += f"It trusts the channel {found['channel']} with the pin {found['pin']}.\n"
    if first_use:
        words += "Nobody has vouched for that pin yet: compare it with the one that its publisher names.\n"
    _told(found, words + "Add what you judged: umbel device add --examples mine.jsonl", as_json)


def add(
    given: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The same as --examples FILE.", show_default=False)
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            "--examples", "-e", help="Examples of yours (.jsonl or .csv): a text and its label each."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--texts", "-t", help="File with one text of yours a line, without labels.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="One text; with --label an example.")] = None,
    label: Annotated[str | None, typer.Option(help="What you say of --text.")] = None,
    home: Home = HOME,
    as_json: _Json = False,
) -> None:
    """Entrust examples, or texts without labels, to your device; they never leave it.

    A text that is known already is kept once; it gets the new label if it comes with another one. What is
    typed after --text stays in your shell's history: a file, or --texts - for stdin, does not.

    For instance: umbel device add mine.jsonl

    Or: umbel device add --text "A slow, quiet story." --label yes
    """
    from umbel.shared.errors import ConfigError
    from umbel.shared.examples import Example, read_examples

    if given is not None and examples is not None:
        raise ConfigError(
            "examples are given twice", hint="Give a file with --examples or without, one at a time."
        )
    examples = given or examples
    if examples is None and file is None and text is None:
        raise ConfigError("there is nothing to add", hint="Give a file of examples, --texts or --text.")
    if label is not None and text is None:
        raise ConfigError("--label says something of --text, which is missing")
    with opened(home) as device:
        labels = device.release.manifest.labels
        rows = [] if examples is None else read_examples(examples, labels=labels, default_user="owner")
        texts = file_texts(file)
        if text is not None and label is not None:
            rows.append(Example(rows[0].user if rows else "owner", text, label))
        elif text is not None:
            texts.append(text)
        found = device.add(rows, texts)
        counts = device.counts()
        advice = _advice(device) if found.new + found.changed else ""
    told = {**asdict(found), "examples": counts[0], "texts": counts[1]}
    words = (
        f"{found.new} new, {found.changed} with another label, {found.known} known as they are. "
        f"Your device has {_count(counts[0], 'example')} and {_count(counts[1], 'text')} without a label."
    )
    _told(told, "\n".join(filter(None, (words, advice))), as_json)


def _advice(device: Device) -> str:
    """Says what is to be done next with what the device has."""
    examples, texts = device.counts()
    if examples:
        return "Learn from them: umbel device learn"
    if not texts:
        return ""
    if device.release.manifest.onboarding is not None:
        return "Get a first profile from them: umbel device onboard"
    return "To learn, some need a label: umbel device add --examples mine.jsonl"


def _count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def status(home: Home = HOME, as_json: _Json = False) -> None:
    """Say what your device holds, since when, and what it makes of it."""
    with opened(home) as device:
        found = device.status()
    words = (
        f"Home:     {found['home']}, {found['store_bytes']:,} bytes sealed, key: {found['key']}\n"
        f"Release:  {found['release'][:12]}\n"
        + (f"Channel:  {found['channel']}, pin {found['pin'][:12]}\n" if found["channel"] else "")
        + f"Examples: {found['examples']}, texts without a label: {found['texts']}"
        + (f", since {found['since']}" if found["since"] else "")
        + f"\nProfile:  {_profile(found['profile'])}{_learning(found)}\nLeaves:   {_leaves(found['egress'])}"
    )
    _told(found, words, as_json)


_INDENT = "\n          "


def _profile(own: dict[str, Any] | None) -> str:
    from umbel.device_client.learning_words import gain, strength

    if own is None:
        return "none yet: answers are those for everybody. Make one: umbel device learn, or onboard."
    lines = [f"{own['how']} {own['at']} from {own['examples']} examples, {own['bytes']} bytes"]
    if own["how"] == "learned":
        unknown = "What it gains is not known: there are too few examples to tell, or the release tells none."
        lines += [(gain(own) or unknown).rstrip(), strength(own["strength"]).rstrip()]
    if not own["current"]:
        lines.append("You have changed them since: umbel device learn.")
    return _INDENT.join(line for line in lines if line)


def _learning(found: dict[str, Any]) -> str:
    """Returns the lines of a status on what was learned when, and what is not finished."""
    own = found["unfinished"]
    lines = [f"{row['at']}  {row['what']}, {row['seconds']:.1f} s{_where(row)}" for row in found["runs"]]
    if own is not None:
        goes_on = "goes on with" if own["current"] else "was of other examples; it begins anew with"
        lines.append(f"Stopped while {own['doing']}{_where(own)}: it {goes_on} umbel device learn.")
    return f"\nLearning: {_INDENT.join(lines)}" if lines else ""


def _where(row: dict[str, Any]) -> str:
    return f", {row['done']} of {row['total']} done" if "done" in row else ""


def _leaves(left: dict[str, Any]) -> str:
    last = f", the last at {left['last']}" if left["last"] else ""
    messages = _count(left["messages"], "message")
    return f"policy {left['policy']}; {left['bytes']:,} bytes in {messages} so far{last}"


def log(last: LAST = None, home: Home = HOME, as_json: _Json = False) -> None:
    """Show what your device did; no text and no number of a profile is in it. What left it: egress."""
    with opened(home) as device:
        rows = paged(device.log, last, as_json)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        rest = ", ".join(
            f"{name} {_short(value)}" for name, value in row.items() if name not in ("at", "what")
        )
        typer.echo(f"{row['at']}  {row['what']}  {rest}".rstrip())


def paged(rows: Callable[[int | None], list[dict[str, Any]]], last: int | None, all_: bool) -> list[Any]:
    """Returns the last rows of a log: as many as are wanted, or else all, or of many a page.

    Args:
        rows: Gives so many of the last ones; None: all.
        last: How many are wanted.
        all_: Whether all are, if that is not said; else it is told where there are earlier ones.
    """
    if last is not None or all_:
        return rows(last)
    found = rows(_PAGE + 1)
    if len(found) > _PAGE:
        typer.echo(f"(the last {_PAGE}; more of them: --last N)", err=True)
    return found[-_PAGE:]


def _short(value: object) -> str:
    """Returns a value of the log for people: of a hash its first digits, of a loss three decimals."""
    from umbel.shared.checks import is_sha256

    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)[:12] if is_sha256(value) else str(value)


def list_(home: Home = HOME, as_json: _Json = False) -> None:
    """Show what your device has of yours: number, label and text."""
    with opened(home) as device:
        own = device.entries()
    if as_json:
        rows = [{"number": e.number, "label": e.label, "text": e.text, "added": e.added} for e in own]
        typer.echo(json.dumps(rows, indent=2))
        return
    _list(own)


def _list(own: Sequence[Entry], *, err: bool = False) -> None:
    from rich.cells import cell_len

    from umbel.shared.checks import tamed

    labels = ["-" if entry.label is None else tamed(entry.label) for entry in own]
    width = max(map(cell_len, labels), default=0)
    for entry, label in zip(own, labels, strict=True):
        shown = label + " " * (width - cell_len(label))
        typer.echo(f"{entry.number:>5}  {shown}  {tamed(entry.text)[:_LONGEST]}", err=err)


def _within(words: str, text: str) -> bool:
    return words.strip().casefold() in text.casefold()


def rekey(
    key: Annotated[str, typer.Option(help="What holds it from now on: file, keyring or passphrase.")],
    home: Home = HOME,
    as_json: _Json = False,
) -> None:
    """Give your store's key to something else to hold, or take another passphrase.

    A new passphrase is asked for, or read from UMBEL_NEW_PASSPHRASE. The old one opens the store until
    the new one is kept.

    For instance: umbel device rekey --key passphrase
    """
    with opened(home) as device:
        device.rekey(key, asked(_NEW_SECRET, "New passphrase", twice=True))
    _told({"key": key}, f"Your store's key is held anew: {key}.", as_json)


def export(
    file: Annotated[Path, typer.Argument(help="Where to write it.")],
    home: Home = HOME,
    as_json: _Json = False,
) -> None:
    """Write what is yours and your profiles, sealed by a passphrase, into one file for a new device.

    The passphrase is asked for, or read from UMBEL_EXPORT_PASSPHRASE.

    For instance: umbel device export me.umbel-export
    """
    with opened(home) as device:
        size = device.export(file, asked(_EXPORT_SECRET, "Passphrase for the export", twice=True))
    words = f"All of it is in {file} ({size:,} bytes). On the new device: umbel device enroll, "
    _told({"file": str(file), "bytes": size}, words + f"then umbel device import {file}", as_json)


def import_(
    file: Annotated[Path, typer.Argument(help="The other device's export.")],
    home: Home = HOME,
    as_json: _Json = False,
) -> None:
    """Take over what another device of yours has exported.

    Texts that are known here are kept once, with the label that they have here. So is your profile, if you
    have one. Nothing is taken over if anything in the file was changed.

    For instance: umbel device import me.umbel-export
    """
    with opened(home) as device:
        before = device.how()
        found = device.import_(file, asked(_EXPORT_SECRET, "Passphrase of the export"))
        profile = device.status()["profile"]
        current = profile is not None and profile["current"]
        next_step = "Use it: umbel device predict" if current else _advice(device)
    came = before is None and profile is not None
    told = {**asdict(found), "profile_came": came, "profile_current": current}
    words = (
        f"Of the texts {found.new} are new here, {found.changed} got a label, {found.known} were known"
        f" as they are.\n{_kept_labels(found.kept)}{_came(came, profile is not None)}"
    )
    _told(told, "\n".join(filter(None, (words, next_step))), as_json)


def _kept_labels(kept: int) -> str:
    if not kept:
        return ""
    whose = "text has another label there; the one" if kept == 1 else "texts have other labels there; those"
    return f"{kept} {whose} from here stayed.\n"


def _came(came: bool, has_profile: bool) -> str:
    if came:
        return "The profile for your release came over."
    return "Your profile from here stayed." if has_profile else "No profile for your release came over."


def forget(
    number: Annotated[
        list[int] | None,
        typer.Option(
            "--number", "-n", min=1, max=2**62, help="One of yours, by its number in 'list'; repeatable."
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="All of yours in which these words occur, in any case.")
    ] = None,
    everything: Annotated[bool, typer.Option("--everything", help="The whole store and its key.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before.")] = False,
    learn: Annotated[
        bool, typer.Option("--learn/--no-learn", help="Learn a profile again from what is left, if one was.")
    ] = True,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of learning again.")] = 2,
    home: Home = HOME,
    as_json: _Json = False,
) -> None:
    """Erase some of what is yours, or everything, and say what was erased.

    With examples goes all that came of them: every profile, a learning under way, notes of texts that were
    read. If there was a profile, it is then made again from what is left; stopped by Ctrl-C, that goes on
    with 'umbel device learn'.

    For instance: umbel device forget --text "quiet story"
    """
    from umbel.device_client.owner import erase, has_store
    from umbel.shared.errors import ConfigError, StoreError

    if sum((bool(number), text is not None, everything)) != 1 or (text is not None and not text.strip()):
        raise ConfigError("say what to forget", hint="Give one of --number, --text and --everything.")
    if everything:
        if not has_store(home.expanduser()):
            raise StoreError(f"there is no store in {home}", hint="Nothing was erased. Is it another --home?")
        _sure(yes, "Erase your store and its key for good?")
        erase(home.expanduser(), asked())
        _told({"everything": True}, "Your store and its key are erased.", as_json)
        return
    with opened(home) as device:
        own = [e for e in device.entries() if e.number in (number or ()) or (text and _within(text, e.text))]
        if own and not yes:
            _list(own, err=True)
        _sure(yes or not own, f"Erase {len(own)} of yours, and all that was learned from them?")
        before = device.how()
        found = device.forget([e.number for e in own])
        if not as_json:
            typer.echo(_erased(found))
        again = None
        try:
            again = _again(device, before, threads, as_json) if own and learn else None
        finally:  # what is erased is told even where learning again fails
            if as_json:
                typer.echo(json.dumps({"erased": asdict(found), "again": again}, indent=2))


def _erased(found: Erased) -> str:
    """Says what was erased."""
    if not found.examples + found.texts:
        return "Nothing of yours is like that; nothing was erased."
    counts = (
        (found.examples, "example", "examples"),
        (found.texts, "text without a label", "texts without a label"),
        (found.profiles, "profile", "profiles"),
        (found.runs, "learning under way", "learnings under way"),
        (found.readings, "note of a text that was read", "notes of texts that were read"),
    )
    told = [f"{count} {one if count == 1 else several}" for count, one, several in counts if count]
    return f"Erased: {', '.join(told)}."


def _again(device: Device, before: str | None, threads: int, as_json: bool) -> dict[str, Any] | None:
    """Makes the profile again that there was before, from what is left; returns what scripts are told."""
    from umbel.device_client import learning_words

    examples, texts = device.counts()
    if before is None or not (examples or (before == "onboarded" and texts)):
        return None
    if before == "onboarded":
        device.onboard(explain=False, threads=threads)
        words, told = "A first profile was made again from what is left.", {"how": before}
    else:
        with learning_words.Stops() as stops:
            try:
                found = device.learn(threads=threads, stopped=stops, on_progress=learning_words.bar(as_json))
            finally:
                learning_words.end_bar(as_json)
        words, told = (
            learning_words.as_words(found).rstrip(),
            {"how": before, **learning_words.as_json(found)},
        )
    if not as_json:
        typer.echo(words)
    return told


def _sure(yes: bool, question: str) -> None:
    """Asks before something is erased.

    Raises:
        Exit: The answer is no.
    """
    if not yes and not typer.confirm(question, err=True):
        typer.echo("Nothing was erased.", err=True)
        raise typer.Exit(1)


def _told(found: dict[str, Any], words: str, as_json: bool) -> None:
    typer.echo(json.dumps(found, indent=2) if as_json else words)
