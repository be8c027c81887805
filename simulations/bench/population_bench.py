"""`umbel bench population`: rounds of as many devices among ever more registered people, in fresh processes.

What a round costs must follow from who takes part. The people are generated, a million of them in seconds,
and lie in a table (`umbel.simulations.homes`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from umbel.device_client.weights import load_weights
from umbel.shared.errors import ExampleError
from umbel.shared.release import Release
from umbel.shared.rng import generator
from umbel.simulations.bench.rows import Row, Sample
from umbel.simulations.bench.sides import Sides
from umbel.simulations.bench.simulation_bench import OURS, Load, Reached, as_new, check_reached, ran_once
from umbel.simulations.bench.texts import words_in, words_of
from umbel.simulations.homes.table import PeopleTable
from umbel.simulations.homes.writing import TableWriter

SIZES = (1_000, 10_000, 100_000, 1_000_000)
"""How many people are registered; the first is what the others are compared with."""
BOUND = 1.1
_CHUNK = 16_384  # people that are generated at a time
_SERIAL = "serial"


@final
@dataclass(frozen=True, slots=True)
class Registered:
    """What is measured.

    Attributes:
        sizes: How many people are registered.
        clients: How many take part in a round.
        texts: Of each person: few and short, so that a million people are less than 200 MB.
        tokens: Of each text.
        steps: Private steps; there is one shared step.
        rounds: Of a process; the first one warms up.
    """

    sizes: tuple[int, ...] = SIZES
    clients: int = 100
    texts: int = 4
    tokens: int = 8
    steps: int = 4
    rounds: int = 6

    def load(self, people: int) -> Load:
        """Returns the rounds among so many."""
        return Load(people, self.clients, self.texts, self.tokens, self.steps, rounds=self.rounds)


_QUICK = Registered(sizes=(20, 1000), clients=5, rounds=2)


def people(sides: Sides, encoder: str) -> list[Row]:
    """Seconds of a round and peak memory of its process, by how many people are registered.

    Before any is told, the serial engine must reach the cohort's tensors among the fewest.

    Raises:
        BenchError: It reaches others.
    """
    found = _QUICK if sides.settings.quick else Registered()
    work = _Work(sides, encoder, found)
    least = found.sizes[0]
    once = {OURS: work.ran(OURS, least), _SERIAL: work.ran(_SERIAL, least)}
    check_reached(once, load_weights(work.release))
    ran: dict[int, list[Reached]] = {size: [] for size in found.sizes}
    for number in range(sides.settings.few):  # in turns: a machine that slows down slows all
        for size in found.sizes if number % 2 == 0 else reversed(found.sizes):
            ran[size].append(work.ran(OURS, size))
    return [row for size in found.sizes for row in _rows(work, ran, size)]


def _rows(work: _Work, ran: Mapping[int, Sequence[Reached]], size: int) -> list[Row]:
    """Returns the rows of a size; the first one is compared with nothing."""
    least = work.registered.sizes[0]
    setting = work.registered.load(size).words()
    rows = []
    for part, unit in (("a round", "s"), ("peak memory", "bytes")):
        own, first = (_sample(part, ran[among]) for among in (size, least))
        beside: dict[str, Any] = {"theirs": first, "against": f"{least:,} people", "bound": BOUND}
        rows.append(
            Row(part=part, encoder=work.encoder, setting=setting, threads=work.threads, unit=unit,  # type: ignore[arg-type]
                sense="share", ours=own, **(beside if size != least else {}))
        )  # fmt: skip
    return rows


def _sample(part: str, ran: Sequence[Reached]) -> Sample:
    if part == "a round":
        return Sample(tuple(value for own in ran for value in own.sample.values))
    return Sample(tuple(float(own.peak_bytes) for own in ran))


@final
class _Work:
    """The rounds of an encoder, among any number of people."""

    def __init__(self, sides: Sides, encoder: str, registered: Registered):
        """Makes the release."""
        self.sides, self.encoder, self.registered = sides, encoder, registered
        self.threads = max(sides.settings.threads)
        self.release = sides.release(encoder, "plora")

    def ran(self, side: str, size: int) -> Reached:
        """Runs the rounds in a fresh process, over people of whom nothing is kept."""
        self.sides.on_phase(f"{self.encoder}, {side}, {size:,} people")
        load = self.registered.load(size)
        devices = table_of(self.release, self.sides.place(f"registered-{size}"), load)
        as_new(devices)
        out = self.sides.folder / "scratch" / f"population-{self.encoder}-{side}-{size}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        order = {
            "side": side,
            "out": str(out),
            "release": str(self.release.folder),
            "devices": str(devices),
            "settings": load.settings().as_run_config(),
            "people": size,
            "threads": self.threads,
        }
        return ran_once(self.sides, f"population-{self.encoder}-{side}-{size}", order, self.threads)


def table_of(release: Release, place: Path, load: Load) -> Path:
    """Returns a folder with a table of generated people; one that is there is used again.

    Args:
        release: Its tokenizer's words make the texts, and its labels are given.
        place: The folder.
        load: How many people there are, and how many texts of how many tokens each has.
    """
    ready, wanted = place / "ready", load.words()
    with suppress(ExampleError):  # one that is not whole, or of an earlier version, is made again
        if ready.is_file() and ready.read_text() == wanted and PeopleTable(place).people == load.people:
            return place
    ready.unlink(missing_ok=True)
    with TableWriter(place) as writer:
        for batch, count in _batches(release, load, writer.schema):
            writer.add_batch(batch, count)
    assert PeopleTable(place).people == load.people
    ready.write_text(wanted)
    return place


def _batches(release: Release, load: Load, schema: Any) -> Iterator[tuple[Any, int]]:
    """Yields the rows of the people, some at a time: made by pyarrow, without an object for each text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    words, long = pa.array(words_of(release)), words_in(load.tokens)
    for start in range(0, load.people, _CHUNK):
        count = min(_CHUNK, load.people - start)
        rows = count * load.texts
        drawn = generator(0, 0, "", f"people {start}").integers(len(words), size=rows * long)
        ends = pa.array(np.arange(0, rows * long + 1, long, dtype=np.int32))
        person = pa.array(np.repeat(np.arange(start, start + count, dtype=np.int32), load.texts))
        labels = pa.array(release.manifest.labels).take(
            pa.array(np.arange(rows) % len(release.manifest.labels))
        )
        columns = {
            "person": person,
            "user": pc.cast(person, pa.string()),
            "text": pc.binary_join(pa.ListArray.from_arrays(ends, words.take(pa.array(drawn))), " "),
            "label": labels,
            "time": pa.nulls(rows, pa.float64()),
            "heldout": pa.array(np.zeros(rows, bool)),
        }
        yield pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema), count
