"""`umbel bench simulation`: the same rounds by every engine and by a plain torch loop, in fresh processes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from umbel.coordinator.federation.settings import RoundSettings
from umbel.shared.examples import Example, write_examples
from umbel.shared.files import atomic_write
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Release
from umbel.simulations.bench.encoders import MINILM, TINY, backbone_name
from umbel.simulations.bench.processes import environment, run_once
from umbel.simulations.bench.rows import BenchError, Row, Sample
from umbel.simulations.bench.sides import Sides
from umbel.simulations.bench.texts import labels_of, texts_of

OURS = "cohort"
RIVALS: Mapping[str, str] = {
    "flower": "Flower's simulation engine, the same ClientApp",
    "serial": "the same devices one after another",
    "plain": "a plain torch loop, without messages",
}
"""Side -> what it is, in words."""
_TOLERANCE = 1e-5  # of the tensors that the rounds reach


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
        bound: How many times as fast as Flower's engine the cohort must be.
    """

    people: int
    clients: int
    texts: int
    tokens: int
    steps: int
    rounds: int = 4
    bound: float | None = None

    def words(self) -> str:
        """Returns the load for people."""
        own = f"{self.texts} texts x {self.tokens} tokens, {self.steps} private steps and 1 shared"
        return f"a round of {self.clients} among {self.people:,}, {own}"

    def settings(self) -> RoundSettings:
        """Returns the settings of the rounds."""
        return RoundSettings(
            rounds=self.rounds,
            clients_per_round=self.clients,
            seed=1,
            local_steps=1,
            batch_size=self.texts,
            recipe=LearningRecipe(steps=self.steps),
            secure=False,
        )


_QUICK = Load(8, 5, 6, 8, 2, rounds=2)
_MINI = Load(200, 20, 16, 64, 3, rounds=3, bound=2.0)
_SMALL = Load(1000, 100, 32, 16, 4, bound=10.0)


def rounds(sides: Sides, encoder: str) -> list[Row]:
    """Seconds of a round by every side, after all have reached the same tensors; and what each holds at most.

    Raises:
        BenchError: They reach other tensors.
    """
    load = _QUICK if sides.settings.quick or encoder == TINY else _MINI if encoder == MINILM else _SMALL
    release, threads = sides.release(encoder), max(sides.settings.threads)
    devices = _people(release, sides.place(f"people-{encoder}"), load)
    order = {
        "release": str(release.folder),
        "devices": str(devices),
        "backbone": backbone_name(encoder, sides.folder / "encoders"),
        "settings": load.settings().as_run_config(),
        "people": load.people,
        "threads": threads,
    }
    ran = {side: _ran(sides, encoder, side, order, threads) for side in (OURS, *RIVALS)}
    _check_same(ran)
    found = []
    for side, words in RIVALS.items():
        bound = load.bound if side == "flower" else None
        row: dict[str, Any] = {"encoder": encoder, "setting": load.words(), "threads": threads}
        found.append(
            Row(part="a round", unit="s", ours=ran[OURS].sample, theirs=ran[side].sample, against=words,
                bound=bound, **row)
        )  # fmt: skip
        if side == "flower":
            continue
        peaks = [Sample((float(ran[name].peak_bytes),)) for name in (OURS, side)]
        found.append(
            Row(part="peak memory", unit="bytes", sense="share", ours=peaks[0], theirs=peaks[1],
                against=words, **row)
        )  # fmt: skip
    return found


@final
@dataclass(frozen=True, slots=True)
class _Ran:
    sample: Sample
    peak_bytes: int
    tensors: dict[str, np.ndarray[Any, Any]]


def _ran(sides: Sides, encoder: str, side: str, order: Mapping[str, Any], threads: int) -> _Ran:
    sides.on_phase(f"{encoder}, {side}")
    out = sides.folder / "scratch" / f"rounds-{encoder}-{side}"
    shutil.rmtree(out, ignore_errors=True)
    path = sides.place("orders") / f"rounds-{encoder}-{side}.json"
    atomic_write(path, json.dumps({**order, "side": side, "out": str(out)}).encode())
    # Flower's processes have one thread each, and as many of them as the others have threads.
    command = [sys.executable, "-m", "umbel.simulations.bench.rounds_once", str(path)]
    found = run_once(command, environment(1 if side == "flower" else threads))
    seconds = json.loads(found.printed.splitlines()[-1])["seconds"]
    tensors = dict(np.load(out / "tensors.npz"))
    return _Ran(Sample(tuple(seconds[1:])), found.peak_bytes, tensors)


def _check_same(ran: Mapping[str, _Ran]) -> None:
    problems = []
    for side in RIVALS:
        gaps = [np.abs(ran[side].tensors[name] - value).max() for name, value in ran[OURS].tensors.items()]
        if not max(gaps) <= _TOLERANCE:
            problems.append(f"{OURS} and {side} differ by {max(gaps):.2g}, expected {_TOLERANCE:g} at most")
    if problems:
        raise BenchError(
            "the rounds reach other tensors, so no times are told",
            problems,
            "One of them does not do the work that is compared; this is a fault of the benchmark.",
        )


def _people(release: Release, place: Path, load: Load) -> Path:
    """Returns the homes of the simulated devices."""
    ready, wanted = place / "ready", load.words()
    if ready.is_file() and ready.read_text() == wanted:
        return place
    shutil.rmtree(place, ignore_errors=True)
    texts = texts_of(release, load.people * load.texts, load.tokens)
    for number in range(load.people):
        own = texts[number * load.texts : (number + 1) * load.texts]
        labels = [release.manifest.labels[label] for label in labels_of(load.texts, 2)]
        rows = [Example("owner", text, label) for text, label in zip(own, labels, strict=True)]
        write_examples(place / f"{number:06d}" / "examples.jsonl", rows)
    ready.write_text(wanted)
    return place
