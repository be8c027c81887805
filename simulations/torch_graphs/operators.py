"""ONNX's operators by torch: those that umbel's graphs have.

An operator is made once for a node, with the node's attributes, and then called with tensors. Sizes are
tensors too, on the CPU; what is read out of them (`_ints`) never is a value that differs from person to
person, so that operators can be mapped over people (`torch.func.vmap`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Values: TypeAlias = Sequence[Tensor | None]
Operator: TypeAlias = Callable[[Values], tuple[Tensor, ...]]
Attributes: TypeAlias = Mapping[str, Any]
_Maker: TypeAlias = Callable[[Attributes], Operator]

# TensorProto.DataType -> torch's.
DTYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
}

_MAKERS: dict[str, _Maker] = {}


def known_operators() -> frozenset[str]:
    """Returns the names of the operators that there are."""
    return frozenset(_MAKERS)


def make_operator(kind: str, attributes: Attributes) -> Operator:
    """Makes an operator.

    Args:
        kind: ONNX's name; one of `known_operators`.
        attributes: The node's attributes.

    Returns:
        Takes the node's inputs, None where one is left out, and returns its outputs.
    """
    return _MAKERS[kind](attributes)


def _operator(kind: str) -> Callable[[_Maker], _Maker]:
    def note(maker: _Maker) -> _Maker:
        _MAKERS[kind] = maker
        return maker

    return note


def _plain(kind: str, function: Callable[..., Tensor]) -> None:
    """An operator without attributes, of tensors alone."""
    _MAKERS[kind] = lambda _: lambda values: (function(*values),)


def _ints(value: Tensor | None) -> list[int]:
    assert value is not None
    found: list[int] = value.reshape(-1).tolist()
    return found


def _have(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _together(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Lets a size, which is on the CPU, meet a tensor that is elsewhere."""

    def apply(left: Tensor, right: Tensor) -> Tensor:
        if left.device != right.device:
            if left.device.type == "cpu":
                left = left.to(right.device)
            else:
                right = right.to(left.device)
        return function(left, right)

    return apply


def _divide(left: Tensor, right: Tensor) -> Tensor:
    if left.is_floating_point():
        return left / right
    return torch.div(left, right, rounding_mode="trunc")


_ALONE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Cos": torch.cos, "Erf": torch.erf, "Exp": torch.exp,
    "Identity": lambda x: x, "Log": torch.log, "Neg": torch.neg, "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Sigmoid": torch.sigmoid,
    "Sin": torch.sin, "Sqrt": torch.sqrt, "Tanh": torch.tanh,
}  # fmt: skip
_OF_TWO: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "And": torch.logical_and, "Div": _divide, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "MatMul": torch.matmul,
    "Mul": torch.mul, "Or": torch.logical_or, "Pow": torch.pow, "Sub": torch.sub,
}  # fmt: skip
for _kind, _one in _ALONE.items():
    _plain(_kind, _one)
for _kind, _two in _OF_TWO.items():
    _plain(_kind, _together(_two))


@_operator("Max")
def _max(_: Attributes) -> Operator:
    return lambda values: (_folded(torch.maximum, values),)


def _folded(function: Callable[[Tensor, Tensor], Tensor], values: Values) -> Tensor:
    found, apply = _have(values[0]), _together(function)
    for value in values[1:]:
        found = apply(found, _have(value))
    return found


@_operator("Cast")
def _cast(attributes: Attributes) -> Operator:
    dtype = DTYPES[attributes["to"]]
    return lambda values: (_have(values[0]).to(dtype),)


@_operator("Clip")
def _clip(_: Attributes) -> Operator:
    def run(values: Values) -> tuple[Tensor, ...]:
        low, high = ((*values[1:], None, None))[:2]
        found = _have(values[0])
        found = found if low is None else _together(torch.maximum)(found, low)
        return (found if high is None else _together(torch.minimum)(found, high),)

    return run


@_operator("Concat")
def _concat(attributes: Attributes) -> Operator:
    return lambda values: (torch.cat([_have(value) for value in values], attributes["axis"]),)


@_operator("CumSum")
def _cumsum(_: Attributes) -> Operator:
    return lambda values: (torch.cumsum(_have(values[0]), _ints(values[1])[0]),)


@_operator("Expand")
def _expand(_: Attributes) -> Operator:
    def run(values: Values) -> tuple[Tensor, ...]:
        x = _have(values[0])
        shape = _ints(values[1])
        longer = [1] * (x.dim() - len(shape)) + shape  # ONNX lets either be the shorter one
        own = [1] * (len(longer) - x.dim()) + list(x.shape)
        return (x.expand([wide if one == 1 else one for one, wide in zip(own, longer, strict=True)]),)

    return run


@_operator("Gather")
def _gather(attributes: Attributes) -> Operator:
    axis = attributes.get("axis", 0)

    def run(values: Values) -> tuple[Tensor, ...]:
        x, index = _have(values[0]), _have(values[1])
        own, size = axis % x.dim(), x.shape[axis]
        index = index.to(x.device)
        index = torch.where(index < 0, index + size, index)
        if own == 0 and x.dim() == 2 and x.is_floating_point():
            return (functional.embedding(index, x),)
        taken = torch.index_select(x, own, index.reshape(-1))
        return (taken.reshape((*x.shape[:own], *index.shape, *x.shape[own + 1 :])),)

    return run


@_operator("GatherElements")
def _gather_elements(attributes: Attributes) -> Operator:
    def run(values: Values) -> tuple[Tensor, ...]:
        x, index = _have(values[0]), _have(values[1])
        axis = attributes.get("axis", 0)
        index = index.to(x.device)
        return (torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index)),)

    return run


@_operator("GatherND")
def _gather_nd(attributes: Attributes) -> Operator:
    assert not attributes.get("batch_dims", 0)

    def run(values: Values) -> tuple[Tensor, ...]:
        x, index = _have(values[0]), _have(values[1])
        return (x[tuple(index.to(x.device).unbind(-1))],)

    return run


@_operator("Gelu")
def _gelu(attributes: Attributes) -> Operator:
    kind = attributes.get("approximate", "none")
    return lambda values: (functional.gelu(_have(values[0]), approximate=kind),)


@_operator("Gemm")
def _gemm(attributes: Attributes) -> Operator:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)

    def run(values: Values) -> tuple[Tensor, ...]:
        a, b = _have(values[0]), _have(values[1])
        a = a.mT if attributes.get("transA", 0) else a
        b = b.mT if attributes.get("transB", 0) else b
        if len(values) < 3 or values[2] is None:
            return (a @ b if alpha == 1 else alpha * (a @ b),)
        return (torch.addmm(values[2], a, b, beta=beta, alpha=alpha),)

    return run


@_operator("LayerNormalization")
def _layer_norm(attributes: Attributes) -> Operator:
    axis, epsilon = attributes.get("axis", -1), attributes.get("epsilon", 1e-5)

    def run(values: Values) -> tuple[Tensor, ...]:
        x, scale, bias = (*values, None)[:3]
        x = _have(x)
        shape = x.shape[axis % x.dim() :]
        return torch.native_layer_norm(x, shape, scale, bias, epsilon)

    return run


@_operator("LogSoftmax")
def _log_softmax(attributes: Attributes) -> Operator:
    return lambda values: (torch.log_softmax(_have(values[0]), attributes.get("axis", -1)),)


@_operator("Range")
def _range(_: Attributes) -> Operator:
    def run(values: Values) -> tuple[Tensor, ...]:
        start, end, step = (_have(value).item() for value in values)
        return (torch.arange(start, end, step, dtype=_have(values[0]).dtype),)

    return run


def _reduced(function: Callable[..., Tensor]) -> _Maker:
    def make(attributes: Attributes) -> Operator:
        keep = bool(attributes.get("keepdims", 1))

        def run(values: Values) -> tuple[Tensor, ...]:
            x = _have(values[0])
            axes = _ints(values[1]) if len(values) > 1 and values[1] is not None else []
            if not axes and attributes.get("noop_with_empty_axes", 0):
                return (x,)
            return (function(x, tuple(axes) or tuple(range(x.dim())), keepdim=keep),)

        return run

    return make


_MAKERS["ReduceSum"] = _reduced(torch.sum)
_MAKERS["ReduceMean"] = _reduced(torch.mean)
_MAKERS["ReduceMax"] = _reduced(torch.amax)


@_operator("Reshape")
def _reshape(attributes: Attributes) -> Operator:
    def run(values: Values) -> tuple[Tensor, ...]:
        x, shape = _have(values[0]), _ints(values[1])
        if not attributes.get("allowzero", 0):
            shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
        return (x.reshape(shape),)

    return run


@_operator("ScatterND")
def _scatter_nd(attributes: Attributes) -> Operator:
    assert attributes.get("reduction", "none") == "none"

    def run(values: Values) -> tuple[Tensor, ...]:
        x, index, update = (_have(value) for value in values)
        return (x.index_put(tuple(index.to(x.device).unbind(-1)), update),)

    return run


@_operator("Shape")
def _shape(attributes: Attributes) -> Operator:
    start, end = attributes.get("start", 0), attributes.get("end")
    return lambda values: (torch.tensor(_have(values[0]).shape[start:end], dtype=torch.int64),)


@_operator("Slice")
def _slice(_: Attributes) -> Operator:
    def run(values: Values) -> tuple[Tensor, ...]:
        x = _have(values[0])
        starts, ends = _ints(values[1]), _ints(values[2])
        axes = _ints(values[3]) if len(values) > 3 and values[3] is not None else range(len(starts))
        steps = _ints(values[4]) if len(values) > 4 and values[4] is not None else [1] * len(starts)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            assert step > 0
            size = x.shape[axis]
            first, last = (min(max(at + size if at < 0 else at, 0), size) for at in (start, end))
            x = x.narrow(axis, first, max(last - first, 0))
            if step > 1:
                x = x[(slice(None),) * (axis % x.dim()) + (slice(None, None, step),)]
        return (x,)

    return run


@_operator("Softmax")
def _softmax(attributes: Attributes) -> Operator:
    return lambda values: (torch.softmax(_have(values[0]), attributes.get("axis", -1)),)


@_operator("Split")
def _split(attributes: Attributes) -> Operator:
    axis = attributes.get("axis", 0)

    def run(values: Values) -> tuple[Tensor, ...]:
        x = _have(values[0])
        if len(values) > 1 and values[1] is not None:
            return tuple(torch.split(x, _ints(values[1]), axis))
        size = -(-x.shape[axis] // attributes["num_outputs"])
        return tuple(torch.split(x, size, axis))

    return run


@_operator("Squeeze")
def _squeeze(_: Attributes) -> Operator:
    def run(values: Values) -> tuple[Tensor, ...]:
        x = _have(values[0])
        if len(values) > 1 and values[1] is not None:
            return (x.squeeze(tuple(_ints(values[1]))),)
        return (x.squeeze(),)

    return run


@_operator("TopK")
def _top_k(attributes: Attributes) -> Operator:
    largest, axis = bool(attributes.get("largest", 1)), attributes.get("axis", -1)

    def run(values: Values) -> tuple[Tensor, ...]:
        return tuple(torch.topk(_have(values[0]), _ints(values[1])[0], axis, largest=largest))

    return run


@_operator("Transpose")
def _transpose(attributes: Attributes) -> Operator:
    axes = attributes.get("perm")

    def run(values: Values) -> tuple[Tensor, ...]:
        x = _have(values[0])
        return (x.permute(axes if axes is not None else tuple(reversed(range(x.dim())))),)

    return run


@_operator("Unsqueeze")
def _unsqueeze(_: Attributes) -> Operator:
    def run(values: Values) -> tuple[Tensor, ...]:
        x, axes = _have(values[0]), _ints(values[1])
        full = x.dim() + len(axes)
        for axis in sorted(axis % full for axis in axes):
            x = x.unsqueeze(axis)
        return (x,)

    return run


@_operator("Where")
def _where(_: Attributes) -> Operator:
    def run(values: Values) -> tuple[Tensor, ...]:
        which, left, right = (_have(value) for value in values)
        device = next((v.device for v in (which, left, right) if v.device.type != "cpu"), which.device)
        return (torch.where(which.to(device), left.to(device), right.to(device)),)

    return run
