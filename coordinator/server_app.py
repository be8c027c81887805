"""The coordinator's side of Flower: reads the run config, goes on after the last round, keeps each one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from umbel.coordinator.federation.journal import ONNXRUNTIME, ROUNDS, Journal, RoundRecord, RoundsResult
from umbel.coordinator.federation.presence import OnWait
from umbel.coordinator.federation.privacy.accountant import chance_of_deciding
from umbel.coordinator.federation.privacy.budget import PrivateRounds
from umbel.coordinator.federation.privacy.sources import KeySource, SeedSource, Source, kept_key
from umbel.coordinator.federation.roll import Roll
from umbel.coordinator.federation.settings import SEEDED, RoundSettings
from umbel.coordinator.strategy import OnGreeted, PersonalRounds
from umbel.shared.errors import ConfigError
from umbel.shared.profile import FloatArray
from umbel.shared.release import SHARED_WEIGHTS, Release, read_release

RELEASE, OUT, POPULATION, DEVICES = "release", "out", "population", "devices"
COMPUTE, PEOPLE = "compute", "people"
OPEN = (
    "SECURE AGGREGATION IS OFF (secure = false): this coordinator, and whoever gets into it, sees the change "
    "of each device by itself in every round. It tells which labels its owner gave, and texts may be guessed "
    "from it; where a method's own tensors are trained, the owner's profile. Devices refuse this unless "
    "their owners allow it (umbel device policy --sum-over 1)."
)
"""What is said where real devices' changes are seen one by one."""

FEW = (
    "SECURE SUMS OF SO FEW DEVICES WEAKEN THE PRIVACY BUDGET: with a chance of %.2g there is a round in "
    "which one device decides whether a sum over %d is opened; to see that is worth as many changes, and "
    "epsilon counts one. Take more clients in a round, or fewer min_devices_in_a_sum."
)
"""What is said where the least number of a sum may matter (docs/privacy.md)."""

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the rounds that the run config describes."""
    serve(grid, context.run_config, on_round=_say)


def serve(
    grid: Grid,
    config: Mapping[str, Any],
    *,
    on_round: Callable[[RoundRecord], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    owns: Callable[[int, int], bool] = lambda node, number: True,
    on_greeted: OnGreeted = lambda ask, nodes: None,
    on_wait: OnWait = lambda here, wanted, connected: None,
    release: Release | None = None,
    roll: Roll | None = None,
) -> RoundsResult:
    """Runs the rounds that a run config describes, and keeps what is reached after each of them.

    Args:
        grid: The way to the devices.
        config: release, out, population and the settings; see simulations/flower_app/pyproject.toml.
        on_round: Called after every round.
        stopped: Asked while waiting for devices; True ends the run.
        owns: Says whether a node may go by a number that it tells.
        on_greeted: As in `PersonalRounds`.
        on_wait: As there.
        release: The release, if it was read already.
        roll: As in `PersonalRounds`.

    Raises:
        ConfigError: The config cannot be used, or `out` holds a run that is longer or has other settings.
        ReleaseError: The release cannot be used.
        TrainingError: No devices can take part.
        Stopped: `stopped` said so.
    """
    settings = RoundSettings.from_run_config(config)
    missing = [f"'{key}' is not given" for key in (RELEASE, OUT) if not config.get(key)]
    if missing:
        raise ConfigError("the rounds cannot begin", missing, "Give them in the run config.")
    if not settings.secure and not config.get(DEVICES):
        log.warning(OPEN)
    release = release or read_release(Path(str(config[RELEASE])))
    population = int(config.get(POPULATION, 0))
    _refuse_few(settings, population)
    journal = Journal(
        Path(str(config[OUT])),
        release.release_id,
        population,
        settings,
        compute=str(config.get(COMPUTE) or ONNXRUNTIME),
        people=str(config.get(PEOPLE) or ""),
    )

    def keep(reached: RoundsResult) -> None:
        journal.write(reached)
        if on_round is not None:
            on_round(reached.rounds[-1])

    strategy = PersonalRounds(
        release.manifest,
        settings,
        reached=_reached(journal, settings) or RoundsResult([], release_trainables(release)),
        population=population,
        private=private_rounds(config, settings, population),
        on_round=keep,
        stopped=stopped,
        owns=owns,
        begun=journal.begun(),
        on_begin=journal.begin,
        on_greeted=on_greeted,
        on_wait=on_wait,
        roll=roll,
    )
    strategy.start(grid)
    return strategy.reached


def _refuse_few(settings: RoundSettings, population: int) -> None:
    least = settings.least_devices()
    if settings.secure and 0 < population < least:
        problem = f"population is {population}, a sum over fewer than {least} devices is not opened"
        hint = (
            "Let more devices take part. With secure = false there is no such bound, and each change is seen."
        )
        raise ConfigError("the rounds cannot begin", [problem], hint)


def private_rounds(
    config: Mapping[str, Any], settings: RoundSettings, population: int
) -> PrivateRounds | None:
    """Returns what samples and adds noise under the privacy budget; None without noise."""
    promised = settings.privacy()
    if promised is None:
        return None
    source: Source
    if settings.noise_source == "key":
        out = Path(str(config[OUT]))
        source = KeySource(kept_key(out, begun=(out / ROUNDS).is_file()))
    elif config.get(DEVICES):
        source = SeedSource(settings.seed)
        log.warning(SEEDED)
    else:
        raise ConfigError("the rounds cannot begin", [SEEDED], "Set noise_source to key.")
    private = PrivateRounds(promised, settings.clients, population, source)
    if settings.secure:
        chance = settings.rounds * chance_of_deciding(private.rate, population, settings.least_devices())
        if chance > promised.delta:
            log.warning(FEW, min(1.0, chance), settings.least_devices())
    return private


def _reached(journal: Journal, settings: RoundSettings) -> RoundsResult | None:
    reached = journal.read()
    if reached is not None and len(reached.rounds) > settings.rounds:
        problem = f"{journal.folder} is at round {len(reached.rounds)}, past round {settings.rounds}"
        hint = "The tensors of earlier rounds are not kept: ask for more rounds, or give another out folder."
        raise ConfigError("the rounds cannot be continued", [problem], hint)
    return reached


def release_trainables(release: Release) -> dict[str, FloatArray]:
    """Returns a release's values of the shared tensors that rounds may train."""
    from safetensors import safe_open

    with safe_open(release.blob_path(SHARED_WEIGHTS), framework="numpy") as file:
        return {name: file.get_tensor(name) for name in release.manifest.trainables}


def _say(record: RoundRecord) -> None:
    print(record.line(), flush=True)  # noqa: T201  (`flwr run --stream` shows it)
