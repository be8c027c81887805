"""`umbel device`: learn a private profile from a few examples, and predict with it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.device_client import egress_commands
from umbel.device_client.home_commands import HOME, PRECISION, USUAL_PRECISION, Home, add_to, opened
from umbel.device_client.household_commands import household
from umbel.device_client.joining import commands as joining_commands
from umbel.device_client.releases.commands import update
from umbel.device_client.texts import given_texts

if TYPE_CHECKING:
    from umbel.device_client.device import Onboarded
    from umbel.device_client.prediction import Prediction
    from umbel.device_client.work import Work
    from umbel.shared.onboarding import Onboarding

app = typer.Typer(
    no_args_is_help=True,
    help="Learn a private profile from a few of your own examples, and predict with it. "
    "Your texts, labels and profile never leave this machine; only if you allow it "
    "('umbel device policy'), changes of what everybody shares do, in rounds.",
)

_Release = Annotated[
    Path | None,
    typer.Option("--release", "-r", help="Folder of a release: work on files, without the device's home."),
]
_Profile = Annotated[
    Path | None, typer.Option("--profile", "-p", help="With --release: file of the private profile.")
]
_Threads = Annotated[int, typer.Option(min=1, max=256, help="Threads.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]
_PROFILE = Path("profile.umbel")
_SHOWN = 5
_LEAST_SHOWN = 0.005  # it would read 0 %
_LIFE = (  # commands in the order in which an owner needs them
    *("enroll", "add", "list", "onboard", "learn", "predict", "status", "update", "policy", "consent"),
    *("join", "leave", "egress", "log", "household", "export", "import", "rekey", "forget"),
)
_CLEAR = 2.0  # times what every kind of people has where nothing is known
_LONGEST = 120


@app.command()
def learn(
    release: _Release = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            "--examples",
            "-e",
            help="With --release: your examples (.jsonl or .csv), a text and its label each.",
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts", "-t", help="With --release: further texts of yours, one a line, if it onboards."
        ),
    ] = None,
    profile: _Profile = None,
    home: Home = HOME,
    threads: _Threads = 2,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop in time, keep what there is, and go on the next time.")
    ] = None,
    max_memory: Annotated[
        int | None, typer.Option(min=1, metavar="MIB", help="What the process may have in memory at most.")
    ] = None,
    precision: USUAL_PRECISION = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Learn from the beginning, even if nothing has changed.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Learn your profile from the examples that your device has.

    A handful is enough. The new profile is there wholly or not at all; until then the old one is in use.
    Stopped by Ctrl-C or --max-seconds, learning is kept, and goes on with the next 'learn' to the same
    profile. With --release it is learned from a file, each line of which is one example, such as
    {"text": "A slow, quiet story.", "label": "yes"}.

    For instance: umbel device learn --max-seconds 30

    Or: umbel device learn --release release --examples mine.jsonl
    """
    from contextlib import nullcontext

    from umbel.device_client import learning_words
    from umbel.device_client.runs import Budget

    budget = Budget(threads, max_seconds, max_memory, precision)
    with _work(release, home, examples, texts, profile) as work:
        # What is learned from files is kept nowhere until it is done, so Ctrl-C ends it at once.
        with learning_words.Stops() if release is None else nullcontext(lambda: False) as stops:
            try:
                found = work.learn(budget, anew, stops, learning_words.bar(as_json))
            finally:
                learning_words.end_bar(as_json)
        told = {"profile": work.where, "release": work.release.release_id}
    if as_json:
        typer.echo(json.dumps(told | learning_words.as_json(found), indent=2))
        return
    for note in found.notes:
        typer.echo(f"Note: {note}")
    words = learning_words.as_words(found).rstrip()
    if found.finished and found.about is not None:
        size = found.about["bytes"]
        words += f"\nThe profile is in {work.where} ({size} bytes). Use it: {work.use}"
    typer.echo(words)


@app.command()
def onboard(
    release: _Release = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            "--examples",
            "-e",
            help="With --release: examples of yours (.jsonl or .csv), a text and its label each.",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--texts", "-t", help="With --release: file with one text of yours a line, unlabelled."),
    ] = None,
    profile: _Profile = None,
    home: Home = HOME,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what is believed about you, and why.")
    ] = False,
    precision: PRECISION = "int8",
    threads: _Threads = 2,
    as_json: _Json = False,
) -> None:
    """Get a first profile at once, from texts of yours, with labels or without.

    It takes one pass over the texts that your device has. 'umbel device learn' makes more of labelled
    examples; it works out this profile anew and starts from it, where the release says that this is
    better. Nothing leaves this machine.

    For instance: umbel device onboard --explain

    Or: umbel device onboard --release release --texts mine.txt
    """
    begun = time.perf_counter()
    with _work(release, home, examples, file, profile) as work:
        replaced = work.has_profile()
        found = work.onboard(explain, precision, threads)
        rows, texts = work.known()
    seconds = round(time.perf_counter() - begun, 3)
    start = work.release.manifest.recipe.at(len(rows)).start
    if as_json:
        told = _onboarded(found, work.where, len(rows), len(texts), seconds)
        told |= {"replaced": replaced, "start": start, "notes": list(found.notes)}
        typer.echo(json.dumps(told, indent=2))
        return
    if replaced:
        typer.echo(
            "Note: it replaces the profile that was there; 'umbel device learn' makes a learned one again."
        )
    for note in found.notes:
        typer.echo(f"Note: {note}")
    if rows and start == 0.0:
        typer.echo(
            "Note: of the people whom this release was tried on, learning from labelled examples went better "
            "without this profile, so 'umbel device learn' does not start from it."
        )
    typer.echo(
        f"Read {len(rows)} examples and {len(texts)} texts in {seconds:.1f} s. With the profile, "
        f"{found.changed:.0%} of them get another label than everybody's; probabilities move by "
        f"{found.moved:.0%} on average.\n"
        f"The profile is in {work.where} ({found.file_bytes} bytes). Use it: {work.use}"
    )
    if explain:
        _explain(found, [row.text for row in rows] + texts, work.release.manifest.onboarding)


def _onboarded(found: Onboarded, where: str, examples: int, texts: int, seconds: float) -> dict[str, Any]:
    return {
        "profile": where,
        "bytes": found.file_bytes,
        "examples": examples,
        "texts": texts,
        "changed": round(found.changed, 6),
        "moved": round(found.moved, 6),
        "likenesses": [
            {"weight": round(own.weight, 6), "examples": [{"text": t, "label": n} for t, n in own.examples]}
            for own in found.likenesses
        ],
        "influences": [round(value, 6) for value in found.influences],
        "seconds": seconds,
    }


def _explain(found: Onboarded, texts: list[str], onboarding: Onboarding | None) -> None:
    """Says whom the owner is taken to be like, and which of their texts made it so."""
    from umbel.shared.checks import tamed

    kinds = len(onboarding.prototypes) if onboarding is not None else 1
    typer.echo("\nYou are taken to be like people who would say:")
    for own in found.likenesses:
        if own.weight < _LEAST_SHOWN:
            continue
        said = [f"{tamed(label)} to {_cut(text)}" for text, label in own.examples]
        typer.echo(f"  {own.weight:4.0%}  {'; '.join(said) or '(the release shows no texts)'}")
    if found.likenesses[0].weight < _CLEAR / kinds:
        typer.echo(f"  That is next to nothing: of {kinds} kinds of people each has about {1 / kinds:.0%}.")
    order = sorted(range(len(texts)), key=lambda number: -found.influences[number])[:_SHOWN]
    typer.echo("\nWhat of yours mattered most:")
    for number in order:
        typer.echo(f"  {found.influences[number]:4.0%}  {_cut(texts[number])}")


def _cut(text: str) -> str:
    """Returns a text in quotes, as it can be shown, a long one in part."""
    from umbel.shared.checks import tamed

    shown = tamed(text)
    return f'"{shown}"' if len(shown) <= _LONGEST else f'"{shown[:_LONGEST]}…"'


@app.command()
def predict(
    release: _Release = None,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; '-' reads lines from stdin.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--texts", "-t", help="File with one text a line.")] = None,
    profile: _Profile = None,
    generic: Annotated[bool, typer.Option("--generic", help="Predict without a profile.")] = False,
    precision: PRECISION = "int8",
    home: Home = HOME,
    threads: _Threads = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Predict labels with your profile.

    TEXT are the texts themselves; '-' reads them from stdin, one a line. Next to your label stands the one
    that a person about whom nothing is known would get.

    For instance: umbel device predict "A slow, quiet story."
    """
    wanted = given_texts(texts or [], file)
    with _work(release, home, None, None, profile) as work:
        found = work.predict(wanted, generic, precision, threads)
    if as_json:
        for text, row in zip(wanted, found, strict=True):
            typer.echo(json.dumps({"text": text, **row.as_json()}))
        return
    _table(wanted, found)


def _work(
    release: Path | None, home: Path, examples: Path | None, texts: Path | None, profile: Path | None
) -> Work:
    """Returns what a command works on: files where a release is given, else the device's home."""
    from umbel.device_client.work import FileWork, HomeWork
    from umbel.shared.errors import ConfigError

    if release is not None:
        return FileWork(release, examples, texts, profile or _PROFILE)
    given = [("--examples", examples), ("--texts", texts), ("--profile", profile)]
    strange = [f"{name} is given" for name, value in given if value is not None]
    if strange:
        raise ConfigError(
            "without --release the device's home is worked on, which has its own",
            strange,
            "Entrust files to it with 'umbel device add', or give --release to work on files.",
        )
    return HomeWork(opened(home), home)


def _table(texts: list[str], rows: list[Prediction]) -> None:
    from rich.cells import cell_len
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from umbel.shared.checks import tamed

    table = Table(box=None, pad_edge=False)
    for name in ("label", "probability", "generic"):
        table.add_column(name)
    console = Console()
    # On a narrow terminal the texts are cut, not the answers.
    labels = [(row.label, row.generic_label or "") for row in rows]
    longest = max(cell_len(label) for row in labels for label in (*row, "generic"))
    room = max(console.width - 2 * longest - len("probability") - 6, 8)
    table.add_column("text", overflow="ellipsis", no_wrap=True, max_width=room)
    for text, row in zip(texts, rows, strict=True):
        cells = (row.label, f"{row.probability:.3f}", row.generic_label or "", tamed(text))
        table.add_row(*map(escape, cells))
    console.print(table)


add_to(app)
joining_commands.add_to(app)
egress_commands.add_to(app)
app.command()(update)
app.command()(household)
for _info in app.registered_commands:
    _info.name = _info.name or getattr(_info.callback, "__name__", "")
app.registered_commands.sort(key=lambda info: _LIFE.index(info.name or ""))
