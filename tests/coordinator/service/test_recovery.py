"""Kills and hangs: rounds reach what they would have, and nobody is waited for beyond the deadline."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.coordinator.service.test_serving import assert_same, reached, simulated
from tests.federation import Federation
from tests.robustness.coordinator_kills import compare

from umbel.shared.release import Release

pytestmark = pytest.mark.slow
OPEN = "secure=false"  # with secure sums, which want five devices: tests/robustness


def test_a_coordinator_that_is_killed_goes_on_to_the_same_result(
    tiny_release: Release, tmp_path: Path
) -> None:
    found = compare(tmp_path / "federation", tiny_release, count=4)
    assert found.kills == 4
    assert found.differing == 0


def test_a_device_that_is_killed_in_a_round_comes_back_and_the_round_is_what_it_was(
    federation: Callable[[int], Federation],
) -> None:
    """It is the same node with the same task: the round waits for it, and its answer is the same."""
    own, changes = federation(2), ("rounds=2", "clients=2", "local_steps=400", OPEN)
    serving = own.serve(*changes)
    own.until(serving, lambda: own.events(serving, "listening"))
    first, second = [own.join(number, line) for number, line in enumerate(own.invite(2))]
    begun = own.folder.rounds(own.release.release_id) / "begun.json"
    own.until(serving, begun.exists)
    time.sleep(0.5)
    own.kill(first)
    again = own.join(0)
    assert own.ended(serving) == 0, own.said(serving)
    assert [(row["clients"], row["failures"]) for row in own.events(serving, "round")] == [(2, 0), (2, 0)]
    assert_same(reached(own), simulated(own, *changes))
    assert [own.events(device, "ended") for device in (again, second)] == [[], []]  # they wait for more


def test_a_device_that_hangs_holds_a_round_no_longer_than_the_deadline_and_its_late_answer_is_harmless(
    federation: Callable[[int], Federation],
) -> None:
    own, deadline_s = federation(2), 20.0
    changes = ("rounds=3", "clients=2", "local_steps=400", f"timeout_s={deadline_s}", OPEN)
    serving = own.serve(*changes)
    own.until(serving, lambda: own.events(serving, "listening"))
    hanging, _ = [own.join(number, line) for number, line in enumerate(own.invite(2))]
    begun = own.folder.rounds(own.release.release_id) / "begun.json"
    own.until(serving, begun.exists)
    os.killpg(hanging.pid, signal.SIGSTOP)
    own.until(serving, lambda: own.events(serving, "round"))
    os.killpg(hanging.pid, signal.SIGCONT)
    assert own.ended(serving) == 0, own.said(serving)
    first, *others = own.events(serving, "round")
    assert (first["clients"], first["failures"]) == (1, 1)
    assert deadline_s <= first["seconds"] < deadline_s + 5
    assert [row["clients"] for row in others][-1] == 2


def test_once_takes_part_in_one_round_and_ends(federation: Callable[[int], Federation]) -> None:
    own = federation(1)
    serving = own.serve("rounds=5", "clients=1", OPEN)
    own.until(serving, lambda: own.events(serving, "listening"))
    (line,) = own.invite()
    once = own.join(0, line, "--once")
    assert own.ended(once) == 0, own.said(once)
    assert [row["trained"] for row in own.events(once, "ended")] == [1]
    own.until(serving, lambda: own.events(serving, "round"))
    own.kill(serving)
    assert sum(row["clients"] for row in own.events(serving, "round")) == 1
