"""What this machine can do at most: float32 matrix products, and memory.

    python -m umbel.simulations.bench.ceilings THREADS

Both are medians over repetitions of about a tenth of a second, in a fresh process: products of large square
matrices by torch, which no small product exceeds, and sums of arrays that are larger than any cache.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from umbel.simulations.bench.processes import environment, run_once

_SIDE = 2048  # of the matrices
_FLOATS = 2**25  # of each array: 128 MiB
_WARM, _REPETITIONS = 3, 15


@final
@dataclass(frozen=True, slots=True)
class Ceilings:
    """FLOP and bytes in a second, with all threads."""

    flop: float
    touched: float


def measured_ceilings(threads: int) -> Ceilings:
    """Returns what a fresh process with so many threads reaches."""
    command = [sys.executable, "-m", "umbel.simulations.bench.ceilings", str(threads)]
    return Ceilings(**json.loads(run_once(command, environment(threads)).printed.splitlines()[-1]))


def main() -> None:
    """Measures and prints them."""
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    left, right, product = (torch.rand(_SIDE, _SIDE) for _ in range(3))
    first, second, total = (torch.rand(_FLOATS) for _ in range(3))
    found = {
        "flop": 2 * _SIDE**3 / _seconds(lambda: torch.mm(left, right, out=product)),
        "touched": 3 * 4 * _FLOATS / _seconds(lambda: torch.add(first, second, out=total)),
    }
    sys.stdout.write(json.dumps(found) + "\n")


def _seconds(work: Callable[[], object]) -> float:
    found = []
    for _ in range(_WARM + _REPETITIONS):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return statistics.median(found[_WARM:])


if __name__ == "__main__":
    main()
