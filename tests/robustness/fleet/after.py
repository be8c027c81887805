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
        forced: Whether an owner had to force it, since it was as good for nobody: noise may make it so.
        migrated: Devices that adopted it and have a profile for it.
    """

    release: str
    outcomes: dict[str, int]
    forced: bool
    migrated: int


def spread(own: Federation, devices: int) -> Spread:
    """Publishes what the rounds reached, and lets some devices update."""
    fed, following, channel = own.folder.path, own.path / "next", own.path / "channel"
    made = _told(own, "coordinator", "publish-rounds", str(fed), "--release", str(own.release.folder),
                 "--out", str(following))  # fmt: skip
    keys = ("--keys", str(own.path / "keys"))
    pin = _told(own, "coordinator", "channel", "init", str(channel), *keys)["pin"]
    _told(own, "coordinator", "channel", "add", str(channel), str(following), *keys)

    def update(number: int, *words: str) -> str:
        home = ("--home", str(own.home(number)))
        return str(
            _told(own, "device", "update", "--source", str(channel), "--pin", pin, *home, *words)["outcome"]
        )

    outcomes = Counter(update(number) for number in range(devices))
    forced = "adopted" not in outcomes
    if forced:
        outcomes[update(0, "--force")] += 1
    status = [_told(own, "device", "status", "--home", str(own.home(number))) for number in range(devices)]
    migrated = sum(row["release"] == made["id"] and row["profile"] is not None for row in status)
    return Spread(made["id"], dict(outcomes), forced, migrated)


def _told(own: Federation, *words: str) -> dict[str, Any]:
    ended = own.run(*words, "--json")
    assert ended.returncode == 0, ended.stderr + ended.stdout
    found: dict[str, Any] = json.loads(ended.stdout)
    return found
