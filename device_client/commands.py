"""`umbel device`: learn a private profile from a few examples, and predict with it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from umbel.device_client.device import Learned, Onboarded, Prediction

app = typer.Typer(
    no_args_is_help=True,
    help="Learn a private profile from a few of your own examples, and predict with it. "
    "Nothing leaves this machine.",
)

_Release = Annotated[Path, typer.Option("--release", "-r", help="Folder of the release.")]
_Profile = Annotated[Path, typer.Option("--profile", "-p", help="File of the private profile.")]
_Threads = Annotated[int, typer.Option(min=1, max=256, help="Threads.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]
_PROFILE = Path("profile.umbel")
_SHOWN = 5
_MAX_TEXTS_BYTES = 1 << 26  # a wrong file, such as a device, may be endless


@app.command()
def learn(
    release: _Release,
    examples: Annotated[
        Path,
        typer.Option("--examples", "-e", help="Your examples (.jsonl or .csv): a text and its label each."),
    ],
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts", "-t", help="Further texts of yours, one a line, for a release that onboards."
        ),
    ] = None,
    profile: _Profile = _PROFILE,
    threads: _Threads = 2,
    as_json: _Json = False,
) -> None:
    """Learn a profile from your own examples.

    Each line of the file is one example, such as {"text": "A slow, quiet story.", "label": "yes"}; the labels
    must be the release's. A handful is enough. The profile is written whole or not at all.

    For instance: umbel device learn --release release --examples mine.jsonl
    """
    from umbel.device_client.device import learn_profile
    from umbel.shared.examples import read_examples
    from umbel.shared.release import read_release

    begun = time.perf_counter()
    checked = read_release(release)
    rows = read_examples(examples, labels=checked.manifest.labels, default_user="owner")
    learned = learn_profile(
        checked,
        rows,
        profile,
        texts=_file_texts(texts),
        threads=threads,
        on_step=_bar(checked.manifest.recipe.steps, as_json),
    )
    found = {
        "profile": str(profile),
        "bytes": learned.file_bytes,
        "release": checked.release_id,
        "examples": len(rows),
        "steps": checked.manifest.recipe.steps,
        "nll_generic": round(learned.nll_generic, 6),
        "nll_personal": round(learned.nll_personal, 6),
        "strength": round(learned.strength, 6),
        "seconds": round(time.perf_counter() - begun, 3),
        "notes": list(learned.notes),
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for note in learned.notes:
        typer.echo(f"Note: {note}")
    typer.echo(
        f"Learned from {len(rows)} examples in {found['seconds']:.1f} s. On them the loss went from "
        f"{learned.nll_generic:.3f} to {learned.nll_personal:.3f}.\n"
        f"{_worse(learned)}{_strength(learned.strength)}"
        f"The profile is in {profile} ({learned.file_bytes} bytes). "
        f"Use it: umbel device predict --release {release} "
        f'--profile {profile} "some text"'
    )


def _worse(learned: Learned) -> str:
    if learned.nll_personal <= learned.nll_generic:
        return ""
    return "That is worse than without a profile: use --generic with predict, or give more examples.\n"


def _strength(strength: float) -> str:
    if strength == 1.0:
        return ""
    if strength == 0.0:
        return "On examples held out it did not help, so predictions stay as they are for everybody.\n"
    return f"By how it did on examples held out, {strength:.0%} of it is used.\n"


@app.command()
def onboard(
    release: _Release,
    examples: Annotated[
        Path | None,
        typer.Option(
            "--examples", "-e", help="Examples of yours (.jsonl or .csv): a text and its label each."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--texts", "-t", help="File with one text of yours a line, without labels.")
    ] = None,
    profile: _Profile = _PROFILE,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what is believed about you, and why.")
    ] = False,
    threads: _Threads = 2,
    as_json: _Json = False,
) -> None:
    """Get a first profile at once, from texts of yours, with labels or without.

    It takes one pass over the texts. 'umbel device learn' makes more of labelled examples, and starts
    from the same. Nothing leaves this machine.

    For instance: umbel device onboard --release release --texts mine.txt --explain
    """
    from umbel.device_client.device import onboard_profile
    from umbel.shared.examples import read_examples
    from umbel.shared.release import read_release

    begun = time.perf_counter()
    checked = read_release(release)
    labels = checked.manifest.labels
    replaced = profile.exists()
    rows = [] if examples is None else read_examples(examples, labels=labels, default_user="owner")
    texts = _file_texts(file)
    found = onboard_profile(checked, rows, texts, profile, explain=explain or as_json, threads=threads)
    seconds = round(time.perf_counter() - begun, 3)
    if as_json:
        told = _onboarded(found, profile, len(rows), len(texts), seconds)
        start = checked.manifest.recipe.at(len(rows)).start
        typer.echo(json.dumps({**told, "replaced": replaced, "start": start}, indent=2))
        return
    if replaced:
        typer.echo(
            "Note: it replaces the profile that was there; 'umbel device learn' makes a learned one again."
        )
    if checked.manifest.recipe.at(len(rows)).start == 0.0:
        typer.echo(
            "Note: of the people whom this release was tried on, learning from labelled examples went better "
            "without this profile, so 'umbel device learn' does not start from it."
        )
    typer.echo(
        f"Read {len(rows)} examples and {len(texts)} texts in {seconds:.1f} s. With the profile, "
        f"{found.changed:.0%} of them get another label than everybody's; probabilities move by "
        f"{found.moved:.0%} on average.\n"
        f"The profile is in {profile} ({found.file_bytes} bytes). "
        f'Use it: umbel device predict --release {release} --profile {profile} "some text"'
    )
    if explain:
        _explain(found, [row.text for row in rows] + texts)


def _onboarded(found: Onboarded, profile: Path, examples: int, texts: int, seconds: float) -> dict[str, Any]:
    return {
        "profile": str(profile),
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


def _explain(found: Onboarded, texts: list[str]) -> None:
    """Says whom the owner is taken to be like, and which of their texts made it so."""
    from umbel.shared.checks import tamed

    typer.echo("\nYou are taken to be like people who would say:")
    for own in found.likenesses:
        said = [f'{label} to "{tamed(text)}"' for text, label in own.examples]
        typer.echo(f"  {own.weight:4.0%}  {'; '.join(said) or '(the release shows no texts)'}")
    order = sorted(range(len(texts)), key=lambda number: -found.influences[number])[:_SHOWN]
    typer.echo("\nWhat of yours mattered most:")
    for number in order:
        typer.echo(f'  {found.influences[number]:4.0%}  "{tamed(texts[number])}"')


@app.command()
def predict(
    release: _Release,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; '-' reads lines from stdin.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--texts", "-t", help="File with one text a line.")] = None,
    profile: _Profile = _PROFILE,
    generic: Annotated[bool, typer.Option("--generic", help="Predict without a profile.")] = False,
    threads: _Threads = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Predict labels with your profile.

    TEXT are the texts themselves; '-' reads them from stdin, one a line. Next to your label stands the one
    that a person about whom nothing is known would get.

    For instance: umbel device predict --release release "A slow, quiet story."
    """
    from umbel.device_client.device import predict_texts
    from umbel.shared.release import read_release

    wanted = _texts(texts or [], file)
    found = predict_texts(read_release(release), wanted, None if generic else profile, threads=threads)
    if as_json:
        for row in found:
            typer.echo(json.dumps(row.as_json()))
        return
    _table(wanted, found)


def _file_texts(file: Path | None) -> list[str]:
    return [] if file is None else _texts([], file, "read", "Give a file with one text a line.")


def _texts(
    given: list[str],
    file: Path | None,
    purpose: str = "predict",
    hint: str = 'Give texts: umbel device predict --release R "some text", or --texts FILE with one a line.',
) -> list[str]:
    from umbel.shared.errors import ExampleError

    texts = [text for text in given if text != "-"]
    if "-" in given:
        texts += _lines(sys.stdin.buffer, "what stdin gives")
    if file is not None:
        with file.open("rb") as stream:
            texts += _lines(stream, str(file))
    empty = [f"text {number} is empty" for number, text in enumerate(texts, 1) if not text.strip()]
    if empty or not texts:
        raise ExampleError(
            f"there is nothing to {purpose}" if not texts else "some texts are empty",
            empty,
            hint,
        )
    return texts


def _lines(stream: IO[bytes], source: str) -> list[str]:
    """Returns the lines of a file; a text may hold what Python calls a line's end, such as U+2028."""
    from umbel.shared.errors import ExampleError

    data = stream.read(_MAX_TEXTS_BYTES + 1)
    if len(data) > _MAX_TEXTS_BYTES:
        raise ExampleError(f"{source} has more than {_MAX_TEXTS_BYTES:,} bytes", hint="Give it in parts.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExampleError(f"{source} is not UTF-8 text", [f"byte {error.start + 1}"]) from None
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []


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
    longest = max(cell_len(label) for row in rows for label in (row.label, row.generic_label, "generic"))
    room = max(console.width - 2 * longest - len("probability") - 6, 8)
    table.add_column("text", overflow="ellipsis", no_wrap=True, max_width=room)
    for text, row in zip(texts, rows, strict=True):
        cells = (row.label, f"{row.probability:.3f}", row.generic_label, tamed(text))
        table.add_row(*map(escape, cells))
    console.print(table)


def _bar(steps: int, quiet: bool) -> Any:
    """Returns a callback that draws a line of progress on stderr, where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        return None

    def on_step(number: int, _nll: float) -> None:
        end = "\r\x1b[K" if number == steps else ""
        sys.stderr.write(f"\rlearning {number}/{steps}{end}")
        sys.stderr.flush()

    return on_step
