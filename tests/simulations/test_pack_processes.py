"""Packs of devices answered by other processes: the numbers of threads; words where a process ends."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import write_devices
from tests.simulations.test_cohort import EXAMPLES, SETTINGS, assert_close

from umbel.coordinator.federation.journal import RoundRecord, RoundsResult
from umbel.coordinator.server_app import serve
from umbel.shared.errors import TrainingError
from umbel.shared.release import Release
from umbel.simulations.engines.cohort import CohortGrid
from umbel.simulations.engines.pack_processes import PackProcesses, Shares


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    return write_devices(tmp_path / "devices", EXAMPLES)


@pytest.fixture(scope="module")
def processes() -> Iterator[PackProcesses]:
    with PackProcesses(2) as found:
        yield found


def run(
    release: Release,
    devices: Path,
    out: Path,
    processes: PackProcesses | None,
    secure: bool = False,
    on_round: Callable[[RoundRecord], None] | None = None,
) -> RoundsResult:
    config: dict[str, Any] = SETTINGS.as_run_config() | {
        "release": str(release.folder), "devices": str(devices), "out": str(out),
        "population": len(EXAMPLES), "threads": 1, "secure": secure,
    }  # fmt: skip
    grid = CohortGrid(config, len(EXAMPLES), pack=2, threads=2, processes=processes)
    return serve(grid, config, on_round=on_round)


@pytest.mark.parametrize("secure", [False, True])
def test_numbers_do_not_depend_on_where_packs_are_answered(
    secure: bool, embedded_release: Release, devices: Path, tmp_path: Path, processes: PackProcesses
) -> None:
    """Devices keep their part in a secure sum from stage to stage, wherever they are asked."""
    threads = run(embedded_release, devices, tmp_path / "threads", None, secure=secure)
    assert_close(run(embedded_release, devices, tmp_path / "own", processes, secure=secure), threads, 0.0)


def test_a_device_that_fails_fails_for_itself(
    embedded_release: Release, devices: Path, tmp_path: Path, processes: PackProcesses
) -> None:
    (devices / "000003" / "examples.jsonl").write_text("not JSON\n")
    found = run(embedded_release, devices, tmp_path / "own", processes)
    assert_close(found, run(embedded_release, devices, tmp_path / "threads", None), 0.0)
    assert sum(record.failures for record in found.rounds) > 0
    assert all("000003" in note for record in found.rounds for note in record.notes)


def test_where_a_process_is_killed_the_rounds_end_and_can_go_on(
    embedded_release: Release, devices: Path, tmp_path: Path
) -> None:
    expected = run(embedded_release, devices, tmp_path / "whole", None)

    def kill(record: RoundRecord) -> None:
        del record
        for process in killed._all:
            os.kill(process.pid, signal.SIGKILL)

    with PackProcesses(2) as killed, pytest.raises(TrainingError, match="has ended") as error:
        run(embedded_release, devices, tmp_path / "own", killed, on_round=kill)
    assert list(error.value.problems) == ["its exit code is -9 (killed)"]
    with PackProcesses(2) as others:
        found = run(embedded_release, devices, tmp_path / "own", others)
    assert len(found.rounds) == SETTINGS.rounds
    assert_close(found, expected, 0.0)


def test_processes_end_with_their_pipe() -> None:
    with PackProcesses(1) as processes:
        own: list[subprocess.Popen[bytes]] = processes._all
    assert [process.returncode for process in own] == [0]


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 6), st.data())
def test_every_pack_is_taken_once_whoever_takes(sizes: list[int], count: int, data: st.DataObject) -> None:
    packs: Any = [list(range(size)) for size in sizes]
    shares, taken = Shares(packs, count), list[int]()
    ended: set[int] = set()
    while len(ended) < count:
        own = data.draw(st.sampled_from(sorted(set(range(count)) - ended)))
        number = shares.take(own)
        if number is None:
            ended.add(own)
        else:
            taken.append(number)
    assert sorted(taken) == list(range(len(sizes)))


def test_packs_go_where_their_devices_went_before() -> None:
    packs: Any = [[0] * 4, [0] * 4, [0] * 2, [0] * 2]
    shares = Shares(packs, 2)
    assert [shares.take(own) for own in (1, 0, 1, 0, 1)] == [2, 0, 3, 1, None]
