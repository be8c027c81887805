"""A pack of devices at work: what several of them want meanwhile is made in one go, a person per row.

Every device does what it does alone, by the same code (`umbel.device_client.flower_app`), until it wants a
profile or a gradient. There it waits; once all of a pack wait, what they want is made together, and each goes
on with its own. So messages, checks, the gate and errors are those of any other engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from flwr.app import Context, Message

from umbel.device_client import flower_app
from umbel.device_client.engine import ONNXRUNTIME, Engine
from umbel.device_client.learning import Encoded
from umbel.device_client.rounds import Steps, Wanted, WantedGradient, WantedProfile, learned
from umbel.shared.profile import FloatArray
from umbel.simulations.homes.home import home_of

TORCH_CPU = "torch:cpu"
_ROWS, _FLOATS = 256, 3 * 2**17  # texts of a graph run, and floats of their states: what caches hold
_GPU_ROWS = 2048  # a GPU wants more at a time

Asked: TypeAlias = tuple[Message, Context]
"""What a device is asked, and Flower's context of its node."""


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


def answered_together(asked: Sequence[Asked]) -> list[Message]:
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
    if on_gpu(engine.compute):
        return _GPU_ROWS
    if all(own.embedding is not None for own in examples):
        return _FLOATS // engine.embedding_size
    longest = max(int(own.tokens.ids.shape[1]) for own in examples)
    return max(1, min(_ROWS, _FLOATS // (longest * engine.embedding_size)))


def on_gpu(compute: str) -> bool:
    """Says whether graphs run on a GPU."""
    return compute != ONNXRUNTIME and not compute.startswith(TORCH_CPU)
