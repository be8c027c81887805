"""What a coordinator keeps of gains: sums of five or more, each device once, and no number of one."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from flwr.app import Context, Error, Message
from hypothesis import given
from hypothesis import strategies as st
from tests.coordinator.test_strategy import RELEASE, SETTINGS, answered, grid_of, run, usual
from tests.oracles.gain import gain_oracle

from umbel.coordinator.federation.gains import FILE, LEAST, GainFigures, Gains, Sums, kept_gain
from umbel.coordinator.service.gain import GainAsker
from umbel.device_client.gain import noised
from umbel.shared.errors import ConfigError
from umbel.shared.gain import MOST, STEPS, noise_variance
from umbel.shared.messages import GAIN, GainReport
from umbel.shared.rng import generator
from umbel.simulations.engines.serial import SerialGrid

TOLD = {11: 5001, 12: -4002, 13: 7003, 14: 104, 15: -2005, 16: 3006, 17: 907}


def filled(folder: Path, clients: range) -> Gains:
    gains = Gains(folder, RELEASE)
    for client in clients:
        gains.add(client, TOLD[client])
    return gains


@given(st.lists(st.integers(-MOST, MOST), min_size=LEAST, max_size=60))
def test_mean_and_error_are_those_of_the_definition(told: list[int]) -> None:
    sums = Sums(set())
    for client, number in enumerate(told):
        sums.add(client, number)
    figures = sums.figures()
    assert figures is not None
    mean, error = gain_oracle(told, STEPS, noise_variance())
    assert figures.reports == len(told)
    assert figures.mean == pytest.approx(mean, abs=1e-12)
    assert figures.error == pytest.approx(error, rel=1e-9)


def test_of_many_devices_the_mean_gain_can_be_told() -> None:
    """10,000 that gain 0, 0.1 or 0.2: the error is the noise's, 2.83 / 100, and the mean within 4 of it."""
    rng, sums = generator(5, 0, "", "noise"), Sums(set())
    for client in range(10_000):
        sums.add(client, noised(0.1 * (client % 3), lambda most: int(rng.integers(most))))
    figures = sums.figures()
    assert figures is not None
    assert figures.error == pytest.approx(0.0283, rel=0.05)
    assert abs(figures.mean - 0.1) < 4 * figures.error


def test_of_fewer_than_five_nothing_is_kept(tmp_path: Path) -> None:
    gains = filled(tmp_path, range(11, 15))
    assert gains.keep() is None
    assert list(tmp_path.iterdir()) == []
    assert kept_gain(tmp_path) is None
    gains.add(15, TOLD[15])
    found = gains.keep()
    assert found is not None
    assert (found.reports, kept_gain(tmp_path)) == (
        5,
        {"reports": 5, "mean": found.mean, "error": found.error},
    )


def test_no_number_of_one_is_kept_and_later_ones_are_added_five_at_a_time(tmp_path: Path) -> None:
    filled(tmp_path, range(11, 16)).keep()
    text = (tmp_path / FILE).read_text()
    assert not [number for number in TOLD.values() if str(abs(number)) in text]
    again = filled(tmp_path, range(11, 18))  # who has told is not counted twice, and two are too few
    assert again.keep() is None
    assert (tmp_path / FILE).read_text() == text
    for client in range(20, 23):
        again.add(client, 0)
    found = again.keep()
    assert found is not None
    assert found.reports == 10
    assert found.mean == pytest.approx(sum(TOLD.values()) / 10 / STEPS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema": "umbel.gain/9"}, "it is of another version"),
        ({"release": "0" * 64}, "it is of another release"),
        ({"total": 6 * MOST}, "total is"),
        ({"squares": -1}, "squares is"),
        ({"reported": [1.5]}, "a device is 1.5"),
        ({"reported": 5}, "TypeError"),
    ],
)
def test_what_is_damaged_is_refused(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    filled(tmp_path, range(11, 16)).keep()
    row = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**row, **change}))
    with pytest.raises(ConfigError, match="no record of gains") as error:
        Gains(tmp_path, RELEASE)
    assert any(line.startswith(problem) for line in error.value.problems)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
JSON = st.recursive(VALUES, lambda own: st.lists(own, max_size=3) | st.dictionaries(st.text(max_size=4), own))


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("reported", "total", "squares", "release"), JSON)))
def test_whatever_the_file_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("gains")
    (folder / FILE).write_text(json.dumps({"schema": "umbel.gain/1", **row}))
    with suppress(ConfigError):
        kept_gain(folder)


def grid(asked: list[int]) -> SerialGrid:
    """Devices of which 0 refuses, 1 answers with nonsense, and the others tell their number times 100."""

    def respond(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        if message.metadata.message_type != GAIN:
            return inner._respond(message, context)
        asked.append(client)
        if client == 0:
            return Message(Error(2, "EgressError"), reply_to=message)
        return answered(message, GainReport(RELEASE, 2 * MOST if client == 1 else 100 * client).wire())

    inner = grid_of(usual, 8)
    return SerialGrid({}, 8, respond)


def test_all_who_are_there_are_asked_once_and_rounds_are_as_without(tmp_path: Path) -> None:
    asked: list[int] = []
    heard: list[GainFigures] = []
    asker = GainAsker(Gains(tmp_path, RELEASE), RELEASE, heard.append)
    found = run(SETTINGS, grid(asked), population=8, on_greeted=asker)
    assert sorted(asked) == list(range(8))
    (figures,) = heard
    assert figures.reports == 6
    assert figures.mean == pytest.approx(sum(100 * client for client in range(2, 8)) / 6 / STEPS)
    assert [record.notes for record in found.rounds] == [(), (), ()]
    assert [record.failures for record in found.rounds] == [0, 0, 0]
    asked.clear()
    run(SETTINGS, grid(asked), population=8, on_greeted=GainAsker(Gains(tmp_path, RELEASE), RELEASE))
    assert sorted(asked) == [0, 1]  # the others have told
