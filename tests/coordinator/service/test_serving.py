"""Rounds with real processes over real TLS, on this machine."""

import json
import signal
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.federation import SETTINGS, Federation

from umbel.coordinator.federation.journal import kept_trainables
from umbel.coordinator.federation.privacy.accountant import epsilon
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
    trusted = ssl.create_default_context(cafile=str(own.folder.path / "ca.pem"))
    stranger = {"Content-Type": "of a stranger"}
    assert httpx.post(f"{own.folder.address.url}/v1/fleet/get-run", headers=stranger, verify=trusted).is_error
    devices = [own.join(number, line) for number, line in enumerate(own.invite(2))]
    assert own.ended(serving) == 0, own.said(serving)
    assert [row["clients"] for row in own.events(serving, "round")] == [2, 2]
    assert "stranger" not in own.said(serving)  # nobody fills an operator's log
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


@pytest.mark.slow
def test_what_rounds_cost_of_the_privacy_budget_is_told_wherever_rounds_are(
    federation: Callable[[int], Federation], tiny_release: Release, tmp_path: Path
) -> None:
    own = federation(2)
    budget = epsilon(1.0, 2.0, 2, 1e-5) + 1e-6  # two rounds, and not a third
    noise = ("noise_multiplier=2.0", "delta=1e-5", f"epsilon_budget={budget}")
    serving = own.serve("rounds=5", "clients=2", "secure=false", *noise)
    own.until(serving, lambda: own.events(serving, "listening"))
    for number, line in enumerate(own.invite(2)):
        own.join(number, line)
    assert own.ended(serving) == 0, own.said(serving)
    (told,) = own.events(serving, "budget")
    assert (told["rounds"], told["rounds_paid"]) == (5, 2)
    spent = [epsilon(1.0, 2.0, rounds, 1e-5) for rounds in (1, 2)]
    assert [row["epsilon"] for row in own.events(serving, "round")] == pytest.approx(spent)

    fed, privacy = str(own.folder.path), {"noise_multiplier": 2.0, "epsilon_budget": budget, "delta": 1e-5}
    status = json.loads(own.run("coordinator", "status", fed, "--json").stdout)
    assert status["runs"][0]["privacy"] == {**privacy, "epsilon": pytest.approx(spent[1])}
    words = ["coordinator", "publish-rounds", fed, "-r", str(tiny_release.folder), "--out"]
    done = own.run(*words, str(tmp_path / "next"))
    assert f"They cost each device epsilon {spent[1]:.3f} at delta 1e-05." in done.stdout
