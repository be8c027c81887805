"""What this machine can do at most: matrix products, and memory.

    python -m umbel.simulations.bench.ceilings THREADS DEVICE

Both are the fastest of some repetitions: products of large square matrices, in float32 or on a GPU in
bfloat16, which no small product exceeds, and sums of arrays that are larger than any cache.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, final

from umbel.simulations.bench.processes import environment, run_once

if TYPE_CHECKING:
    import torch

_SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices
_FLOATS = {"cpu": 2**25, "cuda": 2**29}  # of each array
_QUICK_SIDE, _QUICK_FLOATS = 512, 2**22
_WARM, _REPETITIONS = 3, 15


@final
@dataclass(frozen=True, slots=True)
class Ceilings:
    """FLOP and bytes in a second, with all threads."""

    flop: float
    touched: float


def measured_ceilings(threads: int, device: str = "cpu") -> Ceilings:
    """Returns what a fresh process with so many threads reaches on a device."""
    command = [sys.executable, "-m", "umbel.simulations.bench.ceilings", str(threads), device]
    return Ceilings(**json.loads(run_once(command, environment(threads)).printed.splitlines()[-1]))


def ceilings_here(device: torch.device, *, quick: bool = False) -> Ceilings:
    """Returns what this process reaches.

    Args:
        device: Where to compute.
        quick: Whether smaller matrices and arrays do.
    """
    import torch

    side = _QUICK_SIDE if quick else _SIDES[device.type]
    length = _QUICK_FLOATS if quick else _FLOATS[device.type]
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right, product = (torch.ones(side, side, dtype=kind, device=device) for _ in range(3))
    first, second, total = (torch.ones(length, device=device) for _ in range(3))
    return Ceilings(
        flop=2 * side**3 / _seconds(lambda: torch.mm(left, right, out=product), device),
        touched=3 * 4 * length / _seconds(lambda: torch.add(first, second, out=total), device),
    )


def wait_for(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measures and prints them."""
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    sys.stdout.write(json.dumps(asdict(ceilings_here(torch.device(sys.argv[2])))) + "\n")


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    found = []
    for _ in range(_WARM + _REPETITIONS):
        begun = time.perf_counter()
        work()
        wait_for(device)
        found.append(time.perf_counter() - begun)
    return min(found[_WARM:])


if __name__ == "__main__":
    main()
