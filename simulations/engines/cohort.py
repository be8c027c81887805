"""A whole cohort in this process: devices' private steps run together, a person per row of one batch.

Every device does what it does alone, by the same code (`umbel.device_client.flower_app`), until it wants a
profile or a gradient. There it waits; once all of a pack wait, what they want is made in one go, and each
goes on with its own. So messages, checks, the gate and errors are those of any other engine. Packs are a
function of the round and its devices, and some are at work at a time, each in a thread: the same seed gives
the same numbers whatever the threads. Another engine's sums are in another order, so its numbers are equal to
float32's rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

from flwr.app import Context, Message

from umbel.coordinator.federation.journal import RoundRecord, RoundsResult
from umbel.coordinator.server_app import serve
from umbel.device_client import flower_app
from umbel.device_client.engine import ONNXRUNTIME, Engine
from umbel.device_client.flower_app import COMPUTE
from umbel.device_client.learning import Encoded
from umbel.device_client.rounds import Steps, Wanted, WantedGradient, WantedProfile, learned
from umbel.shared.profile import FloatArray
from umbel.shared.release import EMBEDDED, Release, read_release
from umbel.simulations.engines.nodes import InProcessGrid
from umbel.simulations.homes.home import home_of

TORCH_CPU = "torch:cpu"
PACK, _PACK_BEHIND = 8, 32  # devices: so many that a graph run costs little beside their texts
_SHARE, _LEAST = 3, 4  # a pack is a third of those who are left, at most; at least a quarter of a whole one
_ROWS, _FLOATS = 256, 3 * 2**17  # texts of a graph run, and floats of their states: what caches hold
_GPU_PACK, _GPU_ROWS = 128, 2048  # a GPU wants more at a time

_Asked: TypeAlias = tuple[Message, Context]


@final
class CohortGrid(InProcessGrid):
    """Its devices answer in packs, some of them at a time."""

    def __init__(self, config: dict[str, Any], population: int, *, pack: int = PACK, threads: int = 1):
        """Makes the nodes.

        Args:
            config: The run config that every device sees.
            population: How many devices there are.
            pack: How many answer together; numbers are a function of it, to float32's rounding.
            threads: How many packs are at work at a time; numbers do not depend on it.
        """
        super().__init__(config, population)
        self._pack = pack
        self._threads = threads

    def answers(self, asked: Sequence[_Asked]) -> Iterator[Message]:
        """Yields what devices answer, in the order in which they were asked."""
        packs = _packs(asked, self._pack)
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


def _packs(asked: Sequence[_Asked], most: int) -> Iterator[Sequence[_Asked]]:
    """Yields packs of `most` at most; the last ones are smaller, so that no thread waits long for another.

    They are a function of how many are asked alone.
    """
    start = 0
    while start < len(asked):
        size = min(most, max(1, most // _LEAST, (len(asked) - start) // _SHARE))
        yield asked[start : start + size]
        start += size


@final
@dataclass(slots=True)
class _Device:
    """A device at work.

    Attributes:
        message: What it was asked.
        context: Flower's, of its node.
        steps: Its work.
        wanted: What it waits for; None at the end.
        answer: What it has answered.
    """

    message: Message
    context: Context
    steps: Steps[Message]
    wanted: Wanted | None = None
    answer: Message | None = None

    def go_on(self, made: dict[str, FloatArray] | None) -> None:
        """Works until it wants something or has an answer; whatever goes wrong is its answer."""
        try:
            self.wanted = self.steps.send(made) if made is not None else next(self.steps)
        except StopIteration as end:
            self.wanted, self.answer = None, end.value
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Answers with an error."""
        self.steps.close()
        self.wanted = None
        self.answer = flower_app.refusal(self.message, self.context, error, home_of)


def answered_together(asked: Sequence[_Asked]) -> list[Message]:
    """Returns what several devices answer; what they want meanwhile is made for all of them together."""
    devices = [_Device(m, context, flower_app.answering(m, context, home_of)) for m, context in asked]
    for device in devices:
        device.go_on(None)
    while waiting := [device for device in devices if device.wanted is not None]:
        for alike in _alike(waiting):
            _give(alike)
    return [device.answer for device in devices if device.answer is not None]


def _alike(waiting: Sequence[_Device]) -> list[list[_Device]]:
    """Returns the devices by what a batch must have in common."""
    groups: dict[tuple[Any, ...], list[_Device]] = {}
    for device in waiting:
        assert device.wanted is not None
        groups.setdefault(_kind(device.wanted), []).append(device)
    return list(groups.values())


def _kind(wanted: Wanted) -> tuple[Any, ...]:
    if isinstance(wanted, WantedGradient):
        return id(wanted.engine), wanted.examples.embedding is not None
    recipe = wanted.task.recipe(wanted.engine.release.manifest, len(wanted.support))
    return id(wanted.engine), repr(recipe)


def _give(alike: Sequence[_Device]) -> None:
    """Makes what devices wait for, and lets them go on; if that fails, each has its own made by itself."""
    try:
        made = _made([device.wanted for device in alike if device.wanted is not None])
    except Exception as error:
        if len(alike) == 1:
            alike[0].fail(error)
            return
        for device in alike:
            _give([device])
        return
    for device, own in zip(alike, made, strict=True):
        device.go_on(own)


def _made(wanted: Sequence[Wanted]) -> list[dict[str, FloatArray]]:
    """Makes profiles in one batch; and gradients, where what runs the graphs can do so for many people."""
    if len(wanted) == 1:
        return [wanted[0].made()]
    profiles = [own for own in wanted if isinstance(own, WantedProfile)]
    if profiles:
        engine, task = profiles[0].engine, profiles[0].task
        supports = [own.support for own in profiles]
        found = learned(engine, supports, task, rows=_rows(engine, supports))
        return [
            {name: values[row : row + 1] for name, values in found.items()} for row in range(len(profiles))
        ]
    gradients = [own for own in wanted if isinstance(own, WantedGradient)]
    if gradients[0].engine.compute == ONNXRUNTIME:
        return [own.made() for own in gradients]
    from umbel.simulations.torch_graphs.gradients import gradients_of_each

    return gradients_of_each(gradients, rows=_rows(gradients[0].engine, [own.examples for own in gradients]))


def _rows(engine: Engine, examples: Sequence[Encoded]) -> int:
    """Returns how many texts go into a graph run at most."""
    if _on_gpu(engine.compute):
        return _GPU_ROWS
    if all(own.embedding is not None for own in examples):
        return _FLOATS // engine.embedding_size
    longest = max(int(own.tokens.ids.shape[1]) for own in examples)
    return max(1, min(_ROWS, _FLOATS // (longest * engine.embedding_size)))


def _on_gpu(compute: str) -> bool:
    return compute != ONNXRUNTIME and not compute.startswith(TORCH_CPU)


def run_cohort(
    config: dict[str, Any],
    population: int,
    workers: int,
    on_round: Callable[[RoundRecord], None] | None,
) -> RoundsResult:
    """Runs the rounds of a run config; see `run_rounds`. `workers` are threads here."""
    Path(str(config["out"])).mkdir(parents=True, exist_ok=True)
    compute = str(config.get(COMPUTE) or ONNXRUNTIME)
    if compute != ONNXRUNTIME:
        from umbel.simulations.torch_graphs.opening import compute_with_torch

        compute_with_torch(compute)
    release = read_release(Path(str(config["release"])))
    pack, threads = (_GPU_PACK, 1) if _on_gpu(compute) else (_pack(release), workers)
    grid = CohortGrid(config, population, pack=pack, threads=threads)
    return serve(grid, config, on_round=on_round, roll=grid.roll(), release=release)


def _pack(release: Release) -> int:
    """Returns how many devices answer together: more where a text is read once and little is left."""
    behind = all(f"{graph}.onnx" in release.manifest.blobs for graph in EMBEDDED)
    return _PACK_BEHIND if behind else PACK
