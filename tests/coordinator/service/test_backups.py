"""What docs/federation.md says of backups and keys: a folder that is put back, certificates made anew."""

import json
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tests.coordinator.service.test_serving import assert_same, reached, simulated
from tests.federation import Federation

from umbel.coordinator.service.folder import Folder
from umbel.coordinator.service.status import status_of
from umbel.shared.errors import ConfigError

pytestmark = pytest.mark.slow
OPEN = ("clients=2", "secure=false")


def listening(own: Federation, *changes: str) -> subprocess.Popen[str]:
    serving = own.serve(*OPEN, *changes)
    own.until(serving, lambda: own.events(serving, "listening"))
    return serving


def clients(own: Federation, serving: subprocess.Popen[str]) -> list[tuple[int, int]]:
    """Waits for the end of its rounds, and returns for each its number and how many devices it had."""
    assert own.ended(serving) == 0, own.said(serving)
    return [(row["round"], row["clients"]) for row in own.events(serving, "round")]


def joined(own: Federation) -> list[subprocess.Popen[str]]:
    return [own.join(number, line) for number, line in enumerate(own.invite(2))]


def test_a_folder_that_was_lost_is_put_back_from_a_copy_and_rounds_go_on(
    federation: Callable[[int], Federation],
) -> None:
    """The devices stay as they are: what they know is the authority, and what knows them is the roster."""
    own = federation(2)
    serving = listening(own, "rounds=1")
    joined(own)
    assert clients(own, serving) == [(1, 2)]
    copy = own.path / "copy"
    shutil.copytree(own.folder.path, copy)
    assert clients(own, own.serve(*OPEN, "rounds=2")) == [(2, 2)]  # it is lost with the folder
    shutil.rmtree(own.folder.path)
    shutil.copytree(copy, own.folder.path)
    assert clients(own, own.serve(*OPEN, "rounds=3")) == [(2, 2), (3, 2)]
    assert_same(reached(own), simulated(own, *OPEN, "rounds=3"))


def test_what_was_copied_while_it_served_is_enough_to_go_on_with(
    federation: Callable[[int], Federation],
) -> None:
    own = federation(2)
    serving = listening(own, "rounds=200")
    joined(own)
    own.until(serving, lambda: own.events(serving, "round"))
    copy = own.path / "copy"
    shutil.copytree(own.folder.path, copy, ignore=shutil.ignore_patterns("devices.sqlite*", "rounds"))
    with sqlite3.connect(own.folder.roster) as there, sqlite3.connect(copy / "devices.sqlite") as here:
        there.backup(here)  # what the shell's .backup does
    done = _copied_rounds(own.folder, copy)
    own.kill(serving)
    assert 1 <= done < 200
    shutil.rmtree(own.folder.path)
    copy.rename(own.folder.path)
    assert clients(own, own.serve(*OPEN, f"rounds={done + 1}")) == [(done + 1, 2)]
    assert_same(reached(own), simulated(own, *OPEN, f"rounds={done + 1}"))


def _copied_rounds(folder: Folder, copy: Path) -> int:
    """Copies rounds/ file by file until a copy is whole, and returns how many rounds are in it."""
    for _ in range(100):
        with suppress(shutil.Error, ConfigError):
            shutil.copytree(folder.path / "rounds", copy / "rounds")
            return int(status_of(copy)["runs"][0]["rounds"])
        shutil.rmtree(copy / "rounds")
    raise AssertionError("rounds/ changes too fast to be copied")


def test_certificates_are_renewed_while_devices_are_joined_with_a_key_that_lies_elsewhere(
    federation: Callable[[int], Federation],
) -> None:
    own = federation(2)
    away = own.path / "stick.key"
    (own.folder.path / "private/ca.key").rename(away)
    serving = listening(own, "rounds=1")  # nothing but renew reads the authority's key
    devices = joined(own)
    assert clients(own, serving) == [(1, 2)]
    before = own.folder.server()
    folder = str(own.folder.path)
    assert "is not at" in own.run("coordinator", "renew", folder).stderr
    assert own.run("coordinator", "renew", folder, "--ca-key", str(away)).returncode == 0
    assert own.folder.server().public_key() != before.public_key()
    assert clients(own, own.serve(*OPEN, "rounds=2")) == [(2, 2)]
    assert [device.poll() for device in devices] == [None, None]  # the same processes as before
    assert not (own.folder.path / "private/ca.key").exists()


def test_a_device_that_leaves_and_is_invited_again_takes_part_with_another_key(
    federation: Callable[[int], Federation],
) -> None:
    own = federation(2)
    serving = listening(own, "rounds=1")
    first, _ = joined(own)
    assert clients(own, serving) == [(1, 2)]
    first.send_signal(signal.SIGTERM)
    assert own.ended(first) == 0
    assert own.run("device", "leave", "--home", str(own.home(0))).returncode == 0
    serving = listening(own, "rounds=2")
    own.join(0, *own.invite())
    assert clients(own, serving) == [(2, 2)]
    status = json.loads(own.run("coordinator", "status", str(own.folder.path), "--json").stdout)
    assert len(status["devices"]) == 3


def test_without_the_roster_nobody_is_known(federation: Callable[[int], Federation]) -> None:
    own = federation(1)
    serving = own.serve("clients=1", "secure=false", "rounds=1")
    own.until(serving, lambda: own.events(serving, "listening"))
    device = own.join(0, *own.invite())
    assert own.ended(serving) == 0
    device.send_signal(signal.SIGTERM)
    assert own.ended(device) == 0
    for file in own.folder.path.glob("devices.sqlite*"):
        file.unlink()
    serving = own.serve("clients=1", "secure=false", "rounds=2")
    own.until(serving, lambda: own.events(serving, "listening"))
    again = own.join(0)
    assert own.ended(again) == 2
    assert "does not know this device" in own.said(again)
