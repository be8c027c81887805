"""Exports what lies behind a text's embedding, where no method that is on acts before it.

The encoder is in none of these graphs: a device reads a text once with `predict`, and then predicts, learns
and takes part in rounds with what it has read, as often as it wants, at next to no cost.
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
from umbel.coordinator.graphs.parity import compared, open_session, parity_cases
from umbel.coordinator.graphs.split import WeightsFile, cut_graphs
from umbel.coordinator.model import PersonalModel
from umbel.shared.release import CONTRIBUTE_EMBEDDED, EMBEDDED

_MODEL = "answers.model."
_EXAMPLE_TOKENS = 7
_PLAIN = ("text_embedding", "labels", "weights", "owner")

Arrays = Mapping[str, np.ndarray[Any, Any]]


@final
class _Answers(nn.Module):
    """The model without its encoder."""

    def __init__(self, model: PersonalModel):
        super().__init__()
        self.model = PersonalModel(nn.Identity(), {m.name: m for m in model.method_list()}, model.task)

    def forward(self, embedding: Tensor, owner: Tensor, profile: Mapping[str, Tensor]) -> Tensor:
        """Returns logits (batch, labels): a text is one state, its embedding, whose mean is itself."""
        states = embedding.unsqueeze(1)
        mask = torch.ones_like(states[..., 0], dtype=torch.int64)
        frame = self.model.frame(mask, owner, profile)
        frame.users = profile
        return self.model.answers(states, mask, frame)


@final
class EmbeddedModule(nn.Module):
    """loss, logits and nll as a function of embeddings and of everything that a gradient is wanted for."""

    def __init__(self, model: PersonalModel, trainables: Sequence[str]):
        super().__init__()
        self.answers = _Answers(model)
        self.private_names = [tensor.name for tensor in model.profile_spec().tensors]
        self.trainables = tuple(trainables)

    def forward(
        self,
        embedding: Tensor,
        labels: Tensor,
        weights: Tensor,
        owner: Tensor,
        profile: tuple[Tensor, ...],
        shared: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns loss = sum_i weights_i nll_i (a scalar), logits (batch, labels) and nll (batch,)."""
        values = {f"model.{name}": value for name, value in zip(self.trainables, shared, strict=True)}
        inputs = (embedding, owner, dict(zip(self.private_names, profile, strict=True)))
        logits: Tensor = torch.func.functional_call(self.answers, values, inputs)
        nll = self.answers.model.task.nll(logits, labels)
        return (nll * weights).sum(), logits.detach(), nll.detach()


def embedded_graphs(
    model: PersonalModel, trainables: Mapping[str, tuple[int, ...]], files: Sequence[WeightsFile]
) -> dict[str, bytes]:
    """Exports the graphs `EMBEDDED` and `CONTRIBUTE_EMBEDDED` of a model.

    Args:
        model: On CPU; one that `acts_on_embeddings`.
        trainables: Name -> shape of the shared tensors that rounds may train: inputs with a default.
        files: The weights files; together they hold every weight behind the embedding.

    Returns:
        Graph name -> serialized ModelProto. All take text_embedding (batch, d) in the place of tokens, and
        are else as `predict`, `learn` and `contribute` are.
    """
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    module = EmbeddedModule(frozen, list(trainables))
    case = _cases(frozen, _EXAMPLE_TOKENS)[-2]  # sizes above 1 keep every axis dynamic
    parameters = dict(frozen.named_parameters())
    private = tuple(torch.from_numpy(case[name]).requires_grad_() for name in module.private_names)
    shared = tuple(parameters[name].detach().clone().requires_grad_() for name in trainables)
    batch, users = torch.export.Dim("batch", min=1), torch.export.Dim("users", min=1)
    dynamic: tuple[Any, ...] = (
        *({0: batch},) * len(_PLAIN),
        tuple({0: users} for _ in private),
        tuple({} for _ in shared),
    )
    private_gradients = [GRADIENT + name for name in module.private_names]
    shared_gradients = [GRADIENT + name for name in trainables]
    arguments = (*(torch.from_numpy(case[name]) for name in _PLAIN), private, shared)
    outputs = ["loss", "logits", "nll", *private_gradients, *shared_gradients]
    made = exported(module, arguments, dynamic, outputs, differentiate=True)
    inputs = [*_PLAIN, *module.private_names, *trainables]
    axes = [*(("batch",) for _ in _PLAIN), *(("users",) for _ in private)]
    public = {f"{_MODEL}{name}": name for name in parameters if not name.startswith("encoder.")}
    predict, learn = EMBEDDED
    wanted = {
        predict: ["logits"],
        learn: ["loss", "nll", *private_gradients],
        CONTRIBUTE_EMBEDDED: ["loss", "nll", *shared_gradients],
    }
    return cut_graphs(named_proto(made, inputs, axes, public), wanted, trainables, files)


def measure_embedded(
    model: PersonalModel,
    graphs: Mapping[str, bytes],
    weights: Arrays,
    trainables: Sequence[str],
    max_tokens: int,
) -> dict[str, float]:
    """Returns what `measure_parity` does of other graphs: "graph/output" -> the worst relative difference.

    Args:
        model: The model that was exported.
        graphs: The graphs that `embedded_graphs` made; none where the model acts before the embedding.
        weights: Every weight of the model by name.
        trainables: Names of those that are inputs.
        max_tokens: Of a text, at most: what is compared are embeddings as the encoder gives them.

    Raises:
        ReleaseError: onnxruntime cannot open or run a graph.
    """
    if not graphs:
        return {}
    behind = {name: array for name, array in weights.items() if not name.startswith("encoder.")}
    reader = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    feeds = _cases(reader, max_tokens)
    exact = EmbeddedModule(reader.double(), trainables)
    sessions = {graph: open_session(graph, data, behind) for graph, data in graphs.items()}
    return compared(sessions, [(feed, _exact(exact, feed)) for feed in feeds])


def _exact(module: EmbeddedModule, feed: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Returns every output by name, in float64."""
    tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
    tensors = {n: value.double() if value.is_floating_point() else value for n, value in tensors.items()}
    private = [tensors[name].requires_grad_() for name in module.private_names]
    parameters = dict(module.answers.model.named_parameters())
    shared = tuple(parameters[name].detach().requires_grad_() for name in module.trainables)
    loss, logits, nll = module(*(tensors[name] for name in _PLAIN), tuple(private), shared)
    gradients = torch.autograd.grad(loss, [*private, *shared])
    found = dict(zip((*module.private_names, *module.trainables), gradients, strict=True))
    outputs = {"loss": loss, "logits": logits, "nll": nll}
    outputs |= {GRADIENT + name: value for name, value in found.items()}
    return {name: value.detach().numpy() for name, value in outputs.items()}


@torch.no_grad()
def _cases(model: PersonalModel, max_tokens: int) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Makes the inputs of every comparison, by name: those of `parity_cases`, with the texts read."""
    found = parity_cases(model, max_tokens)
    for case in found:
        ids, mask = (torch.from_numpy(case[name]) for name in ("input_ids", "attention_mask"))
        case["text_embedding"] = model.read(ids, mask, model.nobody(mask))[1].float().numpy()
    return found
