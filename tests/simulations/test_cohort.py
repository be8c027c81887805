"""The cohort engine: what devices do alone, but for the order of float32's sums; who fails, fails alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import write_devices

from umbel.coordinator.federation.journal import RoundRecord, RoundsResult
from umbel.coordinator.server_app import serve
from umbel.device_client.simulated import EXAMPLES as FILE
from umbel.shared.errors import ConfigError
from umbel.shared.release import Release
from umbel.simulations.engines import RoundSettings, run_rounds
from umbel.simulations.engines.cohort import CohortGrid, _packs

EXAMPLES = [5, 6, 2, 9, 4, 7]
SETTINGS = RoundSettings(
    rounds=2, clients=5, seed=5, evaluate_clients=3, local_rate=0.5, clip=0.5, secure=False
)


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    return write_devices(tmp_path / "devices", EXAMPLES)


def run(
    engine: str,
    release: Release,
    devices: Path,
    out: Path,
    settings: RoundSettings = SETTINGS,
    compute: str | None = None,
) -> RoundsResult:
    return run_rounds(
        engine, release_folder=release.folder, devices_folder=devices, clients_total=len(EXAMPLES),
        settings=settings, out=out, compute=compute,
    )  # fmt: skip


def in_packs(
    size: int,
    release: Release,
    devices: Path,
    out: Path,
    settings: RoundSettings = SETTINGS,
    threads: int = 1,
) -> RoundsResult:
    config: dict[str, Any] = settings.as_run_config() | {
        "release": str(release.folder), "devices": str(devices), "out": str(out),
        "population": len(EXAMPLES), "threads": 1,
    }  # fmt: skip
    return serve(CohortGrid(config, len(EXAMPLES), pack=size, threads=threads), config)


def told(result: RoundsResult) -> list[RoundRecord]:
    return [replace(record, seconds=0.0, bytes_up=0) for record in result.rounds]


def assert_close(found: RoundsResult, expected: RoundsResult, tolerance: float) -> None:
    assert told(found) == told(expected)
    for name, values in expected.trainables.items():
        np.testing.assert_allclose(found.trainables[name], values, rtol=0, atol=tolerance)


RELEASES = ("tiny_release", "embedded_release", "taught_release")


@pytest.mark.parametrize("compute", [None, pytest.param("torch:cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("name", RELEASES)
def test_a_cohort_gives_the_numbers_of_devices_one_after_another(
    name: str,
    secure: bool,
    compute: str | None,
    request: pytest.FixtureRequest,
    devices: Path,
    tmp_path: Path,
) -> None:
    release: Release = request.getfixturevalue(name)
    settings = replace(SETTINGS, secure=secure)
    serial = run("serial", release, devices, tmp_path / "serial", settings)
    found = run("cohort", release, devices, tmp_path / "cohort", settings, compute)
    moved = max(
        np.abs(values - serial.trainables[other]).max()
        for (other, values) in run(
            "serial", release, devices, tmp_path / "none", replace(settings, rounds=0)
        ).trainables.items()
    )
    assert moved > 1e-3
    assert_close(found, serial, 1e-5)


def test_a_pack_of_one_is_a_device_alone_to_the_bit(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    assert_close(
        in_packs(1, tiny_release, devices, tmp_path / "cohort"),
        run("serial", tiny_release, devices, tmp_path / "serial"),
        0.0,
    )


def test_the_same_seed_gives_the_same_numbers_and_other_packs_the_same_but_for_rounding(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    first = in_packs(3, tiny_release, devices, tmp_path / "1")
    assert_close(in_packs(3, tiny_release, devices, tmp_path / "2"), first, 0.0)
    assert_close(in_packs(64, tiny_release, devices, tmp_path / "3"), first, 1e-5)


@given(st.integers(0, 300), st.integers(1, 64))
def test_packs_hold_everybody_once_in_their_order_and_get_smaller(count: int, most: int) -> None:
    asked: Any = list(range(count))
    packs = list(_packs(asked, most))
    assert [one for pack in packs for one in pack] == asked
    sizes = [len(pack) for pack in packs]
    assert all(1 <= size <= most for size in sizes)
    assert sizes == sorted(sizes, reverse=True)
    assert not sizes or sizes[-1] <= max(1, most // 4)


@pytest.mark.parametrize("secure", [False, True])
def test_numbers_do_not_depend_on_the_threads(
    secure: bool, embedded_release: Release, devices: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, secure=secure)
    alone = in_packs(2, embedded_release, devices, tmp_path / "1", settings, threads=1)
    assert_close(in_packs(2, embedded_release, devices, tmp_path / "3", settings, threads=3), alone, 0.0)


def test_torch_runs_the_graphs_of_devices_one_after_another_too(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    plain = run("serial", tiny_release, devices, tmp_path / "1")
    assert_close(run("serial", tiny_release, devices, tmp_path / "2", compute="torch:cpu"), plain, 1e-5)


def test_where_torch_cannot_compute_no_round_begins(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="torch cannot compute there"):
        run("cohort", tiny_release, devices, tmp_path / "out", compute="torch:cuda:99")
    assert not (tmp_path / "out").exists()


def test_a_device_that_fails_fails_for_itself(tiny_release: Release, devices: Path, tmp_path: Path) -> None:
    (devices / "000002" / FILE).write_text("{")
    settings = replace(SETTINGS, rounds=1, clients=6, evaluate_clients=0)
    found = run("cohort", tiny_release, devices, tmp_path / "cohort", settings)
    assert (found.rounds[0].clients, found.rounds[0].failures) == (5, 1)
    assert found.rounds[0].notes == ("round 1, train, device 000002: ExampleError",)
    assert_close(found, run("serial", tiny_release, devices, tmp_path / "serial", settings), 1e-5)


def test_profiles_that_do_not_converge_fail_for_their_own_devices(
    tiny_release: Release, devices: Path, tmp_path: Path
) -> None:
    """With a rate that is far too large all fail, each with its own answer, as they do alone."""
    recipe = replace(tiny_release.manifest.recipe, learning_rate=100.0, second_moment="none", steps=40)
    settings = replace(SETTINGS, rounds=1, evaluate_clients=0, recipe=recipe)
    serial = run("serial", tiny_release, devices, tmp_path / "serial", settings)
    found = run("cohort", tiny_release, devices, tmp_path / "cohort", settings)
    assert serial.rounds[0].failures > 0
    assert found.rounds[0].notes == serial.rounds[0].notes
