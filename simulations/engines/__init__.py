"""Engines that run rounds over simulated devices: the same strategy, the same messages, the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from umbel.coordinator.federation.journal import RoundRecord, RoundsResult
from umbel.coordinator.federation.settings import RoundSettings
from umbel.device_client.engine import ONNXRUNTIME
from umbel.shared.errors import ConfigError
from umbel.simulations.engines.ray_cluster import address_problems, reach
from umbel.simulations.homes.home import missing_homes, people_digest

__all__ = [
    "ENGINES",
    "RoundRecord",
    "RoundSettings",
    "RoundsResult",
    "check_cluster",
    "check_compute",
    "run_rounds",
]

COHORT, FLOWER = "cohort", "flower"
ENGINES = (COHORT, FLOWER, "serial")
OnRound = Callable[[RoundRecord], None]


class Engine(Protocol):
    """Runs the rounds that a run config describes, over `population` devices."""

    def __call__(
        self,
        config: dict[str, str | int | float | bool],
        population: int,
        workers: int,
        on_round: OnRound | None,
    ) -> RoundsResult: ...


def run_rounds(
    engine: str,
    *,
    release_folder: Path,
    devices_folder: Path,
    clients_total: int,
    settings: RoundSettings,
    out: Path,
    workers: int = 1,
    ray_address: str | None = None,
    compute: str | None = None,
    on_round: OnRound | None = None,
) -> RoundsResult:
    """Runs federated rounds over simulated devices; goes on where a run with the same settings stopped.

    Args:
        engine: "cohort": in this process, the private steps of many devices together; "flower": Flower's
            own simulation, in processes of its own; "serial": one device after another in this process, for
            debugging. Flower's and the serial one give the same numbers; the cohort's are equal but for
            float32's rounding.
        release_folder: The release.
        devices_folder: A table of people (`simulations/homes`), or one home per device: 000000, 000001, ...
        clients_total: How many devices there are.
        settings: What happens in the rounds.
        out: Where rounds.json and the trained tensors go after every round.
        workers: Processes that devices run in for "flower", threads for "cohort".
        ray_address: For "flower": HOST:PORT of a Ray cluster that is there already, or "auto"; devices then
            run in as many processes as it has cores, on all its machines.
        compute: What runs the release's graphs: onnxruntime if None, or torch, such as "torch:cuda"; see
            `umbel.simulations.torch_graphs.opening`.
        on_round: Called after every round with its record.

    Returns:
        Every round, the earlier run's too, and the shared tensors after the last.

    Raises:
        ConfigError: The engine is unknown, homes are missing, `out` belongs to a run with other settings or
            over another table of people, or the Ray cluster cannot be used.
        ReleaseError: The release cannot be used.
        TrainingError: The devices cannot take part, or the engine broke.
        KeyboardInterrupt: Ctrl-C; finished rounds are kept in `out`.
    """
    _check(engine, devices_folder, clients_total, workers, ray_address)
    config = settings.as_run_config() | {
        "release": str(release_folder.absolute()),
        "devices": str(devices_folder.absolute()),
        "out": str(out.absolute()),
        "population": clients_total,
        "people": people_digest(devices_folder),
        "threads": 1,
    }
    if compute not in (None, ONNXRUNTIME):
        check_compute(compute)
        config["compute"] = compute
    return _engine(engine, ray_address)(config, clients_total, workers, on_round)


def check_cluster(engine: str, ray_address: str | None) -> None:
    """Refuses a Ray cluster that rounds could not use, before there is anything to lose.

    Raises:
        ConfigError: The engine uses none, the address is none, or nobody answers there.
    """
    if ray_address is None:
        return
    problems = _cluster_problems(engine, ray_address)
    if problems:
        hint = "Pass --engine flower with it." if engine != FLOWER else "See: umbel simulate --help."
        raise ConfigError("the rounds cannot run on a Ray cluster", problems, hint)
    reach(ray_address)


def _cluster_problems(engine: str, ray_address: str | None) -> list[str]:
    if ray_address is None:
        return []
    wrong = [] if engine == FLOWER else [f"engine is '{engine}': only {FLOWER} runs on a Ray cluster"]
    return wrong + address_problems(ray_address)


def check_compute(compute: str | None) -> None:
    """Refuses what cannot run the graphs of devices, before there is anything to lose.

    Raises:
        ConfigError: Torch has no such device here.
    """
    if compute not in (None, ONNXRUNTIME):
        from umbel.simulations.torch_graphs.opening import opener_of

        opener_of(compute)


def _engine(name: str, ray_address: str | None) -> Engine:
    if name == COHORT:
        from umbel.simulations.engines.cohort import run_cohort

        return run_cohort
    if name == "serial":
        from umbel.simulations.engines.serial import run_serial

        return run_serial
    from umbel.simulations.engines.flower import run_flower

    return partial(run_flower, ray_address=ray_address)


def _check(engine: str, devices: Path, total: int, workers: int, ray_address: str | None) -> None:
    problems = [] if engine in ENGINES else [f"engine is '{engine}', expected one of {', '.join(ENGINES)}"]
    problems += [] if workers >= 1 else [f"workers is {workers}, expected 1 or more"]
    problems += [] if total >= 1 else [f"clients_total is {total}, expected 1 or more"]
    problems += missing_homes(devices, total)
    problems += _cluster_problems(engine, ray_address)
    if problems:
        raise ConfigError("the rounds cannot begin", problems)
