"""After the rounds: a new release, published to a channel, and taken over by devices."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, final

from tests.federation import Federation


@final
@dataclass(frozen=True, slots=True)
class Spread:
    """What came of the new release.

    Attributes:
        release: Its id.
        outcomes: What `umbel device update` said -> how often.
        migrated: Devices that adopted it and have a profile for it.
    """

    release: str
    outcomes: dict[str, int]
    migrated: int


def spread(own: Federation, devices: int, *words: str) -> Spread:
    """Publishes what the rounds reached, and lets some devices update; `words` are their owners'."""
    fed, following, channel = own.folder.path, own.path / "next", own.path / "channel"
    made = _told(own, "coordinator", "publish-rounds", str(fed), "--release", str(own.release.folder),
                 "--out", str(following))  # fmt: skip
    keys = ("--keys", str(own.path / "keys"))
    pin = _told(own, "coordinator", "channel", "init", str(channel), *keys)["pin"]
    _told(own, "coordinator", "channel", "add", str(channel), str(following), *keys)
    outcomes: Counter[str] = Counter()
    migrated = 0
    for number in range(devices):
        home = ("--home", str(own.home(number)))
        found = _told(own, "device", "update", "--source", str(channel), "--pin", pin, *home, *words)
        outcomes[found["outcome"]] += 1
        status = _told(own, "device", "status", *home)
        migrated += status["release"] == made["id"] and status["profile"] is not None
    return Spread(made["id"], dict(outcomes), migrated)


def _told(own: Federation, *words: str) -> dict[str, Any]:
    ended = own.run(*words, "--json")
    assert ended.returncode == 0, ended.stderr + ended.stdout
    found: dict[str, Any] = json.loads(ended.stdout)
    return found
