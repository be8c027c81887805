"""A whole cohort on this machine: devices' private steps run together, a person per row of one batch.

Devices answer in packs (`packs.py`), a function of the round and its devices, and some packs are at work at a
time: the same seed gives the same numbers whatever works on them. Another engine's sums are in another order,
so its numbers are equal to float32's rounding.

Each pack at work has a thread. Where a text is read once, little of a device's work is products, in which
Python's threads run side by side; then it has a process, if there is enough to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, final

from flwr.app import Message

from umbel.coordinator.federation.journal import RoundRecord, RoundsResult
from umbel.coordinator.federation.settings import RoundSettings
from umbel.coordinator.server_app import serve
from umbel.device_client.engine import ONNXRUNTIME
from umbel.device_client.flower_app import COMPUTE
from umbel.shared.release import EMBEDDED, Release, read_release
from umbel.simulations.engines.nodes import InProcessGrid
from umbel.simulations.engines.pack_processes import PackProcesses
from umbel.simulations.engines.packs import Asked, answered_together, on_gpu

PACK, _PACK_BEHIND = 8, 32  # devices: so many that a graph run costs little beside their texts
_SHARE, _LEAST = 3, 4  # a pack is a third of those who are left, at most; at least a quarter of a whole one
_GPU_PACK = 128  # a GPU wants more at a time
_MANY = 3000  # answers of a run, after which processes have paid for their start


@final
class CohortGrid(InProcessGrid):
    """Its devices answer in packs, some of them at a time."""

    def __init__(
        self,
        config: dict[str, Any],
        population: int,
        *,
        pack: int = PACK,
        threads: int = 1,
        processes: PackProcesses | None = None,
    ):
        """Makes the nodes.

        Args:
            config: The run config that every device sees.
            population: How many devices there are.
            pack: How many answer together; numbers are a function of it, to float32's rounding.
            threads: How many packs are at work at a time; numbers do not depend on it.
            processes: What answers instead of threads.
        """
        super().__init__(config, population)
        self._pack = pack
        self._threads = threads
        self._processes = processes

    def answers(self, asked: Sequence[Asked]) -> Iterator[Message]:
        """Yields what devices answer, in the order in which they were asked."""
        packs = _packs(asked, self._pack)
        if self._processes is not None:
            yield from self._processes.answers(list(packs))
            return
        if self._threads == 1:
            for pack in packs:
                yield from answered_together(pack)
            return
        # Few packs ahead of what is taken: a round's answers are not held all at once.
        with ThreadPoolExecutor(self._threads, thread_name_prefix="pack") as pool:
            ahead: deque[Future[list[Message]]] = deque()
            try:
                for pack in packs:
                    ahead.append(pool.submit(answered_together, pack))
                    if len(ahead) > self._threads:
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:
                for waiting in ahead:
                    waiting.cancel()


def _packs(asked: Sequence[Asked], most: int) -> Iterator[Sequence[Asked]]:
    """Yields packs of `most` at most; the last ones are smaller, so that no thread waits long for another.

    They are a function of how many are asked alone.
    """
    start = 0
    while start < len(asked):
        size = min(most, max(1, most // _LEAST, (len(asked) - start) // _SHARE))
        yield asked[start : start + size]
        start += size


def run_cohort(
    config: dict[str, Any],
    population: int,
    workers: int,
    on_round: Callable[[RoundRecord], None] | None,
) -> RoundsResult:
    """Runs the rounds of a run config; see `run_rounds`. `workers` are threads here, or processes."""
    Path(str(config["out"])).mkdir(parents=True, exist_ok=True)
    compute = str(config.get(COMPUTE) or ONNXRUNTIME)
    if compute != ONNXRUNTIME:
        from umbel.simulations.torch_graphs.opening import compute_with_torch

        compute_with_torch(compute)
    release = read_release(Path(str(config["release"])))
    pack, threads = (_GPU_PACK, 1) if on_gpu(compute) else (_pack(release), workers)
    apart = threads > 1 and compute == ONNXRUNTIME and pack == _PACK_BEHIND and _is_much(config, population)
    with PackProcesses(threads) if apart else nullcontext() as processes:
        grid = CohortGrid(config, population, pack=pack, threads=threads, processes=processes)
        return serve(grid, config, on_round=on_round, roll=grid.roll(), release=release)


def _pack(release: Release) -> int:
    """Returns how many devices answer together: more where a text is read once and little is left."""
    behind = all(f"{graph}.onnx" in release.manifest.blobs for graph in EMBEDDED)
    return _PACK_BEHIND if behind else PACK


def _is_much(config: dict[str, Any], population: int) -> bool:
    """Says whether so many answers are wanted that processes are worth their start."""
    settings = RoundSettings.from_run_config(config)
    clients = min(settings.clients, population) + settings.evaluate_clients
    return settings.rounds * clients >= _MANY
