"""A graph of a release, run by torch, node after node, as an onnxruntime session would run it.

Two things that onnxruntime does not do: what depends on nothing that has changed since the last run is not
computed again (`kept`), and a graph can be run for many people at once, each with values of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from umbel.shared.errors import ReleaseError
from umbel.simulations.torch_graphs.operators import Operator, known_operators, make_operator

Feed: TypeAlias = Mapping[str, npt.NDArray[Any]]

_KINDS = {TensorProto.FLOAT: "tensor(float)", TensorProto.INT64: "tensor(int64)"}
_PLACES = 4  # what is kept: of so many batches that come in turns


@final
@dataclass(frozen=True, slots=True)
class Value:
    """An input or an output, as onnxruntime describes it.

    Attributes:
        name: Its name.
        type: Such as "tensor(float)".
        shape: Sizes; names of axes that are free.
    """

    name: str
    type: str
    shape: list[int | str]


@final
@dataclass(frozen=True, slots=True)
class _Step:
    """A node.

    Attributes:
        run: Its operator.
        inputs: Names; empty where one is left out.
        outputs: Names.
        done: Names that nothing needs after it.
    """

    run: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    done: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class _Plan:
    """What has to be done for some outputs.

    Attributes:
        still: What depends on nothing that changes from run to run.
        moving: The rest.
        kept: Names that `still` makes and `moving` or the caller needs.
        watched: Inputs that `still` depends on.
    """

    still: tuple[_Step, ...]
    moving: tuple[_Step, ...]
    kept: frozenset[str]
    watched: frozenset[str]


@final
@dataclass(slots=True)
class _Kept(threading.local):
    """What a thread has kept: outputs asked for, the watched inputs, and what was made of them."""

    places: list[tuple[tuple[str, ...], Feed, dict[str, Tensor]]] = field(default_factory=list)


@final
class TorchSession:
    """A graph with its weights; safe for threads."""

    def __init__(
        self,
        model: ModelProto,
        weights: Mapping[str, Tensor],
        device: torch.device,
        *,
        changing: Collection[str] = (),
        bfloat16: bool = False,
    ):
        """Reads the graph.

        Args:
            model: The graph; its large weights by name only.
            weights: These, on the device.
            device: Where to compute.
            changing: Inputs that are expected to change from run to run while the others do not.
            bfloat16: Whether products are of bfloat16's numbers, summed in float32.

        Raises:
            ReleaseError: The graph has operators that are not known here, or weights are missing.
        """
        graph = model.graph
        unknown = sorted({node.op_type for node in graph.node} - known_operators())
        problems = [f"operator {kind} is not known" for kind in unknown]
        own = {tensor.name: tensor for tensor in graph.initializer}
        large = [name for name, t in own.items() if t.data_location == TensorProto.EXTERNAL]
        problems += [f"weight '{name}' is missing" for name in large if name not in weights]
        if problems:
            raise ReleaseError("torch cannot run a graph of the release", problems)
        self._device, self._bfloat16 = device, bfloat16
        self._constants = {name: weights[name] for name in large}
        self._constants |= {name: _constant(t, device) for name, t in own.items() if name not in large}
        self._inputs = [value for value in graph.input if value.name not in own]
        self._free = [value for value in graph.input if value.name in own]
        self._outputs = list(graph.output)
        self._nodes = [_step(node, device) for node in graph.node]
        self._changing = frozenset(changing)
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._kept = _Kept()
        _warm(device)

    def get_inputs(self) -> list[Value]:
        """Returns what must be fed."""
        return [_value(value) for value in self._inputs]

    def get_overridable_initializers(self) -> list[Value]:
        """Returns the weights for which others may be fed."""
        return [_value(value) for value in self._free]

    def get_outputs(self) -> list[Value]:
        """Returns what can be asked for."""
        return [_value(value) for value in self._outputs]

    def run(self, outputs: Sequence[str], feed: Feed) -> list[npt.NDArray[Any]]:
        """Returns outputs, by name, of what is fed."""
        names = tuple(outputs)
        plan = self._plan(names)
        with torch.no_grad(), self._precision():
            values = {name: self._tensor(array) for name, array in feed.items()}
            kept = self._found(names, plan, feed)
            if kept is None:
                kept = self._worked(plan.still, values, plan.kept)
                self._keep(names, {name: feed[name] for name in plan.watched if name in feed}, kept)
            found = self._worked(plan.moving, {**values, **kept}, frozenset(names))
        return [_array(found[name]) for name in names]

    def run_each(self, outputs: Sequence[str], feeds: Sequence[Feed]) -> list[npt.NDArray[Any]]:
        """Returns what `run` gives for each of several feeds, stacked: a person per row of one batch.

        Args:
            outputs: Names.
            feeds: The same inputs of the same shapes in each; what is the very same array in all is there
                once.
        """
        names, given = tuple(outputs), list(feeds[0])
        plan = self._plan(names)
        alike = [all(feed[name] is feeds[0][name] for feed in feeds) for name in given]
        arrays = [
            feeds[0][name] if same else np.stack([feed[name] for feed in feeds])
            for name, same in zip(given, alike, strict=True)
        ]

        def one(*tensors: Tensor) -> tuple[Tensor, ...]:
            values = dict(zip(given, tensors, strict=True))
            steps = (*plan.still, *plan.moving)
            found = self._worked(steps, values, frozenset(names) | plan.kept)
            return tuple(found[name] for name in names)

        with torch.no_grad(), self._precision():
            if all(alike):
                found = tuple(
                    value.expand(len(feeds), *value.shape) for value in one(*map(self._tensor, arrays))
                )
            else:
                in_dims = tuple(None if same else 0 for same in alike)
                found = torch.func.vmap(one, in_dims=in_dims)(*map(self._tensor, arrays))
        return [_array(value) for value in found]

    def _precision(self) -> Any:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16)

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return _of_numpy(array).to(self._device)

    def _worked(
        self, steps: Sequence[_Step], values: dict[str, Tensor], wanted: frozenset[str]
    ) -> dict[str, Tensor]:
        """Works through nodes, and returns what is wanted of what they and the constants give."""
        for step in steps:
            given = [values.get(name, self._constants.get(name)) if name else None for name in step.inputs]
            values.update(zip(step.outputs, step.run(given), strict=False))
            for name in step.done:
                values.pop(name, None)
        found = {name: values[name] for name in wanted if name in values}
        return found | {
            name: self._constants[name] for name in wanted - found.keys() if name in self._constants
        }

    def _plan(self, outputs: tuple[str, ...]) -> _Plan:
        found = self._plans.get(outputs)
        if found is None:
            found = self._plans[outputs] = _planned(
                self._nodes, outputs, self._changing, {v.name for v in (*self._inputs, *self._free)}
            )
        return found

    def _found(self, outputs: tuple[str, ...], plan: _Plan, feed: Feed) -> dict[str, Tensor] | None:
        """Returns what is kept of the watched inputs as they are fed now; None if nothing is."""
        for asked, before, kept in self._kept.places:
            if asked == outputs and all(_same(before.get(name), feed.get(name)) for name in plan.watched):
                return kept
        return None

    def _keep(self, outputs: tuple[str, ...], watched: Feed, kept: dict[str, Tensor]) -> None:
        self._kept.places = [*self._kept.places[1 - _PLACES :], (outputs, watched, kept)]


def _same(left: npt.NDArray[Any] | None, right: npt.NDArray[Any] | None) -> bool:
    if left is right:
        return True
    if left is None or right is None or left.shape != right.shape:
        return False
    return bool(np.array_equal(left, right))


def _planned(
    nodes: Sequence[_Step], outputs: tuple[str, ...], changing: frozenset[str], inputs: Collection[str]
) -> _Plan:
    needed, used = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            used.append(node)
            needed.update(node.inputs)
    moves, still, moving = set(changing), list[_Step](), list[_Step]()
    for node in reversed(used):
        if moves.intersection(node.inputs):
            moves.update(node.outputs)
            moving.append(node)
        else:
            still.append(node)
    read = frozenset(name for node in moving for name in node.inputs) | frozenset(outputs)
    kept = frozenset(name for node in still for name in node.outputs if name in read)
    watched = frozenset(name for node in still for name in node.inputs if name in inputs)
    return _Plan(_freeing(still, kept | read), _freeing(moving, frozenset(outputs)), kept, watched)


def _freeing(steps: Sequence[_Step], wanted: frozenset[str]) -> tuple[_Step, ...]:
    """Notes with each node what nothing needs after it, so that it can be let go."""
    seen, found = set(wanted), []
    for step in reversed(steps):
        last = {name for name in (*step.inputs, *step.outputs) if name and name not in seen}
        seen |= last
        found.append(_Step(step.run, step.inputs, step.outputs, tuple(sorted(last))))
    return tuple(reversed(found))


def _step(node: NodeProto, device: torch.device) -> _Step:
    attributes = {a.name: _attribute(helper.get_attribute_value(a), device) for a in node.attribute}
    return _Step(make_operator(node.op_type, attributes), tuple(node.input), tuple(node.output))


def _attribute(value: Any, device: torch.device) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return _constant(value, device) if isinstance(value, TensorProto) else value


def _constant(tensor: TensorProto, device: torch.device) -> Tensor:
    """Returns a small constant; whole numbers are mostly sizes, which are read on the CPU."""
    found = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    return found.to(device) if found.is_floating_point() else found


def _of_numpy(array: npt.NDArray[Any]) -> Tensor:
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # torch warns otherwise


def _array(value: Tensor) -> npt.NDArray[Any]:
    value = value.float() if value.dtype == torch.bfloat16 else value
    found: npt.NDArray[Any] = value.cpu().contiguous().numpy()
    return found


def _value(value: Any) -> Value:
    kind = value.type.tensor_type
    shape = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in kind.shape.dim]
    return Value(value.name, _KINDS.get(kind.elem_type, f"type {kind.elem_type}"), shape)


def _warm(device: torch.device) -> None:
    """Lets torch start what it starts with a device's first product, which threads must not do at once."""
    if device.type != "cpu":
        torch.ones(1, 1, device=device) @ torch.ones(1, 1, device=device)
