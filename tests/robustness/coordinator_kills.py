"""Kills a coordinator at random moments of its rounds, and compares what they reach in the end.

    python -m tests.robustness.coordinator_kills --count 20 --out runs/coordinator-kills

Real processes on this machine: one coordinator that serves over TLS, and five devices that stay; changes are
summed securely, under a privacy budget whose noise follows from a key. First the rounds run without a kill.
Then the coordinator with all its processes is killed (SIGKILL) at a random moment, and the same command given
again, until so many kills were survived; when the rounds end before that, they begin anew. Each time they
end, their tensors must be, to the bit, those that were reached without a kill.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import numpy as np
from tests.builders import tiny_release
from tests.federation import Federation

from umbel.coordinator.federation.journal import kept_trainables
from umbel.coordinator.federation.privacy.sources import KEY
from umbel.shared.profile import FloatArray
from umbel.shared.release import Release
from umbel.shared.rng import generator

DEVICES = 5  # a sum over fewer is not opened
ROUNDS = 6
_SETTINGS = (
    f"rounds={ROUNDS}", f"clients={DEVICES}", "local_steps=40", "noise_multiplier=0.3", "epsilon_budget=1000",
)  # fmt: skip


@final
@dataclass(frozen=True, slots=True)
class Found:
    """What came of it.

    Attributes:
        kills: How often the coordinator was killed.
        runs: How often the rounds came to their end.
        in_round: After how many finished rounds each kill came.
        after: How often the first device's last answer before a kill was to each kind of message.
        differing: Runs that reached other tensors.
    """

    kills: int
    runs: int
    in_round: tuple[int, ...]
    after: dict[str, int]
    differing: int


def compare(path: Path, release: Release, count: int, seed: int = 0) -> Found:
    """Kills a coordinator `count` times.

    Args:
        path: Where everything lies; it must not exist.
        release: What is trained on.
        count: How many kills.
        seed: Of their moments.
    """
    own = Federation(path, release, DEVICES)
    try:
        joined, expected, seconds = _unkilled(own)
        moments = generator(seed, 0, "", "coordinator kills")
        kills: list[int] = []
        after: Counter[str] = Counter()
        runs = differing = 0
        while len(kills) < count:
            _forget(own)
            while len(kills) < count and _killed(own, float(moments.uniform(0.0, seconds / 2))):
                kills.append(_finished(own))
                after[own.events(joined[0], "turn")[-1]["kind"]] += 1
            runs, differing = runs + 1, differing + _differs(own, expected)
        assert all(device.poll() is None for device in joined), "a device has ended"
        return Found(len(kills), runs, tuple(kills), dict(after), differing)
    finally:
        own.close()


def _unkilled(own: Federation) -> tuple[list[subprocess.Popen[str]], dict[str, FloatArray], float]:
    """Returns the devices that joined, what is reached without a kill, and how long the rounds took."""
    serving = own.serve(*_SETTINGS)
    own.until(serving, lambda: own.events(serving, "listening"))
    joined = [own.join(number, line) for number, line in enumerate(own.invite(DEVICES))]
    assert own.ended(serving) == 0, own.said(serving)
    return joined, _reached(own), sum(row["seconds"] for row in own.events(serving, "round"))


def _killed(own: Federation, after_s: float) -> bool:
    """Kills the coordinator so long after it has begun a round; False if the rounds were done before."""
    begun, started = own.folder.rounds(own.release.release_id) / "begun.json", time.time()
    serving = own.serve(*_SETTINGS)
    # Before, it waits for devices, which come back later and later: most kills would meet nothing else.
    while serving.poll() is None and not (begun.is_file() and begun.stat().st_mtime > started):
        time.sleep(0.005)
    until = time.monotonic() + after_s
    while time.monotonic() < until and serving.poll() is None:
        time.sleep(0.005)
    own.kill(serving)
    return not own.events(serving, "done")


def _differs(own: Federation, expected: dict[str, FloatArray]) -> bool:
    """Lets the rounds end, and says whether they reached other tensors."""
    serving = own.serve(*_SETTINGS)
    assert own.ended(serving) == 0, own.said(serving)
    found = _reached(own)
    return any(not np.array_equal(found[name], value) for name, value in expected.items())


def _reached(own: Federation) -> dict[str, FloatArray]:
    return kept_trainables(own.folder.rounds(own.release.release_id), own.release.release_id)[1]


def _finished(own: Federation) -> int:
    journal = own.folder.rounds(own.release.release_id) / "rounds.json"
    return len(json.loads(journal.read_bytes())["rounds"]) if journal.is_file() else 0


def _forget(own: Federation) -> None:
    """Lets rounds begin anew, with the same noise."""
    folder = own.folder.rounds(own.release.release_id)
    key = (folder / KEY).read_bytes()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / KEY).write_bytes(key)


def main() -> int:
    """Runs it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of their moments")
    parser.add_argument("--out", type=Path, required=True, help="folder of the findings")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in good order: no process is left running
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="umbel-kills-") as folder:
        release = tiny_release(Path(folder) / "release")
        found = compare(Path(folder) / "federation", release, given.count, given.seed)
    text = json.dumps(asdict(found), indent=1)
    (given.out / "found.json").write_text(text + "\n")
    print(text)
    return 1 if found.differing else 0


if __name__ == "__main__":
    sys.exit(main())
