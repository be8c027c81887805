"""`umbel device household`: several owners' devices on one machine, asked in one go."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from umbel.device_client.home_commands import PRECISION, SECRET, asked

if TYPE_CHECKING:
    from collections.abc import Callable

    from umbel.device_client.prediction import Prediction


def household(
    member: Annotated[
        list[str], typer.Option("--member", "-m", help="An owner and their device's home: NAME=HOME.")
    ],
    file: Annotated[
        Path,
        typer.Option("--texts", "-t", help="JSON lines with owner and text; '-' reads them from stdin."),
    ] = Path("-"),
    precision: PRECISION = "int8",
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Predict labels for several owners at once, each text with its owner's profile.

    Every owner has a home and a key of their own; a passphrase is asked for, or read from
    UMBEL_PASSPHRASE_NAME, or UMBEL_PASSPHRASE. Texts of all share a batch, and the weights are in memory
    once. Answers come in the order of the lines.

    For instance: umbel device household --member ann=~/ann --member bob=~/bob --texts asked.jsonl
    """
    from umbel.device_client.household import Household
    from umbel.device_client.texts import owned_texts

    homes = _homes(member)
    texts, owners = owned_texts(file)
    with Household.open(homes, ask=_ask, threads=threads) as everybody:
        found = everybody.predict(texts, owners, precision=precision)
    if as_json:
        for owner, text, row in zip(owners, texts, found, strict=True):
            told = {"owner": owner, "text": text, **row.as_json()}
            del told["generic_label"]  # nobody asked for it
            typer.echo(json.dumps(told))
        return
    _lines(owners, texts, found)


def _homes(members: Sequence[str]) -> dict[str, Path]:
    """Returns each owner's home.

    Raises:
        ConfigError: One is not NAME=HOME, or named twice; all are told.
    """
    from umbel.shared.errors import ConfigError

    found: dict[str, Path] = {}
    problems = []
    for member in members:
        name, sign, home = member.partition("=")
        if not (name and sign and home):
            problems.append(f"'{member}' is not NAME=HOME")
        elif name in found:
            problems.append(f"'{name}' is named twice")
        else:
            found[name] = Path(home).expanduser()
    if problems:
        raise ConfigError("these are no members of a household", problems, "Give --member ann=HOME.")
    return found


def _ask(name: str) -> Callable[[], str]:
    import os

    own = f"{SECRET}_{re.sub('[^A-Z0-9]', '_', name.upper())}"
    return asked(own if own in os.environ else SECRET, f"Passphrase of {name}")


def _lines(owners: Sequence[str], texts: Sequence[str], rows: Sequence[Prediction]) -> None:
    from umbel.shared.checks import tamed

    width = max(len(tamed(owner)) for owner in owners)
    labels = max(len(tamed(row.label)) for row in rows)
    for owner, text, row in zip(owners, texts, rows, strict=True):
        shown = f"{tamed(owner):<{width}}  {tamed(row.label):<{labels}}  {row.probability:.3f}"
        typer.echo(f"{shown}  {tamed(text)}")
