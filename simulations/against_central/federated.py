"""Rounds over people's devices: runs of them with falling rates, each from the release of the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np

from umbel.coordinator.federation.journal import ROUNDS, RoundRecord, RoundsResult, kept_rounds
from umbel.coordinator.publish import publish_update
from umbel.coordinator.server_app import release_trainables
from umbel.shared.profile import FloatArray
from umbel.shared.release import Release
from umbel.shared.rng import integer_seed
from umbel.simulations.against_central.results import Secure, Traffic
from umbel.simulations.engines import run_rounds
from umbel.simulations.experiment import RoundsConfig

OnLook = Callable[[int, Mapping[str, FloatArray]], None]
"""Called with (rounds so far, the trainables' values)."""
OnRound = Callable[[int, int], None]
"""Called with (rounds done, rounds in all)."""


@final
@dataclass(frozen=True, slots=True)
class Devices:
    """The devices that take part.

    Attributes:
        folder: Their homes.
        count: How many there are.
    """

    folder: Path
    count: int


def run_federated(
    start: Release,
    devices: Devices,
    config: RoundsConfig,
    rates: Sequence[float],
    seed: int,
    every: int,
    folder: Path,
    on_look: OnLook,
    on_round: OnRound = lambda done, of: None,
) -> list[RoundRecord]:
    """Runs all rounds; what is there of them already is not run again.

    Args:
        start: The release to begin with.
        devices: Who takes part.
        config: The rounds of one run.
        rates: What the local rate is times in each run.
        seed: Of all randomness.
        every: Rounds between looks.
        folder: Of the runs and of the releases between them.
        on_look: Called after so many rounds; again for those of an earlier, stopped call, except within a
            run: tensors of earlier rounds are not kept.
        on_round: Called with (rounds done, rounds in all).

    Returns:
        The records of all rounds, in order.
    """
    release, records = start, list[RoundRecord]()
    total = config.rounds * len(rates)
    for stage, factor in enumerate(rates):
        own = config.model_copy(update={"local_rate": config.local_rate * factor})
        reached, before = RoundsResult([], {}), len(records)
        for count in range(every, own.rounds + 1, every):
            if count < _kept(folder / f"run-{stage}"):
                continue
            reached = _rounds(
                release,
                devices,
                own.model_copy(update={"rounds": count}),
                integer_seed(seed, stage, "", "run of rounds"),
                folder / f"run-{stage}",
                partial(_tell, on_round, before, total),
            )
            on_look(before + count, reached.trainables)
        records += reached.rounds
        release = publish_update(release, reached.trainables, folder / f"release-{stage}")
    return records


def _tell(on_round: OnRound, before: int, total: int, record: RoundRecord) -> None:
    on_round(before + record.round, total)


def _kept(folder: Path) -> int:
    """Returns how many rounds a run's folder holds."""
    return int(kept_rounds(folder)["rounds"]) if (folder / ROUNDS).is_file() else 0


def _rounds(
    release: Release,
    devices: Devices,
    config: RoundsConfig,
    seed: int,
    out: Path,
    on_round: Callable[[RoundRecord], None] | None = None,
) -> RoundsResult:
    return run_rounds(
        config.engine,
        release_folder=release.folder,
        devices_folder=devices.folder,
        clients_total=devices.count,
        settings=replace(config.settings(seed), evaluate_clients=0),
        out=out,
        on_round=on_round,
    )


def run_secure(start: Release, devices: Devices, config: RoundsConfig, seed: int, folder: Path) -> Secure:
    """Runs some rounds twice, with secure sums and without, and tells them apart.

    Args:
        start: The release to begin with.
        devices: Who takes part.
        config: The rounds.
        seed: Of all randomness.
        folder: Of both runs.
    """
    both = [
        _rounds(start, devices, config.model_copy(update={"secure": secure}), seed, folder / name)
        for name, secure in (("plain", False), ("secure", True))
    ]
    plain, secured = (_flat(reached.trainables) for reached in both)
    begun = _flat(release_trainables(start))
    return Secure(
        traffic=traffic_of(both[1].rounds),
        change=float(np.linalg.norm(secured - begun)),
        difference=float(np.linalg.norm(secured - plain)),
    )


def _flat(values: Mapping[str, FloatArray]) -> FloatArray:
    return np.concatenate([values[name].ravel() for name in sorted(values)])


def traffic_of(records: Sequence[RoundRecord]) -> Traffic:
    """Returns what rounds sent and took."""
    answers = max(sum(record.clients for record in records), 1)
    rounds = max(len(records), 1)
    return Traffic(
        rounds=len(records),
        devices=sum(record.clients for record in records) / rounds,
        failures=sum(record.failures for record in records),
        bytes_up=round(sum(record.bytes_up for record in records) / answers, 1),
        bytes_down=round(sum(record.bytes_down for record in records) / answers, 1),
        seconds=round(sum(record.seconds for record in records) / rounds, 3),
    )
