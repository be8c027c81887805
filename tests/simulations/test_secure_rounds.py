"""Rounds with secure aggregation: the numbers of rounds without it, and nobody's change on the wire."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Context, Error, Message
from tests.builders import random_examples, write_devices

from umbel.coordinator import server_app
from umbel.coordinator.federation.privacy.sources import SeedSource
from umbel.device_client import flower_app
from umbel.device_client.engine import Engine
from umbel.device_client.rounds import train
from umbel.device_client.simulated import SimulatedHome
from umbel.shared.errors import ConfigError
from umbel.shared.messages import RoundTask
from umbel.shared.norms import largest
from umbel.shared.release import Release
from umbel.shared.secure.grid import Grid, flat
from umbel.shared.secure.messages import COLLECT, SETUP, SHARE, UNMASK
from umbel.simulations.engines import RoundSettings, RoundsResult, run_rounds
from umbel.simulations.engines.serial import SerialGrid, run_serial

SETTINGS = RoundSettings(rounds=2, clients=6, seed=5, local_rate=0.5, clip=0.5, min_devices_in_a_sum=3)
EXAMPLES = [5, 6, 2, 9, 4, 7]
Respond = Callable[[Message, Context], Message]


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_devices(tmp_path_factory.mktemp("devices"), EXAMPLES)


def run(
    release: Release, devices: Path, out: Path, settings: RoundSettings, respond: Respond = flower_app.reply
) -> RoundsResult:
    config = settings.as_run_config() | {
        "release": str(release.folder), "devices": str(devices), "out": str(out), "population": len(EXAMPLES),
    }  # fmt: skip
    return run_serial(config, len(EXAMPLES), 1, None, respond=respond)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_rounds_with_secure_sums_are_those_without_but_for_the_rounding(
    weighting: str, tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    """Off by at most a step for each device in each round, and by what float32 makes of a mean."""
    settings = replace(SETTINGS, weighting=weighting)
    found = run(tiny_release, devices, tmp_path / "secure", settings)
    plain = run(tiny_release, devices, tmp_path / "plain", replace(settings, secure=False))
    assert [(r.clients, r.failures, r.notes) for r in found.rounds] == [(6, 0, ())] * 2
    before = Engine(tiny_release).trainables()
    for name, values in plain.trainables.items():
        assert np.abs(values - before[name]).max() > 1e-4
        np.testing.assert_allclose(found.trainables[name], values, rtol=0, atol=2e-6)


def test_devices_that_drop_out_are_named_and_the_others_are_summed(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    def respond(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if (number, message.metadata.message_type) in ((1, COLLECT), (4, UNMASK)):
            return Message(Error(2, "OSError"), reply_to=message)
        return flower_app.reply(message, context)

    settings = replace(SETTINGS, rounds=1)
    found = run(tiny_release, devices, tmp_path / "secure", settings, respond)
    assert found.rounds[0].clients == 5
    assert found.rounds[0].notes == (
        "round 1, train.collect, device 000001: OSError",
        "round 1, train.unmask, device 000004: OSError",
    )


def test_below_the_minimum_the_round_changes_nothing_and_says_so(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    def respond(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if number < 3 and message.metadata.message_type == SHARE:
            return Message(Error(2, "OSError"), reply_to=message)
        return flower_app.reply(message, context)

    found = run(tiny_release, devices, tmp_path, replace(SETTINGS, rounds=1), respond)
    assert found.rounds[0].clients == 0
    left = "3 of 6 devices are left before train.collect"
    told = f"round 1 changed nothing: {left}, and they give their shares only if 4 are"
    assert found.rounds[0].notes[-1] == told
    before = Engine(tiny_release).trainables()
    for name, values in found.trainables.items():
        np.testing.assert_array_equal(values, before[name])


def test_a_budget_with_a_clip_that_follows_the_norms_is_that_of_rounds_without_secure_sums(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    """The same devices are sampled and counted, and get the same noise but for what rounding adds to it."""
    private = replace(
        SETTINGS,
        rounds=3,
        noise_multiplier=0.4,
        clip=0.1,
        clip_quantile=0.5,
        clip_rate=1.0,
        noise_source="seed",
    )
    found = run(tiny_release, devices, tmp_path / "secure", private)
    plain = run(tiny_release, devices, tmp_path / "plain", replace(private, secure=False))
    assert [(r.clients, r.notes, r.epsilon, r.clip, r.within) for r in found.rounds] == [
        (r.clients, r.notes, r.epsilon, r.clip, r.within) for r in plain.rounds
    ]
    assert len({record.clip for record in found.rounds}) == 3
    before = Engine(tiny_release).trainables()
    for name, values in plain.trainables.items():
        assert np.abs(values - before[name]).max() > 1e-3
        np.testing.assert_allclose(found.trainables[name], values, rtol=0, atol=1e-5)


def test_under_a_budget_a_round_whose_sum_is_not_opened_moves_by_its_noise_alone(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    def respond(message: Message, context: Context) -> Message:
        if message.metadata.message_type == SHARE:
            return Message(Error(2, "OSError"), reply_to=message)
        return flower_app.reply(message, context)

    private = replace(SETTINGS, rounds=1, noise_multiplier=0.4, noise_source="seed")
    found = run(tiny_release, devices, tmp_path, private, respond)
    assert found.rounds[0].clients == 0
    assert found.rounds[0].notes[-1].startswith("round 1 moved by its noise alone: 0 devices are left")
    assert found.rounds[0].epsilon is not None
    before, source = Engine(tiny_release).trainables(), SeedSource(5)
    for name, values in found.trainables.items():
        noise = source.normal(1, f"noise of {name}", "", values.size).reshape(values.shape)
        expected = before[name] + 0.4 * largest(0.5) * noise / 6
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)


def parts(record: Any) -> Iterator[bytes]:
    """Yields the bytes of all objects of a record, as Flower sends them."""
    yield record.deflate()
    for child in (record.children or {}).values():
        yield from parts(child)


class Wiretap:
    """Keeps all that leaves one device, and the tasks that it was given."""

    def __init__(self, number: int):
        self.number = number
        self.sent = b""
        self.types: list[str] = []

    def respond(self, message: Message, context: Context) -> Message:
        answer = flower_app.reply(message, context)
        if context.node_config["partition-id"] == self.number:
            self.types.append(message.metadata.message_type)
            self.sent += b"".join(parts(answer.content)) if answer.has_content() else b""
        return answer


def windows(array: npt.NDArray[Any], numbers: int = 6) -> list[bytes]:
    """Returns the bytes of every few neighbouring numbers that are not all the same."""
    row = array.ravel()
    cut = [row[start : start + numbers] for start in range(0, len(row) - numbers + 1, numbers)]
    return [piece.tobytes() for piece in cut if len(set(piece.tolist())) > 1]


@pytest.mark.parametrize("secure", [True, False])
def test_what_one_device_changed_is_on_the_wire_without_secure_sums_and_not_with_them(
    secure: bool, tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    tap, engine = Wiretap(2), Engine(tiny_release)
    settings = replace(SETTINGS, rounds=1, secure=secure)
    run(tiny_release, devices, tmp_path, settings, tap.respond)
    stages = [SETUP, SHARE, COLLECT, UNMASK] if secure else ["train"]
    assert tap.types == stages
    task = RoundTask(tiny_release.release_id, 1, 5, "train", settings.local(), engine.trainables())
    home = SimulatedHome(devices / "000002", 2)
    change = train(engine, home, 2, task).change
    vector = flat(change, tiny_release.manifest.trainables)
    pieces = [piece for value in change.values() for piece in windows(value)]
    assert len(pieces) > 20
    found = sum(piece in tap.sent for piece in pieces)
    assert found == (0 if secure else len(pieces))
    profile = home.load_profile(tiny_release)
    assert profile is not None
    never = [
        piece for value in profile.values() for piece in windows(value) + windows(value.astype(np.float16))
    ]
    never += [example.text.encode() for example in random_examples(0, "2", 2)]
    assert not any(piece in tap.sent for piece in never)
    # The coded change without its masks, in every width that a number could travel in.
    coded = Grid(len(EXAMPLES), 0.5).coded(vector, 1, home.rounding(5, 1))
    for kind in (np.uint32, np.int64):
        assert not any(piece in tap.sent for piece in windows(coded.view(np.int32).astype(kind)))


def test_the_same_search_finds_the_coded_change_where_a_mask_is_left_out(
    tiny_release: Release, devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the test above can fail."""
    from umbel.device_client.secure import stages

    monkeypatch.setattr(stages, "mask", lambda seed, count: np.zeros(count, np.uint32))
    monkeypatch.setattr(stages, "add_pair_mask", lambda *words: None)
    tap, engine = Wiretap(2), Engine(tiny_release)
    run(tiny_release, devices, tmp_path, replace(SETTINGS, rounds=1), tap.respond)
    task = RoundTask(tiny_release.release_id, 1, 5, "train", SETTINGS.local(), engine.trainables())
    home = SimulatedHome(devices / "000002", 2)
    vector = flat(train(engine, home, 2, task).change, tiny_release.manifest.trainables)
    coded = Grid(len(EXAMPLES), 0.5).coded(vector, 1, home.rounding(5, 1))
    pieces = windows(coded[1:])
    assert sum(piece in tap.sent for piece in windows(coded)) > 20
    assert len(pieces) > 20


def test_a_population_that_no_sum_can_be_opened_over_is_refused_at_once(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    config = {"release": str(tiny_release.folder), "out": str(tmp_path), "population": 3}
    with pytest.raises(ConfigError) as error:
        server_app.serve(SerialGrid(config, 3), config)
    assert error.value.problems == ("population is 3, a sum over fewer than 5 devices is not opened",)


def test_a_real_run_without_secure_sums_says_loudly_what_becomes_visible(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"release": str(tmp_path), "out": str(tmp_path / "out"), "secure": False}
    with caplog.at_level(logging.WARNING), pytest.raises(Exception, match="release"):
        server_app.serve(SerialGrid(config, 1), config)
    assert [record.message for record in caplog.records] == [server_app.OPEN]
    caplog.clear()
    with caplog.at_level(logging.WARNING), pytest.raises(Exception, match="release"):
        server_app.serve(SerialGrid(config, 1), {**config, "secure": True})
    assert caplog.records == []


def test_a_rule_that_looks_at_each_change_needs_secure_sums_to_be_off() -> None:
    with pytest.raises(ConfigError, match="rule 'median' looks at each change by itself"):
        RoundSettings(rule="median")
    with pytest.raises(ConfigError, match="clients is 3, expected 5 to 65536 where changes are summed"):
        RoundSettings(clients=3)
    with pytest.raises(ConfigError) as error:
        RoundSettings(min_devices_in_a_sum=2, secure_threshold=0.3, secure_peers=0, secure_stage_s=0.0)
    assert len(error.value.problems) == 4
    assert RoundSettings(rule="median", secure=False).rule == "median"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ray leaves files open
def test_flowers_own_engine_gives_the_same_numbers(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    expected = run(tiny_release, devices, tmp_path / "serial", SETTINGS)
    found = run_rounds(
        "flower", release_folder=tiny_release.folder, devices_folder=devices, clients_total=len(EXAMPLES),
        settings=SETTINGS, out=tmp_path / "flower", workers=1,
    )  # fmt: skip
    assert [(r.clients, r.failures, r.notes) for r in found.rounds] == [(6, 0, ())] * 2
    for name, values in expected.trainables.items():
        np.testing.assert_array_equal(found.trainables[name], values)
