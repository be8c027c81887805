"""Packs a file of examples into a table of people, for rounds over many: a person at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from umbel.shared.checks import count_problems, number_problems, parsed_json, refuse_odd
from umbel.shared.errors import ExampleError
from umbel.shared.examples import Example, iter_examples
from umbel.shared.files import plain_bytes
from umbel.simulations.data.splits import held_out
from umbel.simulations.homes.table import FILE, KIND, MARK, MARK_BYTES
from umbel.simulations.homes.writing import BEFORE, MARK_UNFINISHED, OWN, TableWriter

_HINT = (
    "Mend these and try again. A file can be sorted with: sort (JSONL), or ORDER BY user in what wrote it."
)
_TOLD = 1000  # people, after which one is told how many they are
_FEW = 1000  # problems, after which no more are looked for
_FEW_NAMES = 5


@final
@dataclass(frozen=True, slots=True)
class Packed:
    """What was packed.

    Attributes:
        people: How many people, numbered from 0 in the file's order.
        examples: How many examples they have.
        heldout: How many of these are held out.
        bytes: Of the table on the disk.
    """

    people: int
    examples: int
    heldout: int
    bytes: int


def pack(
    file: Path,
    folder: Path,
    *,
    heldout_share: float = 0.0,
    seed: int = 0,
    default_user: str | None = None,
    on_people: Callable[[int], None] = lambda people: None,
) -> Packed:
    """Packs a file, in which each person's examples stand together, into a table of people.

    Args:
        file: .jsonl, .csv or .parquet.
        folder: Where the table goes.
        heldout_share: Share of a person's distinct texts from which nothing is learned; 0 for none.
        seed: Which they are.
        default_user: The user of rows that name none.
        on_people: Told now and then how many people are packed.

    Raises:
        BusyError: Another process is writing a table there.
        ConfigError: An argument is out of range.
        ExampleError: Rows cannot be used, a person's stand apart, or the folder holds something else; all is
            told, and nothing is written.
    """
    problems = number_problems("heldout_share", heldout_share, 0.0, 0.9)
    refuse_odd(problems + count_problems("seed", seed, -(2**63), 2**63 - 1))
    _refuse_other(folder, file)
    found: list[str] = []
    held = 0
    with TableWriter(folder) as writer:
        for user, own in _together(iter_examples(file, found, default_user=default_user), found):
            split = held_out(user, own, seed=seed, share=heldout_share)
            held += len(split.query)
            writer.add(split.support, split.query, checked=True)
            if writer.people % _TOLD == 0:
                on_people(writer.people)
            if len(found) > _FEW:
                break
        if not writer.people and not found:
            found.append("it holds no examples")
        if found:
            raise ExampleError(f"{file} cannot be packed", found, _HINT)
    size = sum((folder / name).stat().st_size for name in (MARK, FILE))
    return Packed(writer.people, writer.examples, held, size)


def _together(examples: Iterator[Example], problems: list[str]) -> Iterator[tuple[str, list[Example]]]:
    """Yields each person with their examples; who comes again later is a problem."""
    seen: set[str] = set()
    apart: set[str] = set()
    own: list[Example] = []
    for example in examples:
        if own and example.user != own[0].user:
            yield own[0].user, own
            own = []
        if not own:
            if example.user in seen and example.user not in apart:
                apart.add(example.user)
                problems.append(f"user {example.user}: the rows stand apart; each person's must be together")
            seen.add(example.user)
        own.append(example)
    if own:
        yield own[0].user, own


def _refuse_other(folder: Path, file: Path) -> None:
    """Refuses a folder that holds something else than a table, or what is left of one.

    Of a table without what says that it is whole, a writer that was killed has left what was to say so.
    """
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()}
    others = {name for name in names if not any(Path(name).match(own) for own in OWN)}
    if MARK in names and _is_other(folder / MARK):
        others.add(MARK)
    if not names & {MARK, MARK_UNFINISHED}:
        others |= names & {FILE, BEFORE}
    if file.absolute().parent.resolve() == folder.resolve():
        others.add(file.name)
    if others:
        hint = "Name another folder to write to: a table replaces what its folder holds."
        raise ExampleError(f"{folder} holds something else", sorted(others)[:_FEW_NAMES], hint)


def _is_other(mark: Path) -> bool:
    """Says whether a file with this common name is whole, and yet not what says that a table is."""
    try:
        row = parsed_json(plain_bytes(mark, MARK_BYTES))
    except (OSError, ValueError):
        return not (mark.parent / FILE).is_file()  # damaged, beside the examples
    return not (isinstance(row, dict) and str(row.get("schema")).startswith(KIND))
