"""The personal model in plain numpy: logits, losses and every gradient that a release exports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
from tests.oracles.encoder import Array, Encoder, IntArray, Method, softmax


def oracles_of(
    weights: Mapping[str, npt.NDArray[Any]],
    methods: Mapping[str, Mapping[str, Any]],
    owner: IntArray,
    profile: Mapping[str, npt.NDArray[Any]],
) -> list[Method]:
    """Returns the oracle of each method: tests/oracles/NAME.py; `methods` is name -> options."""
    return [
        import_module(f"tests.oracles.{name}").Oracle(weights, options, owner, profile)
        for name, options in methods.items()
    ]


@dataclass(frozen=True, slots=True)
class OracleConfig:
    """The sizes that cannot be read off the weights.

    Attributes:
        layers: Number of layers L.
        heads: Attention heads per layer.
        epsilon: What LayerNorm adds to the variance.
    """

    layers: int
    heads: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class OracleResult:
    """What the oracle found, all in float64.

    Attributes:
        logits: (batch, labels).
        nll: (batch,) in nats.
        loss: sum over i of w_i nll_i.
        grads: d loss / d tensor: shared ones by parameter name, private ones (users, *shape) by profile name.
    """

    logits: Array
    nll: Array
    loss: float
    grads: dict[str, Array]


def oracle_gradients(
    weights: Mapping[str, npt.NDArray[Any]],
    config: OracleConfig,
    input_ids: IntArray,
    attention_mask: IntArray,
    labels: IntArray,
    example_weights: npt.NDArray[Any],
    methods: Sequence[Method],
) -> OracleResult:
    """Runs the model forward and backward.

    Args:
        weights: Every parameter of the model by name, as `PersonalModel.named_parameters` names them.
        config: Sizes.
        input_ids: (batch, seq).
        attention_mask: (batch, seq), 1 for tokens; at least one in each row.
        labels: (batch,) the label of each row.
        example_weights: (batch,) w.
        methods: The methods' oracles, which know whose text each row is, and the profiles.
    """
    encoder = Encoder(weights, config.layers, config.heads, config.epsilon, methods)
    states = encoder.forward(input_ids, attention_mask)
    share = attention_mask / attention_mask.sum(1, keepdims=True)  # (batch, seq): the mean over tokens
    pooled = np.einsum("bs,bsd->bd", share, states)
    head = np.asarray(weights["task.weight"], np.float64)
    logits = pooled @ head.T + np.asarray(weights["task.bias"], np.float64)
    added = [method.at_logits(logits, pooled) for method in methods]
    logits = logits + sum((part for part in added if part is not None), np.zeros_like(logits))
    nll = -np.log(softmax(logits))[np.arange(len(labels)), labels]
    importance = np.asarray(example_weights, np.float64)

    chosen = np.eye(logits.shape[1])[labels]
    of_logits = importance[:, None] * (softmax(logits) - chosen)
    of_pooled = of_logits @ head + sum(method.back_at_logits(of_logits) for method in methods)
    encoder.backward(np.einsum("bs,bd->bsd", share, of_pooled))
    grads = {"task.weight": of_logits.T @ pooled, "task.bias": of_logits.sum(0)}
    for method in methods:
        grads |= method.grads
    return OracleResult(logits, nll, float(importance @ nll), grads)
