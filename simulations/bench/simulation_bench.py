"""`umbel bench simulation`: the same rounds by every engine, by pfl-research and by a plain torch loop.

Each side runs in fresh processes, over the same people, whose homes are as new.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, final

import numpy as np

from umbel.coordinator.federation.settings import RoundSettings
from umbel.device_client.weights import load_weights
from umbel.shared.examples import Example
from umbel.shared.files import atomic_write
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Release
from umbel.simulations.bench.ceilings import Ceilings, measured_ceilings
from umbel.simulations.bench.encoders import MINILM, TINY, backbone_name
from umbel.simulations.bench.handed import chosen_in, encoded_people, handed
from umbel.simulations.bench.processes import environment, run_once
from umbel.simulations.bench.releases import BEHIND
from umbel.simulations.bench.roofline import (
    COMPUTED,
    TOUCHED,
    Work,
    private_step,
    private_step_behind,
    reading,
    shared_step,
    shared_step_behind,
    sizes_of,
)
from umbel.simulations.bench.rows import BenchError, Row, Sample
from umbel.simulations.bench.sides import Settings, Sides
from umbel.simulations.bench.staging import plain_name
from umbel.simulations.bench.texts import labels_of, texts_of
from umbel.simulations.homes.table import SCHEMA
from umbel.simulations.homes.writing import write_people

OURS = "cohort"
_ON_GPU = "torch:cuda:bfloat16"
ROUND = "a round"
FLOWER, PFL = "flower", "pfl"
RIVALS: Mapping[str, str] = {
    FLOWER: "Flower's simulation engine, the same ClientApp",
    PFL: "pfl-research, a process for each thread",
    "serial": "the same devices one after another",
    "plain": "a plain torch loop, without messages",
}
"""Side -> what it is, in words."""
METHODS: Mapping[str, str] = {
    "plora": "PLoRA",
    BEHIND: "a private bias, texts read once",
}
"""Whose rounds are simulated: with something personal inside the encoder, and with nothing."""
_ROUNDS_BEHIND = 100  # where a text is read once: so many that most of those who are asked were asked before
_RATE_BEHIND = 0.05  # a head alone goes far enough, and with a rate of 1 rounding would grow with every round
_TOLERANCE = 1e-5  # of the tensors that the rounds reach
_SHARE = 0.01  # of the way that a tensor has gone: a side that does not train it is found out, too
_SHARE_IN_16_BITS = 0.1  # on a GPU, where both multiply in bfloat16
_ROUNDING = 2e-7  # of float32, where a tensor has hardly moved


@final
@dataclass(frozen=True, slots=True)
class Load:
    """What is simulated.

    Attributes:
        people: How many there are.
        clients: How many take part in a round.
        texts: Of each person.
        tokens: Of each text.
        steps: Private steps; there is one shared step.
        rounds: The first one warms up.
        rate: Of the shared step.
        bounds: Side -> how many times as fast as it the cohort must be.
    """

    people: int
    clients: int
    texts: int
    tokens: int
    steps: int
    rounds: int = 4
    rate: float = 1.0  # so that every tensor goes a way that can be compared
    bounds: Mapping[str, float] = field(default_factory=dict)

    def words(self) -> str:
        """Returns the load for people."""
        own = f"{self.texts} texts x {self.tokens} tokens, {self.steps} private steps and 1 shared"
        return f"a round of {self.clients} among {self.people:,}, {own}"

    def people_words(self) -> str:
        """Returns what the people depend on."""
        return f"{SCHEMA}: {self.people} x {self.texts} x {self.tokens}"

    def settings(self) -> RoundSettings:
        """Returns the settings of the rounds."""
        return RoundSettings(
            rounds=self.rounds,
            clients=self.clients,
            seed=1,
            local_steps=1,
            local_rate=self.rate,
            batch_size=self.texts,
            recipe=LearningRecipe(steps=self.steps),
            secure=False,
        )


QUICK = Load(8, 6, 6, 8, 2, rounds=2)
_MINI = Load(200, 20, 16, 64, 3, rounds=3, bounds={FLOWER: 2.0})
_GPU = Load(1000, 256, 16, 64, 3, bounds={FLOWER: 50.0})
_SMALL = Load(1000, 100, 32, 16, 4, bounds={FLOWER: 10.0, PFL: 3.0})


def rounds_of(method: str) -> Callable[[Sides, str], list[Row]]:
    """Returns the measurement of the rounds of one of `METHODS`."""
    return partial(_rounds, method)


def _rounds(method: str, sides: Sides, encoder: str) -> list[Row]:
    """Seconds of a round by every side, after all have reached the same tensors; and what each holds at most.

    Raises:
        BenchError: They reach other tensors.
    """
    device = sides.settings.device
    work = Rounds(sides, encoder, method, _load(encoder, method, sides.settings))
    others = [side for side in RIVALS if side != PFL or sides.rival is not None]
    others = others if device == "cpu" else [FLOWER]  # the others have no graphs that run elsewhere
    ran = {side: work.ran(side) for side in (OURS, *others)}
    check_reached(ran, load_weights(work.release), _SHARE if device == "cpu" else _SHARE_IN_16_BITS)
    found = [row for side in others for row in _compared(work, ran, side)]
    return found + _roofs(work, ran[OURS], measured_ceilings(work.threads, device))


def _load(encoder: str, method: str, settings: Settings) -> Load:
    if settings.quick or encoder == TINY:
        return QUICK
    load = _SMALL
    if encoder == MINILM:
        load = _MINI if settings.device == "cpu" else _GPU
    return load if method != BEHIND else replace(load, rounds=_ROUNDS_BEHIND, rate=_RATE_BEHIND)


def _compared(work: Rounds, ran: Mapping[str, Reached], side: str) -> list[Row]:
    row = {**work.row(), "against": RIVALS[side]}
    ours, theirs = ran[OURS], ran[side]
    bound = work.load.bounds.get(side)
    found = [Row(part=ROUND, unit="s", ours=ours.sample, theirs=theirs.sample, bound=bound, **row)]
    if theirs.peak_bytes:
        peaks = [Sample((float(own.peak_bytes),)) for own in (ours, theirs)]
        found.append(
            Row(part="peak memory", unit="bytes", sense="share", ours=peaks[0], theirs=peaks[1], **row)
        )
    return found


def _roofs(work: Rounds, ours: Reached, ceilings: Ceilings) -> list[Row]:
    """Compares a round with what its matrix products need on this machine, by what they compute and touch.

    Both are means over the rounds: where a text is read once, the first rounds read most of them.
    """
    whole, mean = work.work(), Sample((fmean(ours.sample.values),))
    computed = f"{whole.flop / 1e9:.3g} GFLOP at {ceilings.flop / 1e9:.3g} GFLOP/s"
    touched = f"{whole.touched / 1e9:.3g} GB at {ceilings.touched / 1e9:.3g} GB/s, if no cache kept any"
    least = {
        COMPUTED: (whole.flop / ceilings.flop, computed),
        TOUCHED: (whole.touched / ceilings.touched, touched),
    }
    return [
        Row(part=part, unit="s", ours=mean, theirs=Sample((seconds,)), against=words, **work.row())
        for part, (seconds, words) in least.items()
    ]


@final
@dataclass(frozen=True, slots=True)
class Reached:
    """What came of a side; 0 bytes where its processes were not counted."""

    sample: Sample
    peak_bytes: int
    tensors: dict[str, np.ndarray[Any, Any]]


@final
class Rounds:
    """The rounds of a method and an encoder, for any side."""

    def __init__(self, sides: Sides, encoder: str, method: str, load: Load):
        """Makes the release and the people."""
        self.sides, self.encoder, self.method, self.load = sides, encoder, method, load
        self.threads = max(sides.settings.threads)
        self.release = sides.release(encoder, method)
        self.devices = _people(self.release, sides.place(f"people-{encoder}"), load)

    def row(self) -> dict[str, Any]:
        """Returns what all rows of these rounds have in common."""
        return {
            "encoder": self.encoder,
            "setting": f"{METHODS[self.method]}: {self.load.words()}",
            "threads": self.threads,
            "users": self.load.clients,
        }

    def work(self) -> Work:
        """Returns the work of the matrix products of a round, the mean of those that are timed."""
        load, sizes = self.load, sizes_of(self.release, self.sides.backbone(self.encoder))
        if self.method != BEHIND:
            text = (sizes, load.texts, load.tokens)
            return (private_step(*text) * load.steps + shared_step(*text)) * load.clients
        learned = private_step_behind(sizes, load.texts) * load.steps + shared_step_behind(sizes, load.texts)
        read = reading(sizes, load.texts, load.tokens) * (self._new() / (load.rounds - 1))
        return learned * load.clients + read

    def _new(self) -> int:
        """Returns how many people take part for the first time after the first round, which is not timed."""
        settings = self.load.settings()
        first, *timed = (set(chosen_in(settings, self.load.people, n + 1)) for n in range(settings.rounds))
        return len(set().union(*timed) - first)

    def ran(self, side: str) -> Reached:
        """Runs the rounds by a side."""
        self.sides.on_phase(f"{self.encoder}, {self.method}, {side}")
        out = self.sides.folder / "scratch" / f"rounds-{self.encoder}-{self.method}-{side}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        as_new(self.devices)
        return self._pfl(out) if side == PFL else self._ours(side, out)

    def _ours(self, side: str, out: Path) -> Reached:
        order = {
            "side": side,
            "out": str(out),
            "release": str(self.release.folder),
            "devices": str(self.devices),
            "backbone": backbone_name(self.encoder, self.sides.folder / "encoders"),
            "method": self.method,
            "settings": self.load.settings().as_run_config(),
            "people": self.load.people,
            "threads": self.threads,
            "compute": None if self.sides.settings.device == "cpu" else _ON_GPU,
        }
        # Flower's processes have one thread each, and as many of them as the others have threads.
        flower = side == FLOWER
        name = f"rounds-{self.encoder}-{self.method}-{side}"
        found = ran_once(self.sides, name, order, 1 if flower else self.threads)
        return replace(found, peak_bytes=0) if flower else found

    def _pfl(self, out: Path) -> Reached:
        settings, drawn = self.load.settings(), out / "drawn.npz"
        people = encoded_people(self.release, self.devices, self.load.people)
        np.savez(drawn, **handed(self.release, people, settings))
        names = {plain_name(name): name for name in self.release.manifest.trainables}
        assert settings.recipe is not None
        order = {
            "model": str(self.sides.staged(self.encoder, self.method)),
            "drawn": str(drawn),
            "out": str(out),
            "trainables": list(names),
            "recipe": settings.recipe.at(self.load.texts).as_json(),
            "batch_size": min(settings.batch_size, self.load.texts),
            "settings": asdict(settings),
        }
        # Everyone of a round is asked once only where each process has as many of them.
        processes = next(n for n in range(self.threads, 0, -1) if self.load.clients % n == 0)
        self.sides.rival_together("rounds", order, processes)
        seconds = json.loads((out / "seconds.json").read_bytes())
        peak = sum(json.loads((out / f"peak-{rank}.json").read_bytes()) for rank in range(processes))
        found = np.load(out / "tensors.npz")
        return Reached(Sample(tuple(seconds[1:])), peak, {names[name]: found[name] for name in found})


def ran_once(sides: Sides, name: str, order: Mapping[str, Any], threads: int) -> Reached:
    """Runs rounds in a fresh process; the first of them is not timed.

    Args:
        sides: The work folder.
        name: Of the order.
        order: What to run; see `rounds_once`.
        threads: Of every pool of threads.
    """
    path = sides.place("orders") / f"{name}.json"
    atomic_write(path, json.dumps(order).encode())
    command = [sys.executable, "-m", "umbel.simulations.bench.rounds_once", str(path)]
    found = run_once(command, environment(threads))
    told = json.loads(found.printed.splitlines()[-1])
    tensors = dict(np.load(Path(order["out"]) / "tensors.npz"))
    return Reached(Sample(tuple(told["seconds"][1:])), found.peak_bytes + told["others_bytes"], tensors)


def as_new(devices: Path) -> None:
    """Forgets what a side has left in people's homes, so that the next one does the same work."""
    for left in devices.glob("*.table"):
        left.unlink()


def check_reached(ran: Mapping[str, Reached], first: Mapping[str, FloatArray], share: float = _SHARE) -> None:
    """Refuses to go on where a side has reached other tensors than the cohort.

    Args:
        ran: Side -> what came of it.
        first: The tensors that the rounds began with.
        share: Of the way that a tensor has gone, how far sides may be apart.

    Raises:
        BenchError: A side has; all are told.
    """
    problems = []
    for side in (side for side in RIVALS if side in ran):
        for name, value in ran[OURS].tensors.items():
            gap = float(np.abs(ran[side].tensors[name] - value).max())
            allowed = share * float(np.abs(value - first[name]).max()) + _ROUNDING
            allowed = min(_TOLERANCE, allowed) if share == _SHARE else allowed
            if not gap <= allowed:
                problems.append(f"{OURS} and {side}: {name} differs by {gap:.2g}, expected {allowed:.2g}")
    if problems:
        raise BenchError(
            "the rounds reach other tensors, so no times are told",
            problems,
            "One of them does not do the work that is compared; this is a fault of the benchmark.",
        )


def _people(release: Release, place: Path, load: Load) -> Path:
    """Returns the table of the simulated devices' people."""
    ready, wanted = place / "ready", load.people_words()
    if ready.is_file() and ready.read_text() == wanted:
        return place
    shutil.rmtree(place, ignore_errors=True)
    texts = texts_of(release, load.people * load.texts, load.tokens)
    labels = [release.manifest.labels[label] for label in labels_of(load.texts, 2)]
    people = (
        [Example("owner", text, label) for text, label in zip(own, labels, strict=True)]
        for own in _batched(texts, load.texts)
    )
    write_people(place, ((own, ()) for own in people))
    ready.write_text(wanted)
    return place


def _batched(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yields `size` texts at a time."""
    return (texts[start : start + size] for start in range(0, len(texts), size))
