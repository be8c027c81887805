"""Runs it: per seed people, start, central training, rounds, new people. A stopped run goes on where it was.

runs/NAME/
  run.json                what this run is
  read/                   what everybody's texts are read as
  seed-0/training, start  the first release
         devices/000000   homes of the people whose examples stay on their devices
         central-0, ...   looks and best values of what is tried
         federated-0, ...
         after-central, after-rounds    the releases that are measured in the end
         seed.json        what came out under the seed
  result.json             everything
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from umbel.coordinator.artifacts import TrainedModel
from umbel.coordinator.publish import publish_update
from umbel.coordinator.server_app import release_trainables
from umbel.coordinator.train import train
from umbel.device_client.engine import Engine
from umbel.device_client.simulated import SimulatedHome
from umbel.shared.checks import parsed_json
from umbel.shared.errors import ConfigError
from umbel.shared.files import atomic_write, refuse_taken, sole_use
from umbel.shared.profile import FloatArray
from umbel.shared.release import Release
from umbel.simulations.against_central.central import Pool
from umbel.simulations.against_central.config import AgainstCentralConfig
from umbel.simulations.against_central.federated import Devices, run_federated, run_secure, traffic_of
from umbel.simulations.against_central.groups import Groups, examples_of, grouped
from umbel.simulations.against_central.library import Library
from umbel.simulations.against_central.looking import Looking
from umbel.simulations.against_central.panel import Panel
from umbel.simulations.against_central.results import (
    AgainstCentral,
    Scores,
    Secure,
    Seed,
    Traffic,
    Tried,
    chosen,
    machine_row,
    read,
    write,
)
from umbel.simulations.people import gather, make_devices
from umbel.simulations.progress import Progress
from umbel.simulations.simulate import described, machine, published_once

RUN, RESULT, SEED = "run.json", "result.json", "seed.json"
_MADE = "made"


def run_against_central(
    config: AgainstCentralConfig,
    out: Path,
    *,
    threads: int = 1,
    restart: bool = False,
    progress: Progress,
) -> AgainstCentral:
    """Runs what is missing in `out`, and writes result.json.

    Args:
        config: What to do.
        out: The run's folder.
        threads: Threads of training and measuring.
        restart: Begin again, whatever is there.
        progress: Shows people how it goes.

    Raises:
        BusyError: Another process is at work in `out`.
        ConfigError: `out` holds another run, or there are too few people.
        UmbelError: A phase failed; what was finished is kept.
    """
    refuse_taken(out, own=RUN)
    with sole_use(out):
        _claim(out, config, restart)
        seeds = tuple(_seed(config, seed, out / f"seed-{seed}", threads, progress) for seed in config.seeds)
        found = AgainstCentral(
            schema="umbel.against-central/1",
            config=described(config),
            machine=machine_row(machine(threads)),
            seeds=seeds,
        )
        write(out / RESULT, found)
    return found


def _claim(out: Path, config: AgainstCentralConfig, restart: bool) -> None:
    """Makes the folder this run's own; seeds may be added to those of an earlier run.

    Raises:
        ConfigError: It holds another run.
    """
    own = {**described(config), "seeds": None}
    path = out / RUN
    if restart and path.is_file():
        for folder in (*out.glob("seed-*"), out / "read"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (out / RESULT, path):
            file.unlink(missing_ok=True)
    if not path.is_file():
        atomic_write(path, json.dumps({"config": own}, indent=2).encode() + b"\n")
        return
    try:
        found = parsed_json(path.read_bytes())["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged", [type(error).__name__], "Choose another --out.") from error
    if found != json.loads(json.dumps(own)):
        raise ConfigError(
            f"{out} holds a run with another configuration",
            hint="Choose another --out, or pass --restart to begin again there (it is overwritten).",
        )


@final
@dataclass(frozen=True, slots=True)
class _Place:
    """What every step under one seed needs."""

    config: AgainstCentralConfig
    seed: int
    folder: Path
    threads: int
    progress: Progress
    groups: Groups


def _seed(config: AgainstCentralConfig, seed: int, folder: Path, threads: int, progress: Progress) -> Seed:
    if (folder / SEED).is_file():
        return read(Seed, folder / SEED)
    with progress.phase(f"seed {seed}: people"):
        population = gather(config.data, seed, config.coordinator.task.labels).population
        groups = grouped(population, config.groups, config.evaluation, seed)
    place = _Place(config, seed, folder, threads, progress, groups)
    trained, start = _start(place, population.labels)
    engine = Engine(start, threads=threads)
    with progress.phase(f"seed {seed}: read the texts") as bar:
        everybody = (*population.seen.values(), *population.unseen.values())
        texts = (example.text for user in everybody for example in (*user.support, *user.query))
        # Beside the seeds' own folders: all of them have the same texts and the same encoder.
        library = Library(engine, texts, folder.parent / "read", bar.step)
    validation, unseen = Panel(library, groups.validation), Panel(library, groups.unseen)
    central, central_values = _central(place, trained, library, validation, unseen)
    devices = _devices(place, library)
    federated, federated_values, traffic = _federated(place, devices, start, validation, unseen)
    secure = _secure(place, devices, start, chosen(federated))
    found = Seed(
        seed=seed,
        public=len(groups.public),
        devices=len(groups.devices),
        validation=len(groups.validation),
        public_examples=len(examples_of(groups.public)),
        device_examples=len(examples_of(groups.devices)),
        people=tuple(person.user for person in groups.unseen),
        asked=tuple(len(person.asked) for person in groups.unseen),
        shared_numbers=sum(value.size for value in central_values.values()),
        profile_bytes=start.manifest.profile.packed_bytes,
        start=Scores.of(unseen.measure()),
        central=_after(place, start, central_values, "after-central", unseen),
        federated=_after(place, start, federated_values, "after-rounds", unseen),
        central_tried=central,
        federated_tried=federated,
        traffic=traffic,
        secure=secure,
    )
    write(folder / SEED, found)
    return found


def _start(place: _Place, labels: tuple[str, ...]) -> tuple[TrainedModel, Release]:
    """Trains on the public people, and publishes."""
    config = place.config.coordinator
    task = config.task.model_copy(update={"labels": labels})  # a few people may not give every label
    config = config.model_copy(update={"seed": place.seed, "task": task})
    examples, folder = examples_of(place.groups.public), place.folder / "start"
    with place.progress.phase(f"seed {place.seed}: train the first release") as bar:
        trained = train(
            config, examples, place.folder / "training", threads=place.threads, on_progress=bar.training
        )
    with place.progress.phase(f"seed {place.seed}: publish it") as bar:
        return trained, published_once(trained, folder, int8=False, on_phase=bar.words)


def _central(
    place: _Place, trained: TrainedModel, library: Library, validation: Panel, unseen: Panel
) -> tuple[tuple[Tried, ...], dict[str, FloatArray]]:
    config, names = place.config, list(library.engine.release.manifest.trainables)
    looking = [
        Looking(place.folder / f"central-{number}", options, validation, unseen)
        for number, options in enumerate(config.central.tried)
    ]
    steps = [
        config.training(number, place.seed).training.max_steps for number in range(len(config.central.tried))
    ]
    if any(_last(own.tried) < most for own, most in zip(looking, steps, strict=True)):
        with place.progress.phase(f"seed {place.seed}: central training") as bar:
            pool = Pool(trained, library, place.groups.pooled(), place.threads)
            for number, own in enumerate(looking):
                if _last(own.tried) >= steps[number]:
                    continue

                def look(
                    at: int, values: Mapping[str, FloatArray], own: Looking = own, n: int = number
                ) -> None:
                    bar.step(at, steps[n], f"options {n}, nll {own.look(at, values).nll:.4f}")

                changed = config.training(number, place.seed)
                pool.train(changed, names, config.central.look_every, place.folder / "trainer", look)
    tried = tuple(own.tried for own in looking)
    return tried, looking[chosen(tried)].best_values()


def _last(tried: Tried) -> int:
    return max((look.at for look in tried.looks), default=-1)


def _devices(place: _Place, library: Library) -> Devices:
    """Makes the homes, unless that was done, with what their texts are read as: the devices' own reading."""
    people, folder = place.groups.devices, place.folder / "devices"
    if not (folder / _MADE).is_file():
        make_devices(folder, people, place.config.groups.device_examples, 1)
        for number, user in enumerate(people):
            home = SimulatedHome(folder / f"{number:06d}")
            home.keep_read(library.engine, library.read(user.support))
        atomic_write(folder / _MADE, b"")
    return Devices(folder, len(people))


def _federated(
    place: _Place, devices: Devices, start: Release, validation: Panel, unseen: Panel
) -> tuple[tuple[Tried, ...], dict[str, FloatArray], Traffic]:
    config, looking, records = place.config, [], []
    for number, options in enumerate(config.federated.tried):
        own = Looking(place.folder / f"federated-{number}", options, validation, unseen)
        looking.append(own)
        with place.progress.phase(f"seed {place.seed}: rounds, options {number}") as bar:

            def look(at: int, values: Mapping[str, FloatArray], own: Looking = own, bar: Any = bar) -> None:
                bar.note = f"nll {own.look(at, values).nll:.4f}"

            look(0, release_trainables(start))
            records.append(
                run_federated(
                    start,
                    devices,
                    config.rounds_of(number),
                    config.federated.rates,
                    place.seed,
                    config.federated.look_every,
                    place.folder / f"federated-{number}",
                    look,
                    bar.step,
                )
            )
    tried = tuple(own.tried for own in looking)
    best = chosen(tried)
    return tried, looking[best].best_values(), traffic_of(records[best][: tried[best].best().at])


def _secure(place: _Place, devices: Devices, start: Release, number: int) -> Secure | None:
    rounds = place.config.federated.secure_rounds
    if not rounds:
        return None
    with place.progress.phase(f"seed {place.seed}: {rounds} rounds with secure sums"):
        config = place.config.rounds_of(number).model_copy(update={"rounds": rounds})
        return run_secure(start, devices, config, place.seed, place.folder / "secure")


def _after(
    place: _Place, start: Release, values: Mapping[str, FloatArray], name: str, unseen: Panel
) -> Scores:
    """Publishes values, and measures the new people under that release."""
    release = publish_update(start, values, place.folder / name)
    return Scores.of(unseen.measure(engine=Engine(release, threads=place.threads)))
