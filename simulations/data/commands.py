"""`umbel data`: make, import and look at files of examples."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.shared.examples import Example, labels_of, read_examples, write_examples

if TYPE_CHECKING:
    from rich.status import Status

_SHOWN = 12  # labels in a table; JSON has all of them

app = typer.Typer(
    no_args_is_help=True,
    help="Turn public data sets into umbel's example files, generate people, and look at such files.\n\n"
    "An example is a user, a text, the label that the user gave it and, where known, a time.",
)

_OUT_HELP = "File to write; its ending says how: .jsonl, .csv or .parquet."
_JSON_HELP = "Print one JSON object instead of a table."

_Out = Annotated[Path, typer.Option("--out", "-o", help=_OUT_HELP)]
_Json = Annotated[bool, typer.Option("--json", help=_JSON_HELP)]


@app.command("import")
def import_(
    format_: Annotated[
        str, typer.Argument(metavar="FORMAT", help="movielens, crehate, paradigms, clinc150 or lamp.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the data set was unpacked.")],
    out: _Out,
    as_json: _Json = False,
) -> None:
    """Import a public data set into one file of examples.

    FORMAT is movielens, crehate, paradigms, clinc150 or lamp; FOLDER is where the data set was unpacked.

    For instance: umbel data import movielens ~/Downloads/ml-latest-small --out films.jsonl

    Then look at it with: umbel data show films.jsonl
    """
    from umbel.simulations.data.importers import import_data

    with _working(f"Reading {folder}"):
        examples = import_data(format_, folder)
    _write(out, examples, as_json)


@app.command()
def community(
    out: _Out,
    users: Annotated[int | None, typer.Option(help="How many people.")] = None,
    examples_per_user: Annotated[int | None, typer.Option(help="How many texts each person judges.")] = None,
    texts: Annotated[int | None, typer.Option(help="How many distinct texts there are.")] = None,
    choosiness: Annotated[
        float | None, typer.Option(help="How much people judge what they would like; 0: anything.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which community; the same seed gives the same one.")] = 0,
    as_json: _Json = False,
) -> None:
    """Generate people of different tastes who judge the same short reviews of stories.

    For instance: umbel data community --users 50 --seed 1 --out people.jsonl
    """
    from umbel.simulations.data.community import CommunityConfig, generate_community

    chosen: dict[str, Any] = {
        "users": users,
        "examples_per_user": examples_per_user,
        "texts": texts,
        "choosiness": choosiness,
    }
    config = CommunityConfig(**{name: n for name, n in chosen.items() if n is not None}, seed=seed)
    with _working(f"Generating {config.users} people"):
        generated = generate_community(config)
    _write(out, generated.examples, as_json)


@app.command()
def pack(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .jsonl, .csv or .parquet file, sorted by user.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the table; an older one is replaced.")],
    heldout_share: Annotated[
        float, typer.Option(help="Share of each person's texts that is held out, to be predicted.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Which texts are held out.")] = 0,
    user: Annotated[str | None, typer.Option(help="The user of rows that name none.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a line.")] = False,
) -> None:
    """Pack a file of examples into a table of people: a million devices of a simulation in a few files.

    Each person's rows must stand together in FILE; people are numbered in its order, from 0. The file is
    read a person at a time, so it may be larger than the memory. Rounds over the table take the time and
    memory of those who take part.

    For instance: umbel data pack people.parquet --heldout-share 0.2 --out people

    Then: umbel rounds --release release --people people
    """
    from umbel.simulations.data.packing import pack as packed

    with _working(f"Packing {file}") as shown:
        found = packed(
            file,
            out,
            heldout_share=heldout_share,
            seed=seed,
            default_user=user,
            on_people=lambda people: shown.update(f"Packing: {people:,} people ..."),
        )
    if as_json:
        print(json.dumps({"folder": str(out), **asdict(found)}))
        return
    print(
        f"Packed {found.people:,} people with {found.examples:,} examples, {found.heldout:,} of them held "
        f"out, into {out} ({found.bytes / 1e6:.1f} MB).\n"
        f"Run rounds among them: umbel rounds --release RELEASE --people {out}"
    )


@app.command()
def show(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .jsonl, .csv or .parquet file of examples.")
    ],
    user: Annotated[
        str | None, typer.Option(help="The user of rows that name none, as in a file of your own.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Check a file of examples and show how much is in it: counts only, none of its texts.

    FILE ends with .jsonl, .csv or .parquet.

    For instance: umbel data show films.jsonl
    """
    with _working(f"Reading {file}"):
        examples = read_examples(file, default_user=user)
    _tell(file, examples, as_json)


def summarize(examples: Sequence[Example]) -> dict[str, object]:
    """Returns counts and quantiles of examples, ready for JSON; no texts and no user ids.

    The quantiles (0, 0.25, 0.5, 0.75, 1) are of examples per user, of distinct labels per user, and of the
    texts' lengths in words.
    """
    own: dict[str, set[str]] = {}
    for example in examples:
        own.setdefault(example.user, set()).add(example.label)
    counts = Counter(example.label for example in examples)
    return {
        "users": len(own),
        "examples": len(examples),
        "distinct_texts": len({example.text for example in examples}),
        "timed": sum(example.time is not None for example in examples),
        "labels": {label: counts[label] for label in labels_of(examples)},
        "examples_per_user": _quantiles(list(Counter(example.user for example in examples).values())),
        "labels_per_user": _quantiles([len(labels) for labels in own.values()]),
        "words_per_text": _quantiles([len(example.text.split()) for example in examples]),
    }


def _quantiles(values: Sequence[int]) -> list[int]:
    """Returns the values at 0, 1/4, 1/2, 3/4 and 1 of the sorted ones."""
    ranked = sorted(values)
    return [ranked[round(share * (len(ranked) - 1) / 4)] for share in range(5)]


def _write(out: Path, examples: Sequence[Example], as_json: bool) -> None:
    with _working(f"Writing {out}"):
        write_examples(out, examples)
    _tell(out, examples, as_json)


def _working(what: str) -> "Status":
    """Shows on stderr that something is being done, where a person looks on."""
    from rich.console import Console
    from rich.markup import escape

    return Console(stderr=True).status(f"{escape(what)} ...")


def _tell(path: Path, examples: Sequence[Example], as_json: bool) -> None:
    summary = summarize(examples)
    if as_json:
        print(json.dumps({"file": str(path), **summary}))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(str(path)), title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in summary.items():
        table.add_row(name.replace("_", " "), Text(_plain(value)))
    Console().print(table)


def _plain(value: object) -> str:
    match value:
        case dict():
            most = sorted(value.items(), key=lambda pair: -pair[1])[:_SHOWN]
            rest = f", and {len(value) - _SHOWN} more labels" if len(value) > _SHOWN else ""
            return ", ".join(f"{label}: {count:,}" for label, count in most) + rest
        case [least, lower, median, upper, most]:
            return f"median {median:,}; middle half {lower:,} to {upper:,}; all {least:,} to {most:,}"
        case int():
            return f"{value:,}"
    return str(value)
