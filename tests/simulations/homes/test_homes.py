"""Devices in a table of people are devices in folders: the same rounds to the bit, the same profiles."""

import os
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tests.builders import random_examples, write_devices
from tests.device_client.test_embedded import Counted
from tests.simulations.test_engines import EXAMPLES as ENGINES_EXAMPLES
from tests.simulations.test_engines import command

from umbel.coordinator.federation.journal import Journal, RoundRecord, RoundsResult
from umbel.coordinator.federation.sampling import sampled
from umbel.coordinator.server_app import serve
from umbel.device_client.engine import Engine
from umbel.device_client.flower_app import folder_home
from umbel.device_client.learning import encode_examples
from umbel.device_client.simulated import SimulatedHome
from umbel.shared.errors import ConfigError, ExampleError, ProfileError
from umbel.shared.release import Release
from umbel.simulations.engines import RoundSettings, run_rounds
from umbel.simulations.engines.nodes import InProcessGrid
from umbel.simulations.engines.serial import SerialGrid
from umbel.simulations.homes.home import TableHome, home_of
from umbel.simulations.homes.table import FILE, MARK, PeopleTable
from umbel.simulations.homes.writing import TableWriter, write_people

EXAMPLES = [5, 6, 2, 9, 4, 7]
SETTINGS = RoundSettings(
    rounds=2, clients=5, seed=5, evaluate_clients=3, local_rate=0.5, clip=0.5, secure=False
)
MILLION = 1_000_000


def people(counts: list[int]) -> Iterator[Any]:
    """Yields whom `write_devices` gives folders."""
    for number, count in enumerate(counts):
        own = random_examples(0, str(number), count)
        yield own, random_examples(0, str(number), 4, "heldout")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_devices(tmp_path / "folders", EXAMPLES)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_people(tmp_path / "table", people(EXAMPLES))
    return tmp_path / "table"


def run(
    engine: str, release: Release, devices: Path, out: Path, settings: RoundSettings = SETTINGS,
    total: int = len(EXAMPLES),
) -> RoundsResult:  # fmt: skip
    return run_rounds(
        engine, release_folder=release.folder, devices_folder=devices, clients_total=total,
        settings=settings, out=out,
    )  # fmt: skip


def assert_same(found: RoundsResult, expected: RoundsResult) -> None:
    assert [replace(record, seconds=0.0) for record in found.rounds] == [
        replace(record, seconds=0.0) for record in expected.rounds
    ]
    for name, values in expected.trainables.items():
        np.testing.assert_array_equal(found.trainables[name], values)


@pytest.mark.parametrize(
    ("name", "engine", "secure"),
    [
        ("tiny_release", "serial", False),
        ("tiny_release", "serial", True),
        ("tiny_release", "cohort", False),
        ("embedded_release", "serial", False),
        ("embedded_release", "cohort", True),
        ("taught_release", "serial", False),
    ],
)
def test_rounds_over_a_table_are_those_over_folders_to_the_bit_and_so_are_the_profiles(
    name: str, engine: str, secure: bool, request: pytest.FixtureRequest, folders: Path, table: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    release: Release = request.getfixturevalue(name)
    settings = replace(SETTINGS, secure=secure)
    expected = run(engine, release, folders, tmp_path / "1", settings)
    assert_same(run(engine, release, table, tmp_path / "2", settings), expected)
    assert [record.failures for record in expected.rounds] == [0, 0]
    trained = 0
    for number in range(len(EXAMPLES)):
        home = home_of(table, number)
        assert isinstance(home, TableHome)
        found, wanted = (
            own.load_profile(release) for own in (home, SimulatedHome(folders / f"{number:06d}"))
        )
        assert (found is None) == (wanted is None)
        trained += found is not None
        for tensor, values in (wanted or {}).items():
            np.testing.assert_array_equal((found or {})[tensor], values)
    assert trained >= 5
    assert len(list(table.glob("profiles-*.table"))) == 1


@pytest.mark.slow  # with Ray's processes
def test_flowers_engine_reads_the_table_too(tiny_release: Release, table: Path, tmp_path: Path) -> None:
    """In a process of its own, as Ray leaves files open."""
    expected = run("serial", tiny_release, table, tmp_path / "serial")
    words = command("flower", tiny_release, table, tmp_path / "flower", SETTINGS)
    words[words.index(str(len(ENGINES_EXAMPLES)), 5)] = str(len(EXAMPLES))
    subprocess.run(words, capture_output=True, timeout=120, check=True)
    found = Journal(tmp_path / "flower", tiny_release.release_id, len(EXAMPLES), SETTINGS).read()
    assert found is not None
    assert_same(found, expected)


def test_a_stopped_run_over_a_table_goes_on_to_the_same(
    tiny_release: Release, table: Path, tmp_path: Path
) -> None:
    whole = run("serial", tiny_release, table, tmp_path / "whole")
    run("serial", tiny_release, table, tmp_path / "cut", replace(SETTINGS, rounds=1))
    assert_same(run("serial", tiny_release, table, tmp_path / "cut"), whole)


@pytest.mark.parametrize("change", ["gone", "another"])
def test_rounds_end_where_their_people_become_others_and_go_on_once_they_are_back(
    change: str, tiny_release: Release, table: Path, tmp_path: Path
) -> None:
    """In place of rounds in which everybody fails, or others answer."""
    settings, held = replace(SETTINGS, rounds=3), tmp_path / "held"
    whole = run("cohort", tiny_release, table, tmp_path / "whole", settings)

    def change_people(record: RoundRecord) -> None:
        if record.round == 1:
            table.rename(held)
            if change == "another":
                write_people(table, people([3] * len(EXAMPLES)))

    with pytest.raises(ConfigError, match="have changed while they ran"):
        run_rounds(
            "cohort", release_folder=tiny_release.folder, devices_folder=table,
            clients_total=len(EXAMPLES), settings=settings, out=tmp_path / "cut", on_round=change_people,
        )  # fmt: skip
    shutil.rmtree(table, ignore_errors=True)
    held.rename(table)
    assert_same(run("cohort", tiny_release, table, tmp_path / "cut", settings), whole)


def test_a_table_that_cannot_be_written_is_refused_before_the_rounds(
    tiny_release: Release, table: Path, tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is closed to root")
    table.chmod(0o500)
    with pytest.raises(ConfigError, match="the rounds cannot begin") as error:
        run("cohort", tiny_release, table, tmp_path / "out")
    assert error.value.problems == (f"{table} cannot be written: people's profiles are kept beside them",)


def test_who_has_no_examples_costs_one_device(tiny_release: Release, tmp_path: Path) -> None:
    write_people(tmp_path / "table", people([5, 0, 3]))
    settings = replace(SETTINGS, rounds=1, clients=3, evaluate_clients=0)
    record = run("cohort", tiny_release, tmp_path / "table", tmp_path / "out", settings, 3).rounds[0]
    assert (record.clients, record.notes) == (2, ("round 1, train, device 000001: ExampleError",))


def test_a_profile_that_was_not_written_whole_is_refused_and_learned_anew(
    tiny_release: Release, table: Path
) -> None:
    spec = tiny_release.manifest.profile
    home = TableHome(PeopleTable(table), 3)
    assert home.load_profile(tiny_release) is None
    home.save_profile(tiny_release, spec.zeros())
    (file,) = table.glob("profiles-*.table")
    whole = file.read_bytes()
    place = 64 + 3 * (4 + spec.packed_bytes)
    assert whole[:place].count(0) < len(whole[:place])
    file.write_bytes(whole[: place + 1] + bytes([whole[place + 1] ^ 1]) + whole[place + 2 :])
    with pytest.raises(ProfileError, match="cannot read the profile of person 000003") as error:
        home.load_profile(tiny_release)
    assert error.value.problems == ("row 3 was not written whole",)
    home.save_profile(tiny_release, spec.zeros())
    assert home.load_profile(tiny_release) is not None
    assert TableHome(PeopleTable(table), 2).load_profile(tiny_release) is None
    file.write_bytes(b"no table")
    home = TableHome(PeopleTable(table), 2)
    with pytest.raises(ProfileError, match="cannot read the profile of person 000002") as error:
        home.load_profile(tiny_release)
    assert error.value.problems == (f"{file.name} is no file of rows",)
    with pytest.raises(ProfileError, match="cannot keep the profile of person 000002"):
        home.save_profile(tiny_release, spec.zeros())
    with pytest.raises(ProfileError, match="cannot be packed"):
        home.save_profile(tiny_release, {})


def test_a_text_is_read_once_and_again_where_that_was_not_kept_whole(
    embedded_release: Release, table: Path, folders: Path
) -> None:
    engine: Any = Counted(Engine(embedded_release))
    numbers = range(len(EXAMPLES))
    for number in numbers:  # both kinds of examples, of everybody
        home, wanted = TableHome(PeopleTable(table), number), SimulatedHome(folders / f"{number:06d}", number)
        for own in ("examples", "heldout", "examples"):
            found = home.read(engine, encode_examples(engine, getattr(home, own)()))
            expected = wanted.read(engine, encode_examples(engine, getattr(wanted, own)()))
            np.testing.assert_array_equal(cast(Any, found.embedding), cast(Any, expected.embedding))
    assert engine.texts == 2 * (sum(EXAMPLES) + 4 * len(EXAMPLES))
    (file,) = table.glob("read-*.table")
    raw = bytearray(file.read_bytes())
    row_bytes = 4 + 4 * engine.embedding_size
    raw[64 + 5 * row_bytes + 9] ^= 1  # a held-out one of person 0
    file.write_bytes(raw)
    before, home = engine.texts, TableHome(PeopleTable(table), 0)
    again = home.read(engine, encode_examples(engine, home.heldout()))
    assert engine.texts == before + 4
    known = home.read(engine, encode_examples(engine, home.heldout()))
    np.testing.assert_array_equal(cast(Any, again.embedding), cast(Any, known.embedding))
    assert engine.texts == before + 4
    other = random_examples(7, "other", 4)
    assert home.read(engine, encode_examples(engine, other)).embedding is not None
    assert engine.texts == before + 8
    file.write_bytes(b"no table")
    assert TableHome(PeopleTable(table), 0).read(engine, encode_examples(engine, other)).embedding is not None


def test_tables_that_are_damaged_or_too_small_are_refused_before_a_round(
    tiny_release: Release, table: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        run("serial", tiny_release, table, tmp_path / "out", total=7)
    assert error.value.problems == (f"{table} has 6 people, 7 are wanted",)
    (table / MARK).write_text("{")
    with pytest.raises(ConfigError) as error:
        run("magic", tiny_release, table, tmp_path / "out")
    assert error.value.problems == (
        "engine is 'magic', expected one of cohort, flower, serial",
        f"{table}: {MARK}: JSONDecodeError",
    )
    with pytest.raises(ExampleError, match="no whole table"):
        home_of(table, 0)
    with pytest.raises(ConfigError, match="this app reads no table of people"):
        folder_home(table, 0)  # as the app of `flwr run` opens homes
    (table / FILE).unlink()
    (table / MARK).unlink()
    assert isinstance(home_of(table, 0), SimulatedHome)


@pytest.mark.parametrize("secure", [False, True])
def test_a_million_people_cost_a_round_no_more_than_ten(
    tiny_release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    """Nothing is made or asked for each of them: counted in contexts, in messages and in Python's memory."""
    settings = replace(SETTINGS, clients=5, evaluate_clients=2, secure=secure, min_devices_in_a_sum=3)
    peaks: list[int] = []
    asked: list[str] = []
    push = InProcessGrid.push_messages

    def counting(self: InProcessGrid, messages: Any) -> Any:
        found = list(messages)
        asked.extend(str(message.metadata.message_type) for message in found)
        return push(self, found)

    monkeypatch.setattr(InProcessGrid, "push_messages", counting)
    for total in (10, 10, MILLION):  # the first one loads what is loaded once
        devices = tmp_path / str(total) / str(len(peaks))
        numbers = {
            *sampled(range(total), 5, 5, 1, "sample"), *sampled(range(total), 5, 5, 2, "sample"),
            *sampled(range(total), 2, 5, 0, "evaluation panel"),
        }  # fmt: skip
        few = dict(zip(sorted(numbers), people([6] * len(numbers)), strict=True))
        with TableWriter(devices) as writer:
            for number, (support, heldout) in few.items():
                _skip_to(writer, number)
                writer.add(support, heldout)
            _skip_to(writer, total)
        asked.clear()
        tracemalloc.start()
        found = run("cohort", tiny_release, devices, tmp_path / f"out{len(peaks)}", settings, total)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert [(record.clients, record.failures) for record in found.rounds] == [(5, 0), (5, 0)]
        assert asked.count("query") == 0
        assert len(asked) == 2 * (5 * (4 if secure else 1) + 2)
    assert peaks[2] < peaks[1] + 500_000  # half a byte for each of them


def _skip_to(writer: TableWriter, number: int) -> None:
    """Adds people without examples."""
    writer.add_nobodies(number - writer.people)


def test_only_a_node_that_keeps_something_is_held(tiny_release: Release, table: Path, tmp_path: Path) -> None:
    """Between the stages of a secure sum a device keeps its part; when it is over, nothing."""
    config: dict[str, Any] = replace(SETTINGS, secure=True, min_devices_in_a_sum=3).as_run_config() | {
        "release": str(tiny_release.folder), "devices": str(table), "out": str(tmp_path / "out"),
        "population": len(EXAMPLES), "threads": 1,
    }  # fmt: skip
    held: list[int] = []
    grid = SerialGrid(config, len(EXAMPLES))
    pull = grid.pull_messages

    def watching(message_ids: Any) -> Any:
        found = list(pull(message_ids))
        held.append(len(grid._held))
        return found

    grid.pull_messages = watching  # type: ignore[method-assign]
    (tmp_path / "out").mkdir()
    found = serve(grid, config, roll=grid.roll())
    assert [record.clients for record in found.rounds] == [5, 5]
    assert held == [5, 5, 5, 0, 0] * 2  # set-up, shares, collecting, unmasking; the panel
