"""Exports the onboarding network, and compares onnxruntime with torch on it.

The encoder is not in its graph: a device reads texts with `predict`, and gives what it reads to `onboard`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from umbel.coordinator.graphs.exporting import exported, named_proto
from umbel.coordinator.graphs.parity import open_session, relative_difference
from umbel.coordinator.graphs.split import WeightsFile, cut_graphs
from umbel.coordinator.onboarding.network import Onboarder
from umbel.shared.onboarding import GRAPH, INPUTS, PREFIX, START, UNKNOWN, WEIGHTS
from umbel.shared.rng import generator

_CASES = ((1, 1), (5, 2), (12, 4), (3, 5))
"""(texts, users) that are compared; in the last one some users have no text."""

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


def onboarding_graph(network: Onboarder, file: WeightsFile) -> bytes:
    """Exports the network.

    Args:
        network: The network, on CPU.
        file: The weights file that holds its parameters, under `PREFIX`.

    Returns:
        A serialized ModelProto with the inputs `INPUTS`; outputs are the prototypes' weights and each
        private tensor's start.
    """
    rows = _Rows(copy.deepcopy(network).requires_grad_(False).eval())
    texts, users = torch.export.Dim("texts", min=1), torch.export.Dim("users", min=1)
    dynamic: tuple[Any, ...] = (*({0: texts},) * 4, {0: users})
    outputs = [WEIGHTS, *(START + tensor.name for tensor in network.spec.tensors)]
    case = _case(network, 0, 5, 3)
    arguments = tuple(torch.from_numpy(case[name]) for name in INPUTS)
    model = exported(rows, arguments, dynamic, outputs, differentiate=False)
    weights = {f"network.{name}": PREFIX + name for name, _ in network.named_parameters()}
    joint = named_proto(model, INPUTS, [*(("texts",) for _ in range(4)), ("users",)], weights)
    return cut_graphs(joint, {GRAPH: outputs}, {}, [file])[GRAPH]


def parameter_arrays(network: Onboarder) -> dict[str, np.ndarray[Any, Any]]:
    """Returns the network's parameters under their public names."""
    return {PREFIX + name: value.detach().cpu().numpy() for name, value in network.named_parameters()}


def measure_onboarding(network: Onboarder, graph: bytes, weights: Arrays) -> dict[str, float]:
    """Returns "onboard/output" -> the worst relative difference from torch in float64.

    Raises:
        ReleaseError: onnxruntime cannot open the graph.
    """
    session = open_session(GRAPH, graph, {name: w for name, w in weights.items() if name.startswith(PREFIX)})
    exact = _Rows(copy.deepcopy(network).cpu().double().eval().requires_grad_(False))
    names = [value.name for value in session.get_outputs()]
    worst = {f"{GRAPH}/{name}": 0.0 for name in names}
    for number, (texts, users) in enumerate(_CASES):
        feed = _case(network, number, texts, users)
        inputs = [torch.from_numpy(feed[name]) for name in INPUTS]
        wanted = exact(*(x.double() if x.is_floating_point() else x for x in inputs))
        for name, found, right in zip(names, session.run(names, feed), wanted, strict=True):
            place = f"{GRAPH}/{name}"
            worst[place] = max(worst[place], relative_difference(found, right.numpy()))
    return worst


def _case(network: Onboarder, number: int, texts: int, users: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = generator(0, number, "", "onboarding parity")
    width, labels = network.first.shape[1], network.label_count
    return {
        "text_embedding": rng.standard_normal((texts, width)).astype(np.float32),
        "logits": rng.standard_normal((texts, labels)).astype(np.float32),
        "labels": rng.integers(UNKNOWN, labels, texts),
        "owner": rng.integers(-1, users, texts),
        "owners": np.arange(users),
    }
