"""Training steps, timed in a running process: python -m umbel.simulations.bench.training_worker THREADS.

Either a step of the coordinator's own trainer, or of a plain loop; both over the same batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from umbel.coordinator.training.trainer import training_device
from umbel.simulations.bench.ceilings import ceilings_here, wait_for
from umbel.simulations.bench.counted import Counted
from umbel.simulations.bench.rival.harness import Prepare, Work, serve
from umbel.simulations.bench.training_sides import Side, ours, plain


def stepping() -> Prepare:
    """Returns what prepares steps, and tells how they compare with a twin's, and what they compute."""

    def prepare(
        method: str, backbone: str, device: str, texts: int, tokens: int, steps: int, scratch: str
    ) -> tuple[Work, Any]:
        place = training_device(device)
        make: Callable[..., Side] = plain if method == "lora" else ours
        batch = (method, backbone, place, texts, tokens, Path(scratch))
        side, twin = (make(*batch, fast=fast) for fast in (True, False))
        found, wanted = side.gradients(), twin.gradients()
        told = {"precision": side.precision, **_apart(found, wanted)}
        del twin, wanted
        with Counted() as counted:
            side.step()
        told |= {"flop": counted.flop, "bytes": counted.bytes}
        side.step()
        told["gpu_bytes"] = torch.cuda.max_memory_allocated() if place.type == "cuda" else 0

        def work() -> None:
            for _ in range(steps):
                side.step()
            wait_for(place)

        return work, told

    return prepare


def _apart(found: tuple[float, list[Tensor]], wanted: tuple[float, list[Tensor]]) -> dict[str, float]:
    """Returns how far loss and gradients are from the twin's, relative to these."""
    (loss, ours_), (other, theirs) = found, wanted
    square = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(ours_, theirs, strict=True))
    size = sum(float(b.double().square().sum()) for b in theirs)
    return {"loss": abs(loss - other) / abs(other), "gradients": (square / size) ** 0.5}


def measuring_ceilings(device: str, quick: bool) -> tuple[Work, Any]:
    """Measures how fast large matrix products and sums are here."""
    found = ceilings_here(training_device(device), quick=quick)
    return int, {"flop_per_s": found.flop, "bytes_per_s": found.touched}


def main() -> None:
    """Serves."""
    torch.set_num_threads(int(sys.argv[1]))
    serve({"step": stepping(), "ceilings": measuring_ceilings})


if __name__ == "__main__":
    main()
