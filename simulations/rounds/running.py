"""Runs rounds with a release among people, and says where it lies what they have reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from umbel.coordinator.federation.journal import ROUNDS, kept_file, kept_rounds
from umbel.coordinator.federation.sampling import sampled
from umbel.coordinator.federation.settings import SEEDED
from umbel.coordinator.strategy import PANEL
from umbel.device_client.engine import ONNXRUNTIME
from umbel.shared.errors import ConfigError, ExampleError, UmbelError
from umbel.shared.files import refuse_taken, sole_use
from umbel.shared.release import Release, read_release
from umbel.simulations.engines import RoundRecord, RoundsResult, check_cluster, check_compute, run_rounds
from umbel.simulations.homes.home import home_of, missing_homes, people_in
from umbel.simulations.progress import Bar, Progress
from umbel.simulations.rounds.config import OwnRounds, read_own

_Value = TypeVar("_Value")
_HELD_OUT = "Pack them with examples held out: umbel data pack FILE --heldout-share 0.2 --out FOLDER."


@final
@dataclass(frozen=True, slots=True)
class Where:
    """Where a run of rounds takes place.

    Attributes:
        release: Folder of the release.
        people: Folder of a table of people, or of their homes.
        out: Folder of what the rounds reach.
        workers: Threads of the cohort engine, processes of Flower's.
        compute: What runs the graphs of devices; onnxruntime if None.
        ray_address: A Ray cluster for Flower's engine; None for none.
    """

    release: Path
    people: Path
    out: Path
    workers: int = 1
    compute: str | None = None
    ray_address: str | None = None


@final
@dataclass(frozen=True, slots=True)
class Ran:
    """What a run of rounds has come to.

    Attributes:
        out: Folder of what was reached.
        tensors: File with the shared tensors after the last round; None if there was no round.
        release: Id of the release.
        people: How many there are.
        seed: Of all randomness.
        engine: What ran the devices.
        compute: What ran their graphs.
        before: How many of the rounds had been finished by an earlier call.
        rounds: All of them.
    """

    out: Path
    tensors: Path | None
    release: str
    people: int
    seed: int
    engine: str
    compute: str
    before: int
    rounds: Sequence[RoundRecord]

    def as_json(self) -> dict[str, Any]:
        """Returns it as a row of JSON."""
        tensors = None if self.tensors is None else str(self.tensors)
        return asdict(self) | {"out": str(self.out), "tensors": tensors}


def run_own(
    where: Where, config: Path | None, changes: Mapping[str, Mapping[str, Any]], progress: Progress
) -> Ran:
    """Runs rounds, or what is left of them.

    Args:
        where: Release, people and engine.
        config: As in `read_own`.
        changes: As there.
        progress: Shows a bar, and a line for each round.

    Raises:
        BusyError: Another process is at work in the out folder.
        UmbelError: The rounds cannot begin; all that is in the way is told at once. Or one of them failed:
            those before it are kept.
    """
    release, own, people = _checked(where, config, changes)
    if own.rounds.noise_multiplier:
        progress.say(SEEDED)
    with sole_use(where.out), progress.phase("federated rounds") as bar:
        before = _finished(where.out)
        if 0 < before < own.rounds.rounds:
            progress.say(f"  goes on after round {before}")
        bar.step(before, own.rounds.rounds)
        reached = _run(where, own, people, bar)
    tensors = kept_file(where.out) if reached.rounds else None
    return Ran(
        out=where.out,
        tensors=tensors,
        release=release.release_id,
        people=people,
        seed=own.seed,
        engine=own.rounds.engine,
        compute=where.compute or ONNXRUNTIME,
        before=before,
        rounds=reached.rounds,
    )


def _run(where: Where, own: OwnRounds, people: int, bar: Bar) -> RoundsResult:
    def on_round(record: RoundRecord) -> None:
        bar.tells(record.round, own.rounds.rounds, [record.line(), *record.notes])

    return run_rounds(
        own.rounds.engine,
        release_folder=where.release,
        devices_folder=where.people,
        clients_total=people,
        settings=own.settings(),
        out=where.out,
        workers=where.workers,
        ray_address=where.ray_address,
        compute=where.compute,
        on_round=on_round,
    )


def _finished(out: Path) -> int:
    """Returns how many rounds an out folder holds."""
    return int(kept_rounds(out)["rounds"]) if (out / ROUNDS).is_file() else 0


def _checked(
    where: Where, config: Path | None, changes: Mapping[str, Mapping[str, Any]]
) -> tuple[Release, OwnRounds, int]:
    """Returns the release, the settings and how many people there are.

    Raises:
        UmbelError: Something is in the way; all of it is told.
    """
    errors: list[UmbelError] = []
    release = _tried(errors, lambda: read_release(where.release))
    own = _tried(errors, lambda: read_own(config, changes))
    people = _tried(errors, lambda: people_in(where.people))
    _tried(errors, lambda: refuse_taken(where.out, own=ROUNDS))
    _tried(errors, lambda: check_compute(where.compute))
    if people is not None:
        _tried(errors, lambda: _refuse_missing(where.people, people))
    if own is not None:
        _tried(errors, lambda: check_cluster(own.rounds.engine, where.ray_address))
    if own is not None and people is not None and not errors:
        _tried(errors, lambda: _refuse_panel(where.people, people, own))
    if errors or release is None or own is None or people is None:
        raise _all_of(errors)
    return release, own, people


def _tried(errors: list[UmbelError], work: Callable[[], _Value]) -> _Value | None:
    """Returns what some work comes to; None if it fails, and its error is with the others."""
    try:
        return work()
    except UmbelError as error:
        errors.append(error)
        return None


def _all_of(errors: Sequence[UmbelError]) -> UmbelError:
    """Returns several errors as one; one alone as it is."""
    if len(errors) == 1:
        return errors[0]
    problems = [
        f"{error.headline}: {problem}" if problem else error.headline
        for error in errors
        for problem in error.problems or [""]
    ]
    hints = dict.fromkeys(error.hint for error in errors if error.hint)
    return ConfigError("the rounds cannot begin", problems, "\n".join(hints))


def _refuse_missing(people: Path, total: int) -> None:
    missing = missing_homes(people, total)
    if missing:
        raise ExampleError("these people cannot take part", missing)


def _refuse_panel(people: Path, total: int, own: OwnRounds) -> None:
    """Refuses to evaluate people of whom none has held-out examples."""
    panel = sampled(range(total), own.rounds.evaluate_clients, own.seed, 0, PANEL)
    if panel and not any(home_of(people, number).heldout() for number in panel):
        problem = f"none of the {len(panel)} people to evaluate has held-out examples"
        raise ExampleError(f"nobody of {people} can be evaluated", [problem], _HELD_OUT)
