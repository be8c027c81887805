"""Both sides of a benchmark, ready to be measured: umbel's processes, and the rival's where there is one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from umbel.shared.files import atomic_write
from umbel.shared.release import Release
from umbel.simulations.bench.encoders import BASE, MINILM, backbone_name, packaged_folder
from umbel.simulations.bench.processes import Ran, Worker, environment, run_once
from umbel.simulations.bench.releases import release_of
from umbel.simulations.bench.rows import BenchError, Sample
from umbel.simulations.bench.staging import stage_model, stage_scripts

_LEAST_S = 0.25  # a repetition that is timed in a running process lasts about as long
_MOST_REPEATS = 50
TOLERANCE = 2e-4
"""Both sides work in float32, in other orders of sums; larger differences are other answers."""


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """What a benchmark is run with.

    Attributes:
        models: Names of encoders.
        threads: Counts of threads.
        repetitions: Samples of a figure.
        quick: Measure little, to see that it works.
        device: Where the coordinator trains, and where torch runs devices' graphs: "cpu" or "cuda".
    """

    models: tuple[str, ...] = (MINILM, BASE)
    threads: tuple[int, ...] = (1, 2)
    repetitions: int = 5
    quick: bool = False
    device: str = "cpu"

    @property
    def few(self) -> int:
        """Samples of a figure that takes long: three at most."""
        return min(self.repetitions, 3)


@final
class Sides:
    """The work folder, and how to start a process of either side."""

    def __init__(self, folder: Path, settings: Settings, rival: Path | None, on_phase: Callable[[str], None]):
        """Prepares the folder.

        Args:
            folder: The work folder.
            settings: What is measured.
            rival: Python of the rival's environment; None measures umbel alone.
            on_phase: Hears what is done, where it takes long.
        """
        self.folder, self.settings, self.on_phase = folder.resolve(), settings, on_phase
        self.rival = None if rival is None else rival.absolute()
        self._scripts = stage_scripts(self.folder)

    def release(self, encoder: str, kind: str = "plora") -> Release:
        """Returns a release, made when it is first asked for."""
        return release_of(encoder, kind, self.folder, self.on_phase)

    def backbone(self, encoder: str) -> Path:
        """Returns the folder of an encoder."""
        name = backbone_name(encoder, self.folder / "encoders")
        return packaged_folder() if encoder == MINILM else Path(name)

    def staged(self, encoder: str, kind: str = "plora") -> Path:
        """Returns the folder with the same weights for the rival."""
        return stage_model(self.release(encoder, kind), self.backbone(encoder), self.folder)

    def place(self, name: str) -> Path:
        """Returns a folder for what a measurement needs."""
        place = self.folder / "scratch" / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def our_worker(self, threads: int) -> Worker:
        """Starts a process of umbel's that waits for orders."""
        command = [sys.executable, "-m", "umbel.simulations.bench.worker", str(threads)]
        return Worker(command, environment(threads), self.folder / "logs" / "ours.log")

    def rival_worker(self, threads: int) -> Worker:
        """Starts a process of the rival's that waits for orders."""
        command = [str(self.rival), "-m", "rival.worker", str(threads)]
        return Worker(command, self._rival_environment(threads), self.folder / "logs" / "rival.log")

    @contextmanager
    def workers(self, threads: int) -> Iterator[tuple[Worker, Worker | None]]:
        """Gives a process of each side that waits for orders; no second one without a rival."""
        with ExitStack() as stack:
            ours = stack.enter_context(self.our_worker(threads))
            yield ours, None if self.rival is None else stack.enter_context(self.rival_worker(threads))

    def in_turns(self, ours: Worker, theirs: Worker | None) -> tuple[Sample, Sample | None]:
        """Times the work that both have prepared."""
        rival = None if theirs is None else timing(theirs)
        return alternated(self.settings.repetitions, timing(ours), rival)

    def rival_once(self, script: str, order: Mapping[str, Any], threads: int) -> Ran:
        """Runs one of the rival's scripts to its end, in a fresh process."""
        assert self.rival is not None
        path = self.place("orders") / f"{script}.json"
        atomic_write(path, json.dumps({**order, "threads": threads}).encode())
        command = [str(self.rival), "-m", f"rival.{script}", str(path)]
        return run_once(command, self._rival_environment(threads))

    def rival_together(self, script: str, order: Mapping[str, Any], processes: int) -> Ran:
        """Runs one of the rival's scripts in processes of one thread each, which torch connects."""
        assert self.rival is not None
        path = self.place("orders") / f"{script}.json"
        atomic_write(path, json.dumps({**order, "threads": 1}).encode())
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [str(self.rival), *several, "-m", f"rival.{script}", str(path)]
        return run_once(command, self._rival_environment(1))

    def _rival_environment(self, threads: int) -> dict[str, str]:
        return environment(threads, {"PYTHONPATH": str(self._scripts)})


def alternated(
    repetitions: int, ours: Callable[[], float], theirs: Callable[[], float] | None
) -> tuple[Sample, Sample | None]:
    """Returns samples of both sides, taken in turns, so that a machine that slows down slows both.

    Who begins changes every time.
    """
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(repetitions):
        turns = [(found[0], ours)] + ([] if theirs is None else [(found[1], theirs)])
        for values, side in turns if number % 2 == 0 else reversed(turns):
            values.append(side())
    return Sample(tuple(found[0])), None if theirs is None else Sample(tuple(found[1]))


def timing(worker: Worker) -> Callable[[], float]:
    """Warms a worker's work up, and returns what gives the mean seconds of a repetition of it."""
    warm = worker.time(2)[-1]
    repeats = max(1, min(_MOST_REPEATS, round(_LEAST_S / max(warm, 1e-6))))
    return lambda: sum(worker.time(repeats)) / repeats


def check_same(what: str, ours: Sequence[Any], theirs: Sequence[Any], tolerance: float = TOLERANCE) -> None:
    """Refuses to go on where the two sides do not give the same answers: their times would mean nothing.

    Args:
        what: What is compared, for people.
        ours: Numbers, in rows of any depth.
        theirs: As many.
        tolerance: Largest difference, relative to the largest number of theirs.

    Raises:
        BenchError: They differ.
    """
    mine, other = (np.asarray(numbers, np.float64) for numbers in (ours, theirs))
    if mine.shape != other.shape:
        raise BenchError(f"{what}: the two sides answer in other shapes", [f"{mine.shape} and {other.shape}"])
    worst = float(np.abs(mine - other).max()) / (float(np.abs(other).max()) or 1.0)
    if not worst <= tolerance:
        raise BenchError(
            f"{what}: the two sides give other answers, so no times are told",
            [f"they differ by {worst:.2g}, expected {tolerance:.2g} at most"],
            "One of them does not do the work that is compared; this is a fault of the benchmark.",
        )
