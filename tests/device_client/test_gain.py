"""The gain that a device may tell: noised as much as is promised, once, and only where its owner says so."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles.gain import laplace_chances

from umbel.device_client.egress.policy import Policy
from umbel.device_client.gain import Below, discrete_laplace, gain_of, noised
from umbel.device_client.owner import Device
from umbel.shared.examples import Example
from umbel.shared.gain import EPSILON, MOST, SCALE, STEPS, noise_variance
from umbel.shared.messages import GAIN, GainQuestion, GainReport, read_gain
from umbel.shared.release import Release
from umbel.shared.rng import generator

MINE = [
    Example("owner", f"{word} {thing}", label)
    for word, label in [("good", "yes"), ("tender", "yes"), ("bad", "no"), ("slow", "no")]
    for thing in ("film", "book", "very film")
]


def chance(seed: int) -> Below:
    """Returns a source that gives the same numbers each time."""
    rng = generator(seed, 0, "", "noise")
    return lambda most: int(rng.integers(most))


@pytest.mark.parametrize("scale", [1, 3, 50])
def test_the_noise_has_the_chances_of_its_definition(scale: int) -> None:
    """40,000 numbers of a fixed source: Kolmogorov-Smirnov at 1 in 1,000, mean, variance, and both sides."""
    below = chance(7)
    found = np.array([discrete_laplace(scale, below) for _ in range(40_000)])
    most = int(max(np.abs(found).max(), 40 * scale))
    expected = np.cumsum(laplace_chances(scale, most))
    counts = np.bincount(found + most, minlength=2 * most + 1)
    assert np.abs(np.cumsum(counts) / len(found) - expected).max() < 1.95 / len(found) ** 0.5
    variance = noise_variance(scale)
    assert abs(found.mean()) < 4 * (variance / len(found)) ** 0.5
    assert found.var() == pytest.approx(variance, rel=0.05)
    assert abs(np.mean(found > 0) - np.mean(found < 0)) < 4 / len(found) ** 0.5


def test_the_variance_is_that_of_the_definition() -> None:
    for scale in (1, 3, 50):
        chances = laplace_chances(scale, 60 * scale)
        by_hand = math.fsum(chance * (k - 60 * scale) ** 2 for k, chance in enumerate(chances))
        assert noise_variance(scale) == pytest.approx(by_hand, rel=1e-9)


def test_a_number_costs_what_is_promised_whatever_it_was_before() -> None:
    """No outcome is more than e^epsilon times as likely for one gain than for any other."""
    chances = laplace_chances(SCALE, 4 * STEPS)
    low, high = chances[: -2 * STEPS], chances[2 * STEPS :]  # the noise that leads gains of 1 and -1 to k
    ratios = [math.log(one / other) for one, other in zip(low, high, strict=True)]
    assert max(map(abs, ratios)) == pytest.approx(EPSILON, abs=1e-9)


@given(st.floats(-3, 3), st.integers(0, 2**32))
def test_what_is_told_is_the_clipped_gain_and_the_noise_on_one_grid(gain: float, seed: int) -> None:
    noise = discrete_laplace(SCALE, chance(seed))
    exact = max(-1.0, min(1.0, gain)) * STEPS
    assert abs(noised(gain, chance(seed)) - exact - noise) <= 0.5 + 1e-9


def test_noise_beyond_all_that_is_taken_is_cut() -> None:
    pairs = iter([0] * 40 + [1, 0])  # forty coins say yes and one says no; then the sign is plus

    def far(most: int) -> int:
        return next(pairs) if most == 2 else most - 1

    assert discrete_laplace(SCALE, far) > MOST
    pairs = iter([0] * 40 + [1, 0])
    assert noised(1.0, far) == MOST


def test_nothing_is_gained_where_nothing_was_held_out() -> None:
    assert gain_of({"how": "onboarded"}) is None
    assert gain_of({"held_out": None}) is None


# A device without the `flower` extra takes part in no rounds.
flwr = pytest.importorskip("flwr")


@pytest.fixture
def home(tmp_path: Path, embedded_release: Release, monkeypatch: pytest.MonkeyPatch) -> Path:
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    with Device.enroll(tmp_path / "home", embedded_release.folder) as device:
        device.add(MINE)
    return tmp_path / "home"


def asked(home: Path, release_id: str) -> GainReport | str:
    """Returns what a coordinator is told: the number, or the words of a refusal."""
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

    from umbel.coordinator.federation.envelopes import opened
    from umbel.device_client.flower_app import app

    question = GainQuestion(release_id)
    content = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord(dict(question.wire().config))})
    node: Any = {"home": str(home)}
    context = Context(run_id=1, node_id=5, node_config=node, state=RecordDict(), run_config={})
    found = app(Message(content, 5, GAIN), context)
    return str(found.error.reason) if found.has_error() else read_gain(opened(found.content), question)


def rows(home: Path) -> list[tuple[str, str, list[str]]]:
    with Device.open(home) as device:
        return [(row["kind"], row["outcome"], row["why"]) for row in device.egress()]


@pytest.mark.full
def test_it_is_told_once_for_a_release_and_only_if_the_owner_says_so(
    home: Path, embedded_release: Release
) -> None:
    own = embedded_release.release_id
    with Device.open(home) as device:
        device.learn()
        device.keep_policy(Policy("always"))
    assert asked(home, own) == "EgressError"
    with Device.open(home) as device:
        device.keep_policy(Policy("always", report_gain=True))
    first = asked(home, own)
    assert isinstance(first, GainReport)
    assert asked(home, own) == first
    with Device.open(home) as device:
        device.add([Example("owner", "we like the book", "yes")])
        device.learn()
    assert asked(home, own) == first  # of several numbers one could take the mean
    with Device.open(home) as device:
        device.keep_policy(Policy("never", report_gain=True))
    assert asked(home, own) == "EgressError"
    said = [(kind, outcome) for kind, outcome, _ in rows(home) if kind == GAIN]
    assert said == [(GAIN, "refused"), (GAIN, "sent"), (GAIN, "sent"), (GAIN, "sent"), (GAIN, "refused")]


@pytest.mark.full
def test_that_there_is_none_is_told_as_that_it_is_not_told(home: Path, embedded_release: Release) -> None:
    with Device.open(home) as device:
        device.keep_policy(Policy("always", report_gain=True))
    assert asked(home, embedded_release.release_id) == "EgressError"  # nothing is learned yet
    with Device.open(home) as device:
        device.learn()
    assert asked(home, "0" * 64) == "EgressError"  # of another release
    reasons = [why for kind, _, why in rows(home) if kind == GAIN]
    assert reasons == [["no gain is known (see: learn)"], ["this device has another release"]]
