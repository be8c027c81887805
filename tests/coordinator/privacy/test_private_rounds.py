"""Rounds under a privacy budget, through the strategy, its journal and the server app's settings."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.coordinator.test_coming_and_going import Over, Watched
from tests.coordinator.test_strategy import (
    RELEASE,
    Work,
    assert_same,
    change_of,
    contribution,
    grid_of,
    run,
    start_values,
    without_seconds,
)
from tests.linear_engine import SHAPES
from tests.oracles.privacy import poisson_oracle

from umbel.coordinator.federation.journal import Begun, Journal
from umbel.coordinator.federation.privacy.accountant import epsilon
from umbel.coordinator.federation.privacy.budget import PrivateRounds
from umbel.coordinator.federation.privacy.clipping import count_noise, sum_multiplier
from umbel.coordinator.federation.privacy.sources import KEY, KeySource, SeedSource, Source
from umbel.coordinator.federation.settings import RoundSettings
from umbel.coordinator.server_app import private_rounds
from umbel.shared.errors import ConfigError
from umbel.shared.messages import Contribution, RoundTask, Wire, clipped, l2_norm
from umbel.shared.norms import largest

SETTINGS = RoundSettings(
    rounds=4,
    clients=3,
    seed=6,
    clip=1.0,
    noise_multiplier=2.0,
    delta=1e-5,
    noise_source="seed",
    secure=False,
)
SEEDED = SeedSource(5)


def work(client: int, task: RoundTask) -> Wire:
    """Answers with the usual change; with whether it was within the clip, if that is asked."""
    raw = change_of(client, task.round)
    within = l2_norm(raw.values()) <= task.settings.clip if task.settings.tell_within else None
    change = clipped(raw, task.settings.clip)
    return Contribution(RELEASE, task.round, change, client + 1, 0.25, within).wire()


def private(settings: RoundSettings = SETTINGS, source: Source = SEEDED) -> dict[str, Any]:
    promised = settings.privacy()
    assert promised is not None
    return {"private": PrivateRounds(promised, settings.clients, 6, source)}


def test_a_private_round_moves_by_the_noised_sum_over_the_expected_number() -> None:
    """Written out again: who is sampled at 3 of 6, the sum of their clipped changes, the noise, over 3."""
    found = run(replace(SETTINGS, rounds=1), grid_of(work), **private())
    chosen = poisson_oracle(SEEDED, range(6), 1, 0.5)
    assert found.rounds[0].clients == len(chosen) != 3
    for name, shape in SHAPES.items():
        total = sum(clipped(change_of(n, 1), 1.0)[name].astype(float) for n in chosen)
        noise = SEEDED.normal(1, f"noise of {name}", "", int(np.prod(shape))).reshape(shape)
        expected = (total + 2.0 * largest(1.0) * noise) / 3
        np.testing.assert_allclose(found.trainables[name], expected, rtol=0, atol=1e-6)


def test_every_record_says_what_was_spent_so_far() -> None:
    found = run(SETTINGS, grid_of(work), **private())
    assert [record.epsilon for record in found.rounds] == [
        epsilon(0.5, 2.0, number, 1e-5) for number in (1, 2, 3, 4)
    ]
    assert [record.epsilon for record in run(grid=grid_of()).rounds] == [None] * 3


def test_training_stops_at_the_budget_also_when_it_goes_on(tmp_path: Path) -> None:
    budget = epsilon(0.5, 2.0, 2, 1e-5) + 1e-9
    settings = replace(SETTINGS, rounds=50, epsilon_budget=budget)
    journal = Journal(tmp_path, RELEASE, 6, settings)
    found = run(settings, grid_of(work), on_round=journal.write, **private(settings))
    assert len(found.rounds) == 2
    assert found.rounds[-1].notes[-1] == (
        f"round 2 is the last: another would cost more than epsilon {budget:g}"
    )
    again = run(settings, grid_of(work), reached=journal.read(), **private(settings))
    assert again.rounds == found.rounds
    assert_same(again.trainables, found.trainables)


def test_rounds_that_go_on_equal_rounds_that_were_not_interrupted(tmp_path: Path) -> None:
    """With a secret key and a clip that follows the norms, which lie around 3.4."""
    settings = replace(SETTINGS, noise_source="key", clip_quantile=0.5, clip_rate=1.0)
    journal, source = Journal(tmp_path, RELEASE, 6, settings), KeySource(bytes(32))
    whole = run(settings, grid_of(work), **private(settings, source))
    run(replace(settings, rounds=2), grid_of(work), on_round=journal.write, **private(settings, source))
    found = run(settings, grid_of(work), reached=journal.read(), **private(settings, source))
    assert_same(found.trainables, whole.trainables)
    assert without_seconds(found.rounds) == without_seconds(whole.rounds)
    clips = [record.clip for record in whole.rounds]
    assert clips[0] == 1.0
    assert len(set(clips)) == 4


def test_a_private_round_that_is_ended_in_the_middle_is_run_again_with_its_devices_and_its_noise(
    tmp_path: Path,
) -> None:
    """Sampled by a secret key, and by who was there then; somebody else has come since."""
    settings = replace(SETTINGS, noise_source="key", rounds=2)
    journal, source = Journal(tmp_path, RELEASE, 6, settings), KeySource(bytes(32))
    few = poisson_oracle(source, range(4), 2, 0.5)
    all_ = poisson_oracle(source, range(6), 2, 0.5)
    assert few != all_

    def ended(client: int, task: RoundTask) -> Wire:
        if (task.round, client) == (2, few[-1]):
            raise Over
        return work(client, task)

    def without_two(work: Work) -> Watched:
        grid = Watched(grid_of(work))
        grid.away = {4, 5}
        return grid

    own = {"population": 4, **private(settings, source)}
    whole = run(settings, without_two(work), **own)
    with pytest.raises(Over):
        run(settings, without_two(ended), on_round=journal.write, on_begin=journal.begin, **own)
    reached, begun = journal.read(), journal.begun()
    assert begun == Begun(2, tuple(few))
    found = run(settings, grid_of(work), reached=reached, begun=begun, **own)
    assert_same(found.trainables, whole.trainables)
    assert without_seconds(found.rounds) == without_seconds(whole.rounds)


def test_the_clip_of_a_round_follows_what_the_devices_told() -> None:
    settings = replace(SETTINGS, rounds=2, clip_quantile=0.5, clip_rate=1.0)
    found = run(settings, grid_of(work), **private(settings))
    first, second = found.rounds
    spread = count_noise(2.0, 3)
    # All norms are above the first clip of 1, so nobody was within: 1/2 + (0 - n/2 + noise) / 3.
    noise = float(SEEDED.normal(1, "noise of within", "", 1)[0])
    assert first.within == pytest.approx(0.5 + (-first.clients / 2 + spread * noise) / 3)
    assert first.within is not None
    assert second.clip == pytest.approx(np.exp(-(first.within - 0.5)))
    # The sum's own noise is a little larger, to pay for the count's.
    chosen = poisson_oracle(SEEDED, range(6), 1, 0.5)
    one = run(replace(settings, rounds=1), grid_of(work), **private(settings))
    total = sum(clipped(change_of(n, 1), 1.0)["head.bias"].astype(float) for n in chosen)
    noise_on_sum = SEEDED.normal(1, "noise of head.bias", "", 2)
    expected = (total + sum_multiplier(2.0, spread) * largest(1.0) * noise_on_sum) / 3
    np.testing.assert_allclose(one.trainables["head.bias"], expected, rtol=0, atol=1e-6)


def test_a_round_moves_though_nobody_answers_for_to_stand_still_would_tell() -> None:
    def crash(client: int, task: RoundTask) -> Wire:
        raise OSError

    found = run(replace(SETTINGS, rounds=1), grid_of(crash), **private())
    assert found.rounds[0].clients == 0
    assert not np.array_equal(found.trainables["head.weight"], start_values()["head.weight"])


def test_whether_a_change_was_within_the_clip_is_told_only_if_it_is_asked() -> None:
    def tells(client: int, task: RoundTask) -> Wire:
        return replace(contribution(client, task), within=True).wire()

    def silent(client: int, task: RoundTask) -> Wire:
        return contribution(client, task).wire()

    settings = replace(SETTINGS, rounds=1, clip_quantile=0.5)
    for answers, asked, problem in (
        (tells, SETTINGS, "unknown key 'within'"),
        (silent, settings, "missing key"),
    ):
        found = run(replace(asked, rounds=1), grid_of(answers), **private(asked)).rounds[0]
        assert found.clients == 0
        assert problem in found.notes[0]


def test_settings_that_would_break_the_promise_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        replace(SETTINGS, rule="median", min_replies=2, noise_source="key", evaluate_clients=3)
    assert error.value.problems == (
        "rule is 'median', with noise it must be 'mean'",
        "min_replies is 2, with noise it must be 1",
        "evaluate_clients must be 0 with noise: what devices count right is told without any",
    )
    with pytest.raises(ConfigError, match=r"noise_multiplier is 0\.001: below 0\.1 nothing is protected"):
        replace(SETTINGS, noise_multiplier=0.001)
    with pytest.raises(ConfigError, match=r"clip_quantile is 0\.5, but noise_multiplier is 0"):
        RoundSettings(clip_quantile=0.5)
    with pytest.raises(ConfigError, match="noise_source is 'luck', expected one of key, seed"):
        RoundSettings(noise_source="luck")


def test_noise_from_the_seed_is_for_simulations_and_says_so_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"out": str(tmp_path)}
    with pytest.raises(ConfigError, match="it protects nobody"):
        private_rounds(config, SETTINGS, 6)
    with caplog.at_level(logging.WARNING):
        assert private_rounds({**config, "devices": "somewhere"}, SETTINGS, 6) is not None
    assert "THE NOISE FOLLOWS FROM THE SEED" in caplog.text
    assert not (tmp_path / KEY).exists()
    assert private_rounds(config, replace(SETTINGS, noise_source="key"), 6) is not None
    assert (tmp_path / KEY).exists()
    assert private_rounds(config, RoundSettings(), 6) is None


@pytest.mark.parametrize(
    ("clients", "population", "said"), [(12, 1000, True), (40, 1000, False), (8, 8, False)]
)
def test_where_one_device_may_decide_whether_a_sum_is_seen_it_is_said(
    clients: int, population: int, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = RoundSettings(rounds=20, clients=clients, noise_multiplier=1.0)
    with caplog.at_level(logging.WARNING):
        private_rounds({"out": str(tmp_path)}, settings, population)
    assert ("WEAKEN THE PRIVACY BUDGET" in caplog.text) == said
