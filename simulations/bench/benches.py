"""Runs a benchmark: each measurement is kept as soon as it is there, so that a stopped run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import umbel
from umbel.shared.errors import ConfigError
from umbel.shared.files import sha256_bytes
from umbel.simulations.bench import (
    device_bench,
    environment_bench,
    population_bench,
    serving_bench,
    simulation_bench,
    training_bench,
)
from umbel.simulations.bench.encoders import check_encoder
from umbel.simulations.bench.machine import machine
from umbel.simulations.bench.rival_env import PEFT, PFL, rival_python, rival_versions
from umbel.simulations.bench.rows import RESULT, BenchError, Measured, Row, read_measured, write_measured
from umbel.simulations.bench.sides import Settings, Sides
from umbel.simulations.progress import Progress

Measure = Callable[[Sides, str], list[Row]]
DEVICE, SERVING, SIMULATION, POPULATION = "device", "serving", "simulation", "population"
TRAINING = "training"
ENVIRONMENT = "environment"


@final
@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement: how it is done, and whether once, or for each encoder."""

    measure: Measure
    once: bool = False


MEASUREMENTS: Mapping[str, Mapping[str, Measurement]] = {
    DEVICE: {
        ENVIRONMENT: Measurement(environment_bench.size, once=True),
        "start": Measurement(device_bench.start),
        "learn": Measurement(device_bench.learn),
        "step": Measurement(device_bench.step),
        "onboard": Measurement(device_bench.onboard),
    },
    SERVING: {
        "latency": Measurement(serving_bench.latency),
        "personalization": Measurement(serving_bench.personalization),
        "owners": Measurement(serving_bench.owners),
        "memory": Measurement(serving_bench.memory),
    },
    SIMULATION: {
        method: Measurement(simulation_bench.rounds_of(method)) for method in simulation_bench.METHODS
    },
    POPULATION: {"people": Measurement(population_bench.people)},
    TRAINING: {method: Measurement(training_bench.step_of(method)) for method in training_bench.METHODS},
}
_MEASURED = ("bench", "engines", "homes")
_LIBRARIES = {DEVICE: PEFT, SERVING: PEFT, SIMULATION: PFL}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a command line asks for.

    Attributes:
        command: "device", "serving", "simulation", "population" or "training".
        folder: The work folder.
        settings: Encoders, threads, repetitions.
        rival_env: An environment with the rival's libraries; None makes one.
        alone: Measure umbel alone.
        only: Names of measurements; all if empty.
        skip: Names of measurements that are left out.
        fresh: Measure again what is kept.
    """

    command: str
    folder: Path
    settings: Settings
    rival_env: Path | None = None
    alone: bool = False
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    fresh: bool = False


def run_bench(request: Request, progress: Progress) -> Measured:
    """Measures what is asked for, and writes it to COMMAND/result.json in the work folder.

    Raises:
        ConfigError: An encoder or a measurement is not known.
        BenchError: Something cannot be measured, or the two sides do not agree.
    """
    chosen = _chosen(request)
    for name in request.settings.models:
        check_encoder(name)
    with progress.phase("prepare") as bar:
        rival, versions = None, dict[str, str]()
        if not request.alone:
            libraries = _LIBRARIES[request.command]
            rival = rival_python(request.folder, request.rival_env, bar.words, libraries)
            versions = rival_versions(rival, libraries)
        sides = Sides(request.folder, request.settings, rival, bar.words)
    found = _machine_and_settings(request, machine(versions))
    parts: list[Measured] = []
    for name, encoder in chosen:
        title = f"{name}, {encoder}" if encoder else name
        with progress.phase(title) as bar:
            sides.on_phase = bar.words
            parts.append(_measured(request, sides, name, encoder, found))
    whole = Measured(
        command=request.command,
        settings=found.settings,
        machine=found.machine,
        seconds=round(sum(part.seconds for part in parts), 1),
        rows=tuple(row for part in parts for row in part.rows),
        notes=found.notes,
    )
    write_measured(request.folder / request.command / RESULT, whole)
    return whole


def _chosen(request: Request) -> list[tuple[str, str]]:
    """Returns (measurement, encoder) in their order; no encoder where it does not count."""
    known = MEASUREMENTS[request.command]
    wrong = [f"'{name}' is no measurement" for name in (*request.only, *request.skip) if name not in known]
    if wrong:
        raise ConfigError(
            f"umbel bench {request.command} does not measure that", wrong, f"Choose among {', '.join(known)}."
        )
    names = [
        name for name in known if name not in request.skip and (not request.only or name in request.only)
    ]
    return [
        (name, encoder)
        for name in names
        for encoder in (("",) if known[name].once else request.settings.models)
    ]


def _machine_and_settings(request: Request, told: Mapping[str, str]) -> Measured:
    settings = {
        name: json.dumps(value)
        for name, value in asdict(request.settings).items()
        if name != "models" and (name, value) != ("device", "cpu")  # as before there was another device
    }
    rival = "none" if request.alone else ", ".join(_LIBRARIES[request.command].names)
    return Measured(
        command=request.command,
        settings=settings | {"rival": rival},
        machine=told,
        seconds=0.0,
        rows=(),
        notes=_notes(request),
    )


def _notes(request: Request) -> tuple[str, ...]:
    if not request.alone or request.command in (POPULATION, TRAINING):  # which need no other environment
        return ()
    if request.command == SIMULATION:
        return ("pfl-research was not compared.",)
    return ("umbel alone: nothing was compared.",)


def _measured(request: Request, sides: Sides, name: str, encoder: str, found: Measured) -> Measured:
    """Returns one measurement, kept or taken now."""
    path = request.folder / request.command / f"{name}{'-' if encoder else ''}{encoder}.json"
    settings = {**found.settings, "code": _code(), "measurement": name, "encoder": encoder}
    if path.is_file() and not request.fresh:
        try:
            kept = read_measured(path)
        except BenchError:
            kept = None
        if kept is not None and kept.settings == settings and kept.machine == found.machine:
            return kept
    begun = time.perf_counter()
    measure = MEASUREMENTS[request.command][name].measure
    rows = measure(sides, encoder or request.settings.models[0])
    made = Measured(
        command=request.command,
        settings=settings,
        machine=found.machine,
        seconds=round(time.perf_counter() - begun, 1),
        rows=tuple(rows),
    )
    write_measured(path, made)
    return made


def _code() -> str:
    """Returns a hash of what makes a release, what a device runs, and how it is measured."""
    root = Path(umbel.__file__).parent
    parts = ("device_client", "shared", "coordinator", *(f"simulations/{own}" for own in _MEASURED))
    sources = sorted(path for part in parts for path in (root / part).rglob("*.py"))
    return sha256_bytes(b"".join(path.read_bytes() for path in sources))[:16]
