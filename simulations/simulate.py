"""`umbel simulate`: data, training, release, rounds with seen people, people never met, report.

Every phase leaves its work in the run's folder and is not done again there, so that a stopped run goes on:

    runs/NAME/
      run.json              what this run is; another one does not go on in its folder
      training/             checkpoints, metrics, the finished model
      release/              what was published after training
      devices/              a table of the seen people's devices (`simulations/homes`)
      rounds/               what the rounds have reached
      release-after-rounds/ the release that is measured
      evaluation/           people measured so far
      result.json           every figure
      report.html           the same, to look at
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from umbel.coordinator.artifacts import TrainedModel
from umbel.coordinator.federation.settings import SEEDED
from umbel.coordinator.publish import publish, publish_update
from umbel.coordinator.train import read_finished, train
from umbel.device_client.engine import ONNXRUNTIME, Engine
from umbel.shared.checks import parsed_json, shown
from umbel.shared.errors import ConfigError
from umbel.shared.files import atomic_write, refuse_taken, sha256_bytes, sole_use
from umbel.shared.release import Release, read_release
from umbel.simulations.clock import Clock
from umbel.simulations.data.splits import UserExamples
from umbel.simulations.engines import RoundsResult, check_cluster, check_compute, run_rounds
from umbel.simulations.evaluation import evaluate_users, reachable
from umbel.simulations.experiment import ExperimentConfig
from umbel.simulations.people import People, gather, make_table, seen_examples
from umbel.simulations.progress import Progress
from umbel.simulations.results import (
    Backbone,
    CurvePoint,
    Data,
    Machine,
    Result,
    Round,
    Seen,
    Training,
    Unseen,
    read_result,
    write_result,
)
from umbel.simulations.summary import summarise_unseen

if TYPE_CHECKING:
    from umbel.simulations.against_central.config import AgainstCentralConfig

RUN = "run.json"
RESULT = "result.json"
REPORT = "report.html"
_ANOTHER = "Choose another --out, or pass --restart to begin again there (it is overwritten)."
_VERSIONS = ("numpy", "torch", "transformers", "onnxruntime", "flwr")


def simulate(
    name: str,
    config: ExperimentConfig,
    out: Path,
    *,
    threads: int = 2,
    workers: int = 1,
    ray_address: str | None = None,
    compute: str | None = None,
    restart: bool = False,
    training: Path | None = None,
    progress: Progress,
) -> Result:
    """Runs an experiment in `out`, or what is left of it, and writes result.json and report.html.

    Args:
        name: The experiment's name.
        config: What to do.
        out: The run's folder.
        threads: Threads of training and measuring.
        workers: Processes that the flower engine runs devices in; the cohort engine has `threads`.
        ray_address: A Ray cluster that the flower engine runs devices on; see `run_rounds`.
        compute: What runs the graphs of devices in rounds; onnxruntime if None. A run goes on with the same.
        restart: Begin again, whatever is there.
        training: A finished training of the same people to take instead of training; the recipe is chosen
            anew where [recipe] differs.
        progress: Shows people how it goes.

    Raises:
        BusyError: Another process is at work in `out`.
        ConfigError: `out` holds another run, or one over other examples; or torchrun has started this.
        UmbelError: A phase failed; what was finished is kept.
    """
    _refuse_workers()
    refuse_taken(out, own=RUN)
    check_cluster(config.rounds.engine, ray_address)
    check_compute(compute)
    if training is not None and restart and training.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"--restart would remove the training in {training}",
            hint="Copy it elsewhere first.",
        )
    with sole_use(out):
        if not restart:
            _refuse_another(out, name, config, compute or ONNXRUNTIME)
        # Before the folder is cleared or claimed: a mistyped path must cost nobody their run or its place.
        begun = time.perf_counter()
        with progress.phase("people"):
            people = gather(config.data, config.coordinator.seed, config.coordinator.task.labels)
        reachable(_newcomers(people, config), config.evaluation.k, progress.say)
        if training is not None:
            read_finished(config.coordinator, seen_examples(people.population), training)
        if restart:
            _clear(out)
        _claim(out, name, config, people, compute or ONNXRUNTIME)
        if (out / RESULT).is_file():
            return read_result(out / RESULT)
        clock = Clock(out / "seconds.json")
        clock.load()
        clock.add("data", time.perf_counter() - begun)
        return _run(
            name, config, people, out, threads, workers, ray_address, compute, training, clock, progress
        )


def _run(
    name: str,
    config: ExperimentConfig,
    people: People,
    out: Path,
    threads: int,
    workers: int,
    ray_address: str | None,
    compute: str | None,
    training: Path | None,
    clock: Clock,
    progress: Progress,
) -> Result:
    """Does what follows the data, or what is left of it."""
    with clock.phase("train"), progress.phase("train what everyone shares") as bar:
        examples = seen_examples(people.population)
        trained = train(
            config.coordinator,
            examples,
            out / "training",
            threads=threads,
            finished=training,
            on_progress=bar.training,
        )
    with clock.phase("publish"), progress.phase("publish: export, compare, write") as bar:
        texts = list(dict.fromkeys(example.text for example in examples))
        release = published_once(trained, out / "release", texts=texts, on_phase=bar.words)
    if config.rounds.rounds and config.rounds.noise_multiplier:
        progress.say(SEEDED)
    with clock.phase("rounds"), progress.phase("federated rounds") as bar:
        cohort = config.rounds.engine == "cohort"
        reached = _rounds(
            config, people, release, out, threads if cohort else workers, ray_address, compute, bar
        )
        final = _after_rounds(release, reached, out)
    engine = Engine(final, threads=threads)
    with clock.phase("evaluate"), progress.phase("people never met") as bar:
        unseen = _unseen(engine, people, config, out, bar)
    with clock.phase("evaluate seen"), progress.phase("people seen in training") as bar:
        seen = _seen(engine, people, config, out, bar)
    result = _result(
        name, config, people, trained, final, reached, unseen, seen, clock.seconds, threads, compute
    )
    write_outputs(out, result)
    return result


def write_outputs(out: Path, result: Result) -> None:
    """Writes report.html and then result.json, which says that the run is finished."""
    from umbel.simulations.report import write_report

    write_report(out / REPORT, result)
    write_result(out / RESULT, result)


def identity(name: str, config: ExperimentConfig) -> str:
    """Returns the hash that tells runs apart."""
    row = [name, described(config)]
    return sha256_bytes(json.dumps(row, sort_keys=True).encode())


def described(config: ExperimentConfig | AgainstCentralConfig) -> dict[str, Any]:
    """Returns the configuration as JSON; of the data's path only the last part."""
    row: dict[str, Any] = config.model_dump(mode="json")
    if config.data.path is not None:
        row["data"]["path"] = Path(config.data.path).name
    return row


def _refuse_workers() -> None:
    """Refuses to be one of several processes that torchrun has started."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            "a simulation is one process, and torchrun starts several",
            hint="Start it without torchrun, which is for: umbel coordinator train.",
        )


def _refuse_another(out: Path, name: str, config: ExperimentConfig, compute: str) -> None:
    """Raises ConfigError if the folder holds another run."""
    path = out / RUN
    if not path.is_file():
        return
    try:
        row = parsed_json(path.read_bytes())
        found, computed = row["identity"], row.get("compute", ONNXRUNTIME)  # earlier runs did not say it
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged", [type(error).__name__], "Choose another --out.") from error
    if found != identity(name, config):
        raise ConfigError(f"{out} holds a run with another configuration", hint=_ANOTHER)
    if computed != compute:
        problem = f"compute was {shown(str(computed))}, is now {shown(compute)}"
        raise ConfigError(f"{out} holds a run whose devices computed by something else", [problem], _ANOTHER)


def _claim(out: Path, name: str, config: ExperimentConfig, people: People, compute: str) -> None:
    """Makes the folder this run's own, or refuses one whose run has other examples under the same path."""
    if not (out / RUN).is_file():
        row = {
            "experiment": name,
            "identity": identity(name, config),
            "compute": compute,
            "examples": people.digest(),
            "config": described(config),
        }
        atomic_write(out / RUN, json.dumps(row, indent=2).encode() + b"\n")
        return
    found = json.loads((out / RUN).read_text(encoding="utf-8")).get("examples")
    if found != people.digest():
        raise ConfigError(
            f"{out} holds a run of an earlier umbel, which did not note its examples"
            if found is None
            else f"{out} holds a run over other examples: the data have changed since",
            hint=_ANOTHER,
        )


def _clear(out: Path) -> None:
    """Removes a run, and only a run: a folder without run.json is left alone."""
    import shutil

    if not (out / RUN).is_file():
        return
    for part in ("training", "release", "devices", "rounds", "release-after-rounds", "evaluation"):
        shutil.rmtree(out / part, ignore_errors=True)
    for file in (RESULT, REPORT, "seconds.json", RUN):
        (out / file).unlink(missing_ok=True)


def published_once(trained: TrainedModel, folder: Path, **how: Any) -> Release:
    """Publishes, unless the folder already holds the release of this very training.

    Args:
        trained: The training.
        folder: Where the release goes.
        how: As in `publish`.
    """
    mark = folder / "training-identity"
    if mark.is_file() and mark.read_text(encoding="utf-8") == trained.identity:
        return read_release(folder)
    release = publish(trained, folder, **how)
    atomic_write(mark, trained.identity.encode())
    return release


def _panel(people: People) -> list[UserExamples]:
    return list(people.population.seen.values())


def _rounds(
    config: ExperimentConfig,
    people: People,
    release: Release,
    out: Path,
    workers: int,
    ray_address: str | None,
    compute: str | None,
    bar: Any,
) -> RoundsResult | None:
    if config.rounds.rounds == 0:
        return None
    devices = _panel(people)
    make_table(out / "devices", devices, config.rounds.device_examples, config.rounds.device_heldout)
    return run_rounds(
        config.rounds.engine,
        release_folder=release.folder,
        devices_folder=out / "devices",
        clients_total=len(devices),
        settings=config.rounds.settings(config.coordinator.seed),
        out=out / "rounds",
        workers=workers,
        ray_address=ray_address,
        compute=compute,
        on_round=lambda record: bar.step(
            record.round, config.rounds.rounds, _round_words(record.seen_accuracy)
        ),
    )


def _round_words(accuracy: float | None) -> str:
    return "" if accuracy is None else f"seen {accuracy:.3f}"


def _after_rounds(release: Release, reached: RoundsResult | None, out: Path) -> Release:
    if reached is None or not reached.rounds:
        return release
    return publish_update(release, reached.trainables, out / "release-after-rounds")


def _newcomers(people: People, config: ExperimentConfig) -> list[UserExamples]:
    return list(people.population.unseen.values())[: config.evaluation.users]


def _silent(words: str) -> None:
    """Says nothing; it was said when the run began."""


def _unseen(engine: Engine, people: People, config: ExperimentConfig, out: Path, bar: Any) -> Unseen:
    evaluation = config.evaluation
    users = _newcomers(people, config)
    by_k = evaluate_users(
        engine,
        users,
        reachable(users, evaluation.k, _silent),
        query=evaluation.query,
        batch_users=evaluation.batch_users,
        journal=out / "evaluation" / "unseen.jsonl",
        on_users=bar.step,
    )
    return summarise_unseen(
        by_k,
        seed=config.coordinator.seed,
        bayes=_bayes(people.bayes, users, evaluation.query),
        generic_bayes=_bayes(people.generic_bayes, users, evaluation.query),
    )


def _bayes(best: Any, users: Sequence[UserExamples], query: int) -> Any:
    if best is None:
        return None
    return np.array([best(user.user, [example.text for example in user.query[:query]]) for user in users])


def _seen(engine: Engine, people: People, config: ExperimentConfig, out: Path, bar: Any) -> Seen | None:
    users = _panel(people)[: config.rounds.evaluate_clients]
    if not users:
        return None
    most = config.rounds.device_examples
    found = evaluate_users(
        engine,
        users,
        [most],
        query=config.rounds.device_heldout,
        batch_users=config.evaluation.batch_users,
        journal=out / "evaluation" / "seen.jsonl",
        on_users=bar.step,
    )[most]
    return Seen(
        users=len(users),
        generic_accuracy=float(np.mean(found.generic)),
        personal_accuracy=float(np.mean(found.personal)),
    )


def _result(
    name: str,
    config: ExperimentConfig,
    people: People,
    trained: TrainedModel,
    release: Release,
    reached: RoundsResult | None,
    unseen: Unseen,
    seen: Seen | None,
    seconds: Mapping[str, float],
    threads: int,
    compute: str | None,
) -> Result:
    population, manifest = people.population, release.manifest
    return Result(
        experiment=name,
        seed=config.coordinator.seed,
        engine=config.rounds.engine,
        compute=compute or ONNXRUNTIME,
        data=Data(
            name=people.name,
            users_seen=len(population.seen),
            users_unseen=len(population.unseen),
            users_skipped=len(population.skipped),
            examples=people.examples,
            labels=len(population.labels),
        ),
        backbone=Backbone(name=manifest.backbone["name"], sha256=manifest.backbone["sha256"]),
        methods=tuple(manifest.methods),
        profile_bytes=manifest.profile.packed_bytes,
        release=release.release_id,
        rounds=_round_rows(reached),
        seen=seen,
        unseen=unseen,
        training=_training(trained.report),
        seconds=dict(seconds),
        machine=machine(threads),
        config=described(config),
    )


def _round_rows(reached: RoundsResult | None) -> tuple[Round, ...]:
    if reached is None:
        return ()
    keys = ("round", "clients", "failures", "seconds", "bytes_up", "bytes_down", "seen_accuracy")
    return tuple(
        Round(
            **{key: getattr(record, key) for key in keys},
            refused=len(record.refused),
            epsilon=record.epsilon,
            clip=record.clip,
        )
        for record in reached.rounds
    )


def _training(report: Mapping[str, Any]) -> Training:
    curve = tuple(
        CurvePoint(step=int(row["step"]), loss=row["loss"], heldout_accuracy=row["heldout_accuracy"])
        for row in report["curve"]
    )
    return Training(
        steps=report["steps"],
        epochs=report["epochs"],
        best_step=report["best_step"],
        train_examples=report["train_examples"],
        curve=curve,
    )


def machine(threads: int) -> Machine:
    """Describes where this runs."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    versions = {name: metadata.version(name) for name in _VERSIONS}
    return Machine(
        cpus=os.cpu_count() or 1,
        threads=threads,
        gpu=gpu,
        python=platform.python_version(),
        versions=versions,
    )
