"""What each method is and costs on a given backbone: for `umbel methods`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.methods import REGISTRY, method_class
from umbel.coordinator.methods.base import AbstractMethod
from umbel.coordinator.model import PersonalModel, build_model

_NUMBER = re.compile(r"\d+")


@final
@dataclass(frozen=True, slots=True)
class TensorRow:
    """One private tensor, or shared tensors of one kind.

    Attributes:
        name: Full name; layers are written as *.
        shape: Shape of one.
        count: How many there are.
        storage: How a private one is kept; empty for shared ones.
        size_bytes: Bytes of all of them: as kept if private, in float32 if shared.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    storage: str
    size_bytes: int


@final
@dataclass(frozen=True, slots=True)
class OptionRow:
    """One option: its name, its default, what it is."""

    name: str
    default: Any
    description: str


@final
@dataclass(frozen=True, slots=True)
class MethodRow:
    """A method with its default options on one backbone.

    Attributes:
        name: Its name in configurations.
        citation: The paper.
        equation: What it computes.
        explanation: Its docstring.
        private_bytes: Bytes of a packed profile, without the header.
        private_values: Numbers in it.
        shared_parameters: Numbers that the coordinator trains for everyone.
        private: The private tensors.
        shared: The shared ones.
        round_tensors: Patterns of the shared ones that devices may train in rounds.
        options: What can be configured.
    """

    name: str
    citation: str
    equation: str
    explanation: str
    private_bytes: int
    private_values: int
    shared_parameters: int
    private: tuple[TensorRow, ...]
    shared: tuple[TensorRow, ...]
    round_tensors: tuple[str, ...]
    options: tuple[OptionRow, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns the row as JSON."""
        return asdict(self)


def describe(name: str, backbone: Backbone, labels: Sequence[str] = ("no", "yes")) -> MethodRow:
    """Builds a method with its default options and measures it.

    Raises:
        ConfigError: No method has this name.
    """
    kind = method_class(name)
    model = build_model(backbone, "classification", labels, {name: kind.Config()}, seed=0)
    private = _private(model)
    prefix = f"methods.{name}."
    shared = {key: tuple(value.shape) for key, value in model.named_parameters() if key.startswith(prefix)}
    return MethodRow(
        name,
        kind.citation,
        kind.equation,
        " ".join((kind.__doc__ or "").split("\n\n    ", 1)[-1].split()),
        model.profile_spec().packed_bytes,
        sum(tensor.size for tensor in model.profile_spec().tensors),
        sum(model.get_parameter(key).numel() for key in shared),
        private,
        _kinds({key.removeprefix(prefix): shape for key, shape in shared.items()}),
        kind.round_tensors,
        _options(kind),
    )


def describe_all(backbone: Backbone) -> list[MethodRow]:
    """Returns a row for each registered method, in the order of the registry."""
    return [describe(name, backbone) for name in REGISTRY]


def _private(model: PersonalModel) -> tuple[TensorRow, ...]:
    return tuple(
        TensorRow(tensor.name, tensor.shape, 1, tensor.storage, tensor.packed_bytes)
        for tensor in model.profile_spec().tensors
    )


def _kinds(shapes: dict[str, tuple[int, ...]]) -> tuple[TensorRow, ...]:
    """Puts tensors together that differ only in the numbers in their names."""
    kinds: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, shape in shapes.items():
        key = (_NUMBER.sub("*", name), shape)
        kinds[key] = kinds.get(key, 0) + 1
    return tuple(
        TensorRow(name, shape, count, "", 4 * count * _size(shape)) for (name, shape), count in kinds.items()
    )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _options(kind: type[AbstractMethod]) -> tuple[OptionRow, ...]:
    return tuple(
        OptionRow(name, info.default, info.description or "")
        for name, info in kind.Config.model_fields.items()
    )
