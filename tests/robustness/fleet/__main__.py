"""A fleet that breaks, hangs and lies, against the same rounds without any of it.

    python -m tests.robustness.fleet --out runs/fleet

Real processes on this machine, over TLS, with secure sums and noise under a budget: one coordinator and 12
devices, 5 rounds. Three devices are killed (SIGKILL) in the middle of a round and started again, one hangs
past a deadline, one lies, the coordinator is killed twice. What comes out must be, to 1e-6, what the same
rounds reach in one process in which nobody crashes (`reference.py`); nothing of what a device keeps to itself
may be in the bytes that left; and devices take over the release that is made in the end.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from tests.robustness.fleet.proof import masked_release, prove
from tests.robustness.fleet.scene import small, whole


def main() -> int:
    """Runs it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the findings")
    parser.add_argument("--seed", type=int, default=0, help="of who breaks, and when")
    parser.add_argument("--small", action="store_true", help="six devices and two rounds")
    parser.add_argument("--deadline", type=float, default=45.0, help="of each stage of a round, in seconds")
    parser.add_argument("--updates", type=int, default=3, help="devices that look for the new release")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in good order: no process is left running
    given.out.mkdir(parents=True, exist_ok=True)
    scene = (small if given.small else whole)(given.seed, given.deadline)
    with tempfile.TemporaryDirectory(prefix="umbel-fleet-") as folder:
        release = masked_release(Path(folder))
        found = prove(Path(folder), release, scene, given.updates)
    text = json.dumps(found, indent=1)
    (given.out / "found.json").write_text(text + "\n")
    print(text)
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
