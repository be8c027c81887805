"""Exports the onboarding network, and compares onnxruntime with torch on it.

The encoder is in none of its graphs. A device reads texts with `predict`, and gives what it reads to
`onboard`. To train the network in rounds it gets the loss's gradient by the profile that was written from
`learn`, and gives it to `teach`, which carries it on to the network's parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from umbel.coordinator.graphs.exporting import exported, named_proto
from umbel.coordinator.graphs.joint import GRADIENT
from umbel.coordinator.graphs.parity import compared, open_session
from umbel.coordinator.graphs.split import WeightsFile, cut_graphs
from umbel.coordinator.onboarding.network import Onboarder
from umbel.shared.onboarding import (
    GRAPH,
    INPUTS,
    PREFIX,
    QUERY,
    START,
    TEACH,
    TOTAL,
    UNKNOWN,
    WANTED,
    WEIGHTS,
)
from umbel.shared.rng import generator

_CASES = ((1, 1, 1), (5, 2, 3), (12, 4, 7), (3, 5, 2))
"""(texts, users, texts that are asked) that are compared; in the last one some users have no text."""

_NETWORK = "network."
_AXES = (*(("texts",) for _ in range(4)), ("users",))

Arrays = Mapping[str, np.ndarray[Any, Any]]


@final
class _Rows(nn.Module):
    """The network with its profile as a tuple, as graphs give it."""

    def __init__(self, network: Onboarder):
        super().__init__()
        self.network = network

    def forward(
        self, embedding: Tensor, logits: Tensor, labels: Tensor, owner: Tensor, owners: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns the prototypes' weights, then every tensor of the profile."""
        profile, weights = self.network(embedding, logits, labels, owner, owners)
        return weights, *(profile[tensor.name] for tensor in self.network.spec.tensors)


@final
class _Lesson(nn.Module):
    """What the network is to make small: sum_T <wanted_T, profile_T> + sum_i nll_i of the mixture.

    With wanted_T = dL/dT, the gradient of the first sum is that of the loss L through the profile.
    """

    def __init__(self, network: Onboarder):
        super().__init__()
        self.network = network

    def forward(
        self,
        known: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        query: tuple[Tensor, Tensor, Tensor, Tensor],
        wanted: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """Returns the total (a scalar), the prototypes' weights and every tensor of the profile."""
        profile, weights = self.network(*known)
        rows = [profile[tensor.name] for tensor in self.network.spec.tensors]
        embedding, logits, labels, owner = query
        member = (owner.unsqueeze(1) == known[-1].unsqueeze(0)).to(weights.dtype)  # (query, users)
        nll = self.network.mixture(member @ weights, embedding, logits, labels) * member.sum(1)
        pulled = [(row * own).sum() for row, own in zip(rows, wanted, strict=True)]
        return torch.stack([nll.sum(), *pulled]).sum(), weights.detach(), *(row.detach() for row in rows)


@final
class _Taught(nn.Module):
    """The lesson as a function of the parameters that devices train, too."""

    def __init__(self, network: Onboarder, names: Sequence[str]):
        super().__init__()
        self.lesson = _Lesson(network)
        self.names = tuple(names)

    def forward(
        self,
        known: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        query: tuple[Tensor, Tensor, Tensor, Tensor],
        wanted: tuple[Tensor, ...],
        parameters: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """Returns what the lesson returns, under other values for some parameters."""
        values = {
            _NETWORK + name.removeprefix(PREFIX): value
            for name, value in zip(self.names, parameters, strict=True)
        }
        found: tuple[Tensor, ...] = torch.func.functional_call(self.lesson, values, (known, query, wanted))
        return found


def onboarding_graphs(
    network: Onboarder, file: WeightsFile, trainables: Sequence[str] = ()
) -> dict[str, bytes]:
    """Exports the network.

    Args:
        network: The network, on CPU.
        file: The weights file that holds its parameters, under `PREFIX`.
        trainables: Those that rounds train: inputs with a default.

    Returns:
        Graph name -> serialized ModelProto: `onboard` with the inputs `INPUTS`, whose outputs are the
        prototypes' weights and each private tensor's start; and, where rounds train anything, `teach`.
    """
    frozen = copy.deepcopy(network).requires_grad_(False).eval()
    starts = [WEIGHTS, *(START + tensor.name for tensor in network.spec.tensors)]
    if not trainables:
        return cut_graphs(_plain(frozen, starts), {GRAPH: starts}, {}, [file])
    shapes = {name: tuple(_parameters(network)[name].shape) for name in trainables}
    outputs = {GRAPH: starts, TEACH: [TOTAL, *(GRADIENT + name for name in trainables)]}
    return cut_graphs(_differentiated(frozen, starts, trainables), outputs, shapes, [file])


def _plain(network: Onboarder, starts: Sequence[str]) -> Any:
    texts, users = torch.export.Dim("texts", min=1), torch.export.Dim("users", min=1)
    case = _case(network, 0, 5, 3, 4)
    arguments = tuple(torch.from_numpy(case[name]) for name in INPUTS)
    dynamic: tuple[Any, ...] = (*({0: texts},) * 4, {0: users})
    made = exported(_Rows(network), arguments, dynamic, starts, differentiate=False)
    return named_proto(made, INPUTS, _AXES, _public(network, _NETWORK))


def _differentiated(network: Onboarder, starts: Sequence[str], trainables: Sequence[str]) -> Any:
    texts, users, asked = (torch.export.Dim(name, min=1) for name in ("texts", "users", "asked"))
    case, tensors = _case(network, 0, 5, 3, 4), network.spec.tensors
    given = _parameters(network)
    known, query = (tuple(torch.from_numpy(case[name]) for name in names) for names in (INPUTS, QUERY))
    wanted = tuple(torch.from_numpy(case[WANTED + tensor.name]) for tensor in tensors)
    parameters = tuple(given[name].detach().clone().requires_grad_() for name in trainables)
    dynamic: tuple[Any, ...] = (
        (*({0: texts},) * 4, {0: users}),
        ({0: asked},) * 4,
        tuple({0: users} for _ in tensors),
        tuple({} for _ in trainables),
    )
    outputs = [TOTAL, *starts, *(GRADIENT + name for name in trainables)]
    taught = _Taught(network, trainables)
    made = exported(taught, (known, query, wanted, parameters), dynamic, outputs, differentiate=True)
    inputs = [*INPUTS, *QUERY, *(WANTED + tensor.name for tensor in tensors), *trainables]
    axes = [*_AXES, *(("asked",) for _ in QUERY), *(("users",) for _ in tensors)]
    return named_proto(made, inputs, axes, _public(network, "lesson." + _NETWORK))


def _public(network: Onboarder, place: str) -> dict[str, str]:
    return {place + name: PREFIX + name for name, _ in network.named_parameters()}


def _parameters(network: Onboarder) -> dict[str, nn.Parameter]:
    return {PREFIX + name: value for name, value in network.named_parameters()}


def parameter_arrays(network: Onboarder) -> dict[str, np.ndarray[Any, Any]]:
    """Returns the network's parameters under their public names."""
    return {name: value.detach().cpu().numpy() for name, value in _parameters(network).items()}


def measure_onboarding(network: Onboarder, graphs: Mapping[str, bytes], weights: Arrays) -> dict[str, float]:
    """Returns what `measure_parity` does of other graphs: "graph/output" -> the worst relative difference.

    Args:
        network: The network that was exported.
        graphs: Its graphs, by name.
        weights: Every weight of the release by name.

    Raises:
        ReleaseError: onnxruntime cannot open or run a graph.
    """
    own = {name: array for name, array in weights.items() if name.startswith(PREFIX)}
    exact = _Lesson(copy.deepcopy(network).cpu().double().eval().requires_grad_(True))
    sessions = {name: open_session(name, graphs[name], own) for name in (GRAPH, TEACH) if name in graphs}
    feeds = [_case(network, number, *sizes) for number, sizes in enumerate(_CASES)]
    return compared(sessions, [(feed, _exact(exact, feed)) for feed in feeds])


def _exact(lesson: _Lesson, feed: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Returns every output of both graphs, by name, in float64."""
    tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
    doubles = {
        name: value.double() if value.is_floating_point() else value for name, value in tensors.items()
    }
    private = [tensor.name for tensor in lesson.network.spec.tensors]
    known, query = (tuple(doubles[name] for name in names) for names in (INPUTS, QUERY))
    total, *rows = lesson(known, query, tuple(doubles[WANTED + name] for name in private))
    parameters = _parameters(lesson.network)
    gradients = torch.autograd.grad(total, list(parameters.values()))
    found = dict(zip([TOTAL, WEIGHTS, *(START + name for name in private)], [total, *rows], strict=True))
    found |= {GRADIENT + name: value for name, value in zip(parameters, gradients, strict=True)}
    return {name: value.detach().numpy() for name, value in found.items()}


def _case(
    network: Onboarder, number: int, texts: int, users: int, asked: int
) -> dict[str, np.ndarray[Any, Any]]:
    rng = generator(0, number, "", "onboarding parity")
    width, labels = network.first.shape[1], network.label_count
    known = (
        rng.standard_normal((texts, width)).astype(np.float32),
        rng.standard_normal((texts, labels)).astype(np.float32),
        rng.integers(UNKNOWN, labels, texts),
        rng.integers(-1, users, texts),
        np.arange(users),
    )
    query = (
        rng.standard_normal((asked, width)).astype(np.float32),
        rng.standard_normal((asked, labels)).astype(np.float32),
        rng.integers(labels, size=asked),
        rng.integers(users, size=asked),
    )
    wanted = {
        WANTED + tensor.name: rng.standard_normal((users, *tensor.shape)).astype(np.float32)
        for tensor in network.spec.tensors
    }
    return {**dict(zip(INPUTS, known, strict=True)), **dict(zip(QUERY, query, strict=True)), **wanted}
