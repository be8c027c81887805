"""`umbel bench population`: rounds of as many devices among ever more registered people, in fresh processes.

What a round costs must follow from who takes part. The people are generated, a million of them in half a
minute, and lie in a table (`umbel.simulations.homes`).

Rounds keep what texts are as tokens for the next time that somebody is asked. Among a thousand people many
soon are asked again, among a million nobody: a row says how many were. So that like is compared with like,
too, rounds are run besides that forget it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np

from umbel.device_client.weights import load_weights
from umbel.shared.errors import ExampleError
from umbel.shared.examples import Example
from umbel.shared.release import Release
from umbel.shared.rng import generator
from umbel.simulations.bench.handed import chosen_in
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
ROUND, FORGETTING, PEAK = "a round", "a round, earlier ones forgotten", "peak memory"

_Ran: TypeAlias = dict[int, list[Reached]]
"""How many people are registered -> the rounds of each process."""


@final
@dataclass(frozen=True, slots=True)
class Registered:
    """What is measured.

    Attributes:
        sizes: How many people are registered.
        clients: How many take part in a round.
        texts: Of each person: few and short, so that a million people are about 330 MB.
        tokens: Of each text.
        steps: Private steps; there is one shared step.
        rounds: Of a process; the first one warms up.
    """

    sizes: tuple[int, ...] = SIZES
    clients: int = 100
    texts: int = 4
    tokens: int = 8
    steps: int = 4
    rounds: int = 12

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
    kept: _Ran = {size: [] for size in found.sizes}
    forgetting: _Ran = {size: [] for size in found.sizes}
    for number in range(sides.settings.repetitions):  # in turns: a machine that slows down slows all
        for size in found.sizes if number % 2 == 0 else reversed(found.sizes):
            kept[size].append(work.ran(OURS, size))
            forgetting[size].append(work.ran(OURS, size, forget=True))
    return [row for size in found.sizes for row in _rows(work, kept, forgetting, size)]


def asked_before(load: Load) -> float:
    """Returns the share of those asked in the timed rounds whom an earlier round had asked, too."""
    settings, seen, again = load.settings(), set[int](), 0
    for round_ in range(1, settings.rounds + 1):
        chosen = set(chosen_in(settings, load.people, round_))
        again += len(chosen & seen)  # nobody in the first round, which is not timed
        seen |= chosen
    return again / (load.clients * (settings.rounds - 1))


def _rows(work: _Work, kept: _Ran, forgetting: _Ran, size: int) -> list[Row]:
    """Returns the rows of a size; the first one is compared with nothing."""
    load = work.registered.load(size)
    known = f"{load.words()}; {asked_before(load):.0%} of them asked before"
    nobody = f"{load.words()}; all of them as if for the first time"
    return [
        _row(work, ROUND, known, "s", size, {n: _seconds(own) for n, own in kept.items()}),
        _row(work, FORGETTING, nobody, "s", size, {n: _seconds(own) for n, own in forgetting.items()}),
        _row(work, PEAK, known, "bytes", size, {n: _peaks(own) for n, own in kept.items()}),
    ]


def _row(
    work: _Work, part: str, setting: str, unit: Literal["s", "bytes"], size: int, found: Mapping[int, Sample]
) -> Row:
    least = work.registered.sizes[0]
    beside: dict[str, Any] = {"theirs": found[least], "against": f"{least:,} people", "bound": BOUND}
    return Row(
        part=part, encoder=work.encoder, setting=setting, threads=work.threads, unit=unit, sense="share",
        ours=found[size], **(beside if size != least else {}),
    )  # fmt: skip


def _seconds(ran: list[Reached]) -> Sample:
    return Sample(tuple(value for own in ran for value in own.sample.values))


def _peaks(ran: list[Reached]) -> Sample:
    return Sample(tuple(float(own.peak_bytes) for own in ran))


@final
class _Work:
    """The rounds of an encoder, among any number of people."""

    def __init__(self, sides: Sides, encoder: str, registered: Registered):
        """Makes the release."""
        self.sides, self.encoder, self.registered = sides, encoder, registered
        self.threads = max(sides.settings.threads)
        self.release = sides.release(encoder, "plora")

    def ran(self, side: str, size: int, *, forget: bool = False) -> Reached:
        """Runs the rounds in a fresh process, over people of whom nothing is kept.

        Args:
            side: Which engine.
            size: How many people are registered.
            forget: Forget after a round what its people's texts are as tokens.
        """
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
            "forget": forget,
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
        for own in _generated(release, load):
            writer.add(own, checked=True)
    assert PeopleTable(place).people == load.people
    ready.write_text(wanted)
    return place


def _generated(release: Release, load: Load) -> Iterator[list[Example]]:
    """Yields each person's examples."""
    words, labels = np.array(words_of(release), object), release.manifest.labels
    for start in range(0, load.people, _CHUNK):
        count = min(_CHUNK, load.people - start)
        size = (count, load.texts, words_in(load.tokens))
        drawn = generator(0, 0, "", f"people {start}").integers(len(words), size=size)
        for number, texts in enumerate(words[drawn].tolist()):
            user, first = str(start + number), number * load.texts
            yield [
                Example(user, " ".join(text), labels[(first + row) % len(labels)])
                for row, text in enumerate(texts)
            ]
