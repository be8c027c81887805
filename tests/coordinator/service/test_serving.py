"""Rounds with real processes over real TLS, on this machine."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tests.federation import SETTINGS, Federation

from umbel.coordinator.federation.journal import kept_trainables
from umbel.coordinator.server_app import release_trainables
from umbel.coordinator.service.settings import given_settings
from umbel.shared.profile import FloatArray
from umbel.shared.release import Release, read_release
from umbel.simulations.engines.serial import run_serial


def simulated(own: Federation, *changes: str) -> dict[str, FloatArray]:
    """Returns what the same rounds reach in one process, one device after another."""
    config = given_settings(None, [*SETTINGS, *changes]) | {
        "release": str(own.release.folder),
        "devices": str(own.path / "simulated"),
        "out": str(own.path / "out"),
        "population": own.devices,
    }
    return run_serial(config, own.devices, 1, None).trainables


def reached(own: Federation) -> dict[str, FloatArray]:
    return kept_trainables(own.folder.rounds(own.release.release_id), own.release.release_id)[1]


def assert_same(one: dict[str, FloatArray], two: dict[str, FloatArray]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name])


def test_devices_join_and_rounds_over_tls_reach_what_a_simulation_reaches(
    federation: Callable[[int], Federation], tiny_release: Release, tmp_path: Path
) -> None:
    """To the bit: both run the same code on the same numbers, and a sum is taken in the order of devices."""
    own = federation(2)
    serving = own.serve("rounds=2", "clients=2", "secure=false")
    own.until(serving, lambda: own.events(serving, "listening"))
    devices = [own.join(number, line) for number, line in enumerate(own.invite(2))]
    assert own.ended(serving) == 0, own.said(serving)
    assert [row["clients"] for row in own.events(serving, "round")] == [2, 2]
    for device in devices:
        device.send_signal(signal.SIGTERM)
    assert [own.ended(device) for device in devices] == [0, 0]
    assert [row["trained"] for device in devices for row in own.events(device, "ended")] == [2, 2]
    assert_same(reached(own), simulated(own, "rounds=2", "clients=2", "secure=false"))
    assert any(np.any(reached(own)[n] != v) for n, v in release_trainables(tiny_release).items())

    status = json.loads(own.run("coordinator", "status", str(own.folder.path), "--json").stdout)
    assert [device["barred"] for device in status["devices"]] == [None, None]
    assert (status["runs"][0]["rounds"], status["runs"][0]["changes"]) == (2, 4)
    words = ["coordinator", "publish-rounds", str(own.folder.path), "--release", str(tiny_release.folder)]
    assert own.run(*words, "--out", str(tmp_path / "next")).returncode == 0
    following = read_release(tmp_path / "next")
    assert following.manifest.parent == tiny_release.release_id
    assert_same(release_trainables(following), reached(own))
