"""The gate of every release: torch and onnxruntime must agree on logits, loss and every gradient."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from umbel.coordinator.graphs.joint import GRADIENT, JointModule
from umbel.coordinator.model import PersonalModel
from umbel.shared.errors import ReleaseError
from umbel.shared.rng import generator

TOLERANCE = 1e-5
SHAPES = ((1, 2, 1), (2, 9, 2), (5, 17, 3), (8, 32, 1))
"""(batch, tokens, users) that are compared: one and many, odd and even, mixed users and one."""

_FAULT = "This is a fault of the export, not of your data: report it with the versions of torch and onnx."

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
_FLOOR = 0.05
_ABSOLUTE = 1e-3  # a gradient that is zero by its equation is rounding alone, about 1e-9


def measure_parity(
    model: PersonalModel,
    graphs: Mapping[str, bytes],
    weights: Arrays,
    trainables: Sequence[str],
    max_tokens: int,
) -> dict[str, float]:
    """Returns "graph/output" -> the worst relative difference over all shapes.

    The difference of a tensor is |onnxruntime - torch| / |torch| in L2. Torch computes in float64, so
    that what is measured is onnxruntime's own rounding (about 1e-6 here) and nothing else. In one batch a
    gradient may be next to nothing by cancellation, and rounding large beside it: the divisor is at least a
    twentieth of the tensor's largest |torch|, and at least 0.001.

    Raises:
        ReleaseError: onnxruntime cannot open or run a graph.
    """
    sessions = {graph: open_session(graph, data, weights) for graph, data in graphs.items()}
    reference = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    joint = JointModule(reference, trainables)
    feeds = parity_cases(model, max_tokens)
    return compared(sessions, ((feed, _torch_outputs(joint, feed)) for feed in feeds))


def compared(sessions: Mapping[str, Any], cases: Iterable[tuple[Arrays, Arrays]]) -> dict[str, float]:
    """Runs graphs, and returns "graph/output" -> the worst relative difference over all cases.

    Args:
        sessions: Graph name -> session.
        cases: Inputs by name, of which each graph takes its own; and what is expected of each output.

    Raises:
        ReleaseError: onnxruntime cannot run a graph.
    """
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    for feed, expected in cases:
        for graph, session in sessions.items():
            for name, found in _graph_outputs(graph, session, feed).items():
                pairs.setdefault(f"{graph}/{name}", []).append((found, expected[name]))
    return {name: worst_difference(rows) for name, rows in pairs.items()}


def worst_difference(pairs: Sequence[tuple[Array, Array]]) -> float:
    """Returns the worst relative difference of (found, expected), as `measure_parity` counts it."""
    floor = max(_FLOOR * max(float(np.linalg.norm(expected)) for _, expected in pairs), _ABSOLUTE)
    return max(relative_difference(found, expected, floor) for found, expected in pairs)


def check_parity(worst: Mapping[str, float]) -> None:
    """Refuses graphs that do not agree.

    Raises:
        ReleaseError: Names every output beyond the tolerance and its difference.
    """
    wrong = {name: value for name, value in worst.items() if not value <= TOLERANCE}
    if wrong:
        raise ReleaseError(
            "torch and onnxruntime do not agree, so nothing was published",
            [
                f"{name}: relative difference {value:.2e}, allowed {TOLERANCE:.0e}"
                for name, value in wrong.items()
            ],
            _FAULT,
        )


def relative_difference(found: Array, expected: Array, floor: float = 0.0) -> float:
    """Returns |found - expected| / max(|expected|, floor), both flattened; 0 if both are zero.

    It is inf where the shapes differ, a value is not finite, or only the divisor is zero.
    """
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    size = max(float(np.linalg.norm(expected.astype(np.float64))), floor)
    gap = float(np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64)))
    if size == 0.0:
        return 0.0 if gap == 0.0 else float("inf")
    return gap / size


def parity_cases(model: PersonalModel, max_tokens: int) -> list[dict[str, Array]]:
    """Makes the inputs of every comparison, by graph input name: random tokens, labels and profiles."""
    return [
        _case(model, number, batch, min(tokens, max_tokens), users)
        for number, (batch, tokens, users) in enumerate(SHAPES)
    ]


def _case(model: PersonalModel, number: int, batch: int, tokens: int, users: int) -> dict[str, Array]:
    rng = generator(0, number, "", "parity")
    lengths = np.concatenate([[tokens], rng.integers(2, tokens + 1, batch - 1)])
    mask = (np.arange(tokens)[None, :] < lengths[:, None]).astype(np.int64)
    encoder: Any = model.encoder
    vocabulary = int(encoder.get_input_embeddings().num_embeddings)
    feed: dict[str, np.ndarray[Any, Any]] = {
        "input_ids": rng.integers(0, vocabulary, (batch, tokens)) * mask,
        "attention_mask": mask,
        "labels": rng.integers(0, len(model.task.labels), batch),
        "weights": rng.uniform(0.5, 1.5, batch).astype(np.float32),
        "owner": rng.integers(0, users, batch),
    }
    for tensor in model.profile_spec().tensors:
        feed[tensor.name] = rng.standard_normal((users, *tensor.shape)).astype(np.float32)
    return feed


def _torch_outputs(joint: JointModule, feed: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    private = [torch.from_numpy(feed[name]).double().requires_grad_() for name in joint.private_names]
    parameters = dict(joint.model.named_parameters())
    shared = [parameters[name].detach().clone().requires_grad_() for name in joint.trainables]
    plain = [torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask", "labels")]
    weights, owner = torch.from_numpy(feed["weights"]).double(), torch.from_numpy(feed["owner"])
    loss, logits, embedding, nll = joint(*plain, weights, owner, tuple(private), tuple(shared))
    gradients = torch.autograd.grad(loss, [*private, *shared])
    names = [GRADIENT + name for name in (*joint.private_names, *joint.trainables)]
    outputs = {"loss": loss, "logits": logits, "text_embedding": embedding, "nll": nll}
    outputs |= dict(zip(names, gradients, strict=True))
    return {name: value.detach().numpy() for name, value in outputs.items()}


def _graph_outputs(graph: str, session: Any, feed: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    try:
        found = session.run(names, {name: value for name, value in feed.items() if name in wanted})
    except Exception as error:
        raise _unusable(graph, "run", error) from error
    return dict(zip(names, found, strict=True))


def open_session(graph: str, data: bytes, weights: Arrays) -> Any:
    """Opens a graph with its weights.

    Raises:
        ReleaseError: onnxruntime cannot.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _unusable(graph, "open", error) from error


def _unusable(graph: str, what: str, error: Exception) -> ReleaseError:
    """The inputs are random numbers, so onnxruntime's own words give nothing away."""
    return ReleaseError(
        f"onnxruntime cannot {what} the graph '{graph}', so nothing was published", [str(error)], _FAULT
    )
