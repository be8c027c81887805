"""Kills an update before each system call that changes a file, and looks each time at what it has left.

    python -m tests.robustness.updates RELEASE NEWER ROWS.json WORK [--every N]

RELEASE is the one in use, NEWER another one that is as good, ROWS the owner's examples as [text, label]. The
newer one comes from a channel, so that trusting, fetching, learning and switching are all met.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.channels import Publisher
from tests.robustness.children import Say, can_trace, finished, killed_before

from umbel.device_client.owner import Device
from umbel.device_client.releases.trust import Pin
from umbel.shared.examples import Example
from umbel.shared.release import read_release


def prepared(folder: Path, release: Path, newer: Path, rows: list[list[str]]) -> Path:
    """Makes the home of a device that has learned, and whose channel has a newer release; returns it."""
    publisher = Publisher(folder / "channel", folder / "keys")
    publisher.channel.create()
    publisher.channel.add(read_release(release))

    def begin(say: Say) -> None:
        with Device.enroll(folder / "home", str(publisher.folder), pin=Pin(first_use=True)) as device:
            device.add([Example("owner", text, label) for text, label in rows])
            device.learn()
        say({})

    ended = finished(begin)
    assert not ended.error, ended
    publisher.channel.add(read_release(newer))
    return folder / "home"


def update(home: Path, say: Say) -> None:
    """Updates a device."""
    with Device.open(home) as device:
        say({"outcome": device.update().outcome})


def look(home: Path, both: set[str], say: Say) -> None:
    """Says what is wrong with a home after a kill, and whether it goes on to the newer release."""
    wrong = []
    with Device.open(home) as device:
        release = device.release.release_id
        wrong += [] if release in both else ["it is neither the old nor the new release"]
        wrong += [] if device.profile() is not None else ["its profile is gone"]
        wrong += [] if device.status()["profile"]["current"] else ["its profile is of other examples"]
        wrong += [] if len(device.predict(["good film"])) == 1 else ["it does not predict"]
    with Device.open(home) as device:
        outcome = device.update().outcome
        wrong += [] if outcome in ("adopted", "current") else [f"the next update: {outcome}"]
        wrong += [] if device.profile() is not None else ["its new profile is gone"]
    here = {path.name for path in (home / "releases").iterdir()}
    wrong += [] if here <= both or outcome == "current" else [f"left: {len(here - both)}"]
    say({"wrong": wrong, "was": release})


def main() -> int:
    """Runs it, and prints how many kills there were and what they found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("release", "newer", "rows", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--every", type=int, default=1, help="kill before each n-th call only")
    given = parser.parse_args()
    if can_trace():
        print(json.dumps({"kills": 0, "why": can_trace()}))
        return 0
    home = prepared(given.work, given.release, given.newer, json.loads(given.rows.read_text()))
    both = {read_release(given.release).release_id, read_release(given.newer).release_id}
    print(json.dumps(killed_all(home, both, given.every)))
    return 0


def killed_all(home: Path, both: set[str], every: int) -> dict[str, Any]:
    """Kills updates of copies of a home; returns how many, what was found, and which releases were used."""
    victim = home.with_name("victim")
    found: dict[str, Any] = {"kills": 0, "findings": [], "was": [], "calls": 0}
    number = 1
    while True:
        shutil.rmtree(victim, ignore_errors=True)
        shutil.copytree(home, victim, symlinks=True)
        ended = killed_before(lambda say: update(victim, say), number)
        if not ended.killed:
            assert not ended.error, ended
            return found | {"calls": len(ended.calls), "was": sorted(set(found["was"]))}
        looked = finished(lambda say: look(victim, both, say))
        wrong = looked.said[-1]["wrong"] if looked.said and not looked.error else [str(looked)]
        found["findings"] += [f"{number} {ended.calls[-1]}: {line}" for line in wrong]
        found["was"].append(looked.said[-1].get("was", "?"))
        found["kills"] += 1
        number += every


if __name__ == "__main__":
    sys.exit(main())
