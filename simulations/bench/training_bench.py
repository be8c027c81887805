"""`umbel bench training`: a step of the coordinator's training beside plain LoRA's, and the ceilings.

Each side runs in a process of its own; both are timed in turns. Before a time is told, each side's loss and
gradients are compared with those of an eager float32 twin of the same seed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from umbel.simulations.bench.encoders import SMALL, TINY, backbone_name
from umbel.simulations.bench.processes import Worker, environment
from umbel.simulations.bench.rows import BenchError, Row, Sample
from umbel.simulations.bench.sides import Sides, alternated, timing

PLAIN = "lora"
METHODS: Mapping[str, str] = {
    "plora": "PLoRA",
    "xpeft": "X-PEFT",
    "lopa": "LoPA",
    "pha": "PHA",
    "loratrf": "LoRATRF",
}
"""What is trained, with its options by default -> its name."""
TOLERANCES: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 5e-2}
"""Of loss and gradients against an eager float32 twin: |difference| / |twin|, over all gradients together.

bfloat16 has 8 bits: a product is off by 0.4 %, and what a hard choice or a ReLU makes of it by more.
"""
_AGAINST = "plain LoRA, a loop of torch and transformers"
_MOST = 1.5  # times plain LoRA's step
_DENSE = 0.4  # of the measured ceiling of matrix products, on a GPU
_STEPS_ON_GPU = 20  # between two looks at the clock: a step does not wait for the one before


@final
@dataclass(frozen=True, slots=True)
class Load:
    """The batch of a step."""

    texts: int
    tokens: int

    def words(self) -> str:
        """Returns the load for people."""
        return f"{self.texts} texts x {self.tokens} tokens"


def load_of(sides: Sides, encoder: str) -> Load:
    """Returns what a step computes: little where it only shall be seen to work."""
    if sides.settings.quick or encoder == TINY:
        return Load(8, 16)
    if encoder == SMALL:
        return Load(32, 16)
    return Load(64 if sides.settings.device == "cuda" else 16, 128)


def step_of(method: str) -> Callable[[Sides, str], list[Row]]:
    """Returns the measurement of a step of one of `METHODS`."""
    return partial(_step, method)


def _step(method: str, sides: Sides, encoder: str) -> list[Row]:
    """Seconds of a step beside plain LoRA's, memory, and how near to the machine's ceilings it is.

    Raises:
        TrainingError: A GPU is asked for, and torch sees none.
        BenchError: A side's loss or gradients are not those of its float32 twin.
    """
    from umbel.coordinator.training.trainer import training_device

    training_device(sides.settings.device)
    rows: list[Row] = []
    for threads in sides.settings.threads:
        with _worker(sides, threads) as ours, _worker(sides, threads) as theirs:
            rows += _compared(sides, encoder, method, threads, ours, theirs)
    return rows


def _compared(
    sides: Sides, encoder: str, method: str, threads: int, ours: Worker, theirs: Worker
) -> list[Row]:
    load, device = load_of(sides, encoder), sides.settings.device
    steps = _STEPS_ON_GPU if device == "cuda" else 1
    options: dict[str, Any] = {
        "backbone": backbone_name(encoder, sides.folder / "encoders"),
        "device": device,
        "texts": load.texts,
        "tokens": load.tokens,
        "steps": steps,
        "scratch": str(sides.place("training")),
    }
    sides.on_phase(f"{encoder}, {method}")
    found = ours.prepare("step", method=method, **options)
    plain = theirs.prepare("step", method=PLAIN, **options)
    for name, told in ((METHODS[method], found), (PLAIN, plain)):
        check_twin(name, told)
    sample, other = alternated(sides.settings.repetitions, timing(ours), timing(theirs))
    assert other is not None
    sample, other = (Sample(tuple(value / steps for value in own.values)) for own in (sample, other))
    peaks = [Sample((float(worker.memory()[1]),)) for worker in (ours, theirs)]
    if device == "cuda":
        peaks = [Sample((float(own["gpu_bytes"]),)) for own in (found, plain)]
    where: dict[str, Any] = {
        "encoder": encoder,
        "setting": f"{METHODS[method]}: {load.words()}, {found['precision']}",
        "threads": threads,
    }
    return [
        Row(
            part="a training step",
            unit="s",
            sense="share",
            ours=sample,
            theirs=other,
            against=_AGAINST,
            bound=None if sides.settings.quick else _MOST,
            **where,
        ),
        Row(
            part="peak memory",
            unit="bytes",
            sense="share",
            ours=peaks[0],
            theirs=peaks[1],
            against=_AGAINST,
            **where,
        ),
        *roofline(sides, found, sample, ours, where),
    ]


def roofline(
    sides: Sides, found: Mapping[str, Any], sample: Sample, worker: Worker, where: Mapping[str, Any]
) -> list[Row]:
    """Returns a step beside the least time that its products, and its products and bytes, can take.

    The ceilings are measured in the process of the step: large matrix products of the same precision, and
    sums in memory. Bytes are those that each operation reads and writes, as if nothing stayed in a cache.
    """
    ceiling = worker.prepare("ceilings", device=sides.settings.device, quick=sides.settings.quick)
    flop, moved = float(found["flop"]), float(found["bytes"])
    dense = flop / ceiling["flop_per_s"]
    least = max(dense, moved / ceiling["bytes_per_s"])
    told = f"{flop / 1e9:.3g} GFLOP, {moved / 1e9:.3g} GB"
    speeds = f"{ceiling['flop_per_s'] / 1e9:.3g} GFLOP/s, {ceiling['bytes_per_s'] / 1e9:.3g} GB/s"
    on_gpu = sides.settings.device == "cuda"
    rest = {name: value for name, value in where.items() if name != "setting"}
    return [
        Row(
            part="share of the matmul ceiling",
            unit="s",
            ours=sample,
            theirs=Sample((dense,)),
            setting=f"{where['setting']}; {told}",
            against=f"its products at the measured ceiling, {speeds}",
            bound=_DENSE if on_gpu and not sides.settings.quick else None,
            **rest,
        ),
        Row(
            part="share of the roofline",
            unit="s",
            ours=sample,
            theirs=Sample((least,)),
            setting=f"{where['setting']}; {told}",
            against=f"the larger of its products' and its bytes' least time, {speeds}",
            **rest,
        ),
    ]


def check_twin(name: str, told: Mapping[str, Any]) -> None:
    """Refuses to go on where a side's loss and gradients are not those of its eager float32 twin.

    Raises:
        BenchError: They are too far apart.
    """
    allowed = TOLERANCES[told["precision"]]
    wrong = [
        f"{what}: differs by {told[what]:.2g}, expected {allowed:.2g} at most"
        for what in ("loss", "gradients")
        if not told[what] <= allowed
    ]
    if wrong:
        raise BenchError(
            f"{name}: a step is not that of its eager float32 twin, so no times are told",
            wrong,
            "This is a fault of the benchmark, or of what makes a step fast.",
        )


def _worker(sides: Sides, threads: int) -> Worker:
    command = [sys.executable, "-m", "umbel.simulations.bench.training_worker", str(threads)]
    return Worker(command, environment(threads), sides.folder / "logs" / "training.log")
