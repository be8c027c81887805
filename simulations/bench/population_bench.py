"""`umbel bench population`: rounds of as many devices among ever more registered people.

What a round costs must follow from who takes part. The people are generated, a million of them in half a
minute, and lie in a table (`umbel.simulations.homes`).

Rounds keep what texts are as tokens for the next time that somebody is asked. Among a thousand people many
soon are asked again, among a million nobody: a row says how many were. So that like is compared with like,
too, rounds are run besides that forget it. All are in fresh processes, which do a round each in turn.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np

from umbel.device_client.weights import load_weights
from umbel.shared.errors import ExampleError
from umbel.shared.examples import Example
from umbel.shared.files import atomic_write
from umbel.shared.release import Release
from umbel.shared.rng import generator
from umbel.simulations.bench.handed import chosen_in
from umbel.simulations.bench.processes import Stepwise, environment
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

_Kind: TypeAlias = tuple[str, int]
"""Whether earlier rounds are forgotten (`ROUND` or `FORGETTING`), and how many people are registered."""


@final
@dataclass(slots=True)
class _Found:
    """What was measured of a kind of rounds: seconds of each, and peak bytes of each process."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)


_Measured: TypeAlias = Mapping[_Kind, _Found]


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
    measured = {(part, size): _Found() for size in found.sizes for part in (ROUND, FORGETTING)}
    for _ in range(sides.settings.repetitions):
        _in_turns(work, measured)
    return [row for size in found.sizes for row in _rows(work, measured, size)]


def asked_before(load: Load) -> float:
    """Returns the share of those asked in the timed rounds whom an earlier round had asked, too."""
    settings, seen, again = load.settings(), set[int](), 0
    for round_ in range(1, settings.rounds + 1):
        chosen = set(chosen_in(settings, load.people, round_))
        again += len(chosen & seen)  # nobody in the first round, which is not timed
        seen |= chosen
    return again / (load.clients * (settings.rounds - 1))


def _in_turns(work: _Work, measured: _Measured) -> None:
    """Starts a process of each kind, and lets each do a round in turn: what disturbs one disturbs all."""
    for size in work.registered.sizes:
        as_new(work.devices(size))
    work.sides.on_phase(f"{work.encoder}, a round of each in turn")
    with ExitStack() as stack:
        running = {kind: stack.enter_context(work.started(*kind)) for kind in measured}
        for process in running.values():
            process.first()  # it warms up
        for number in range(1, work.registered.rounds):
            for kind in running if number % 2 else reversed(running):
                measured[kind].seconds.append(float(running[kind].step()))
        for kind, process in running.items():
            measured[kind].peaks.append(float(process.ended().peak_bytes))


def _rows(work: _Work, measured: _Measured, size: int) -> list[Row]:
    """Returns the rows of a size; the first one is compared with nothing."""
    load = work.registered.load(size)
    known = f"{load.words()}; {asked_before(load):.0%} of them asked before"
    nobody = f"{load.words()}; all of them as if for the first time"
    seconds = {kind: Sample(tuple(found.seconds)) for kind, found in measured.items()}
    peaks = {kind: Sample(tuple(found.peaks)) for kind, found in measured.items()}
    return [
        _row(work, ROUND, known, "s", (ROUND, size), seconds),
        _row(work, FORGETTING, nobody, "s", (FORGETTING, size), seconds),
        _row(work, PEAK, known, "bytes", (ROUND, size), peaks),
    ]


def _row(
    work: _Work,
    part: str,
    setting: str,
    unit: Literal["s", "bytes"],
    kind: _Kind,
    samples: Mapping[_Kind, Sample],
) -> Row:
    least = work.registered.sizes[0]
    beside: dict[str, Any] = {
        "theirs": samples[kind[0], least],
        "against": f"{least:,} people",
        "bound": BOUND,
    }
    return Row(
        part=part, encoder=work.encoder, setting=setting, threads=work.threads, unit=unit, sense="share",
        ours=samples[kind], **(beside if kind[1] != least else {}),
    )  # fmt: skip


@final
class _Work:
    """The rounds of an encoder, among any number of people."""

    def __init__(self, sides: Sides, encoder: str, registered: Registered):
        """Makes the release."""
        self.sides, self.encoder, self.registered = sides, encoder, registered
        self.threads = max(sides.settings.threads)
        self.release = sides.release(encoder, "plora")

    def devices(self, size: int) -> Path:
        """Returns the folder of so many people."""
        return table_of(self.release, self.sides.place(f"registered-{size}"), self.registered.load(size))

    def ran(self, side: str, size: int) -> Reached:
        """Runs the rounds in a fresh process, over people of whom nothing is kept."""
        self.sides.on_phase(f"{self.encoder}, {side}, {size:,} people")
        as_new(self.devices(size))
        name = f"population-{self.encoder}-{side}-{size}"
        return ran_once(self.sides, name, self._order(name, side, size), self.threads)

    def started(self, part: str, size: int) -> Stepwise:
        """Starts a process that does a round when it is told to; `FORGETTING`: it forgets who was asked."""
        forget = part == FORGETTING
        name = f"population-{self.encoder}-{'forgetting' if forget else 'keeping'}-{size}"
        order = self._order(name, OURS, size) | {"forget": forget}
        path = self.sides.place("orders") / f"{name}.json"
        atomic_write(path, json.dumps(order).encode())
        command = [sys.executable, "-m", "umbel.simulations.bench.rounds_once", str(path)]
        return Stepwise(command, environment(self.threads), Path(order["out"]))

    def _order(self, name: str, side: str, size: int) -> dict[str, Any]:
        """Returns what is to be run, with an empty folder for what comes of it."""
        out = self.sides.folder / "scratch" / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        return {
            "side": side,
            "out": str(out),
            "release": str(self.release.folder),
            "devices": str(self.devices(size)),
            "settings": self.registered.load(size).settings().as_run_config(),
            "people": size,
            "threads": self.threads,
        }


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
