"""The oracle itself: its gradients against central finite differences of its own loss, on a tiny encoder."""

from collections.abc import Mapping

import numpy as np
import pytest
from tests.numeric import assert_close_relative
from tests.oracles.encoder import Array
from tests.oracles.personal import OracleConfig, OracleResult, oracle_gradients, oracles_of

from umbel.shared.rng import generator

WIDTH, INNER, LAYERS, RANK, USER, LABELS = 8, 12, 2, 3, 5, 3
CONFIG = OracleConfig(LAYERS, heads=2, epsilon=1e-12)
METHODS = {"plora": {"rank": RANK, "alpha": 2.0 * RANK}}
STEP = 1e-5  # truncation STEP^2 and rounding 1e-16 / STEP are both near 1e-10


def tiny_weights() -> dict[str, Array]:
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.embeddings.word_embeddings.weight": (11, WIDTH),
        "encoder.embeddings.position_embeddings.weight": (9, WIDTH),
        "encoder.embeddings.token_type_embeddings.weight": (2, WIDTH),
        "task.weight": (LABELS, WIDTH),
        "task.bias": (LABELS,),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        place = f"encoder.layer.{layer}."
        norms += [place + "attention.output.LayerNorm", place + "output.LayerNorm"]
        linears = {f"attention.self.{role}.base": (WIDTH, WIDTH) for role in ("query", "key", "value")}
        linears |= {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense.base": (INNER, WIDTH)}
        linears |= {"output.dense.base": (WIDTH, INNER)}
        for name, shape in linears.items():
            shapes |= {f"encoder.{place}{name}.weight": shape, f"encoder.{place}{name}.bias": shape[:1]}
        for role in ("query", "value"):
            site = f"methods.plora.projections.layer_{layer}_{role}."
            shapes |= {site + "A": (RANK, WIDTH), site + "P": (RANK, USER), site + "B": (WIDTH, RANK)}
    weights = {
        name: generator(1, 0, "", name).normal(0.0, 0.5, shape) for name, shape in sorted(shapes.items())
    }
    for norm in norms:
        weights[f"encoder.{norm}.weight"] = np.linspace(0.5, 1.5, WIDTH)
        weights[f"encoder.{norm}.bias"] = np.linspace(-1.0, 1.0, WIDTH)
    return weights


def run(weights: Mapping[str, Array], users: Array) -> OracleResult:
    return oracle_gradients(
        weights,
        CONFIG,
        input_ids=np.array([[1, 2, 3, 4], [5, 6, 0, 0], [7, 0, 0, 0]]),
        attention_mask=np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]),
        labels=np.array([0, 2, 1]),
        example_weights=np.array([1.0, 0.5, 2.0]),
        methods=oracles_of(weights, METHODS, np.array([1, 0, 1]), {"plora.user": users}),
    )


USERS = generator(1, 0, "", "users").normal(size=(3, USER))  # nobody owns an example of the third


def names_of_gradients() -> list[str]:
    return sorted(run(tiny_weights(), USERS).grads)


@pytest.mark.parametrize("name", names_of_gradients())
def test_gradient_is_the_slope_of_the_loss(name: str) -> None:
    """Every entry, by central differences in float64; 1e-7 leaves room for the differences' own error."""
    weights = tiny_weights() | {"plora.user": USERS.copy()}

    def loss() -> float:
        return run(weights, weights["plora.user"]).loss

    tensor = weights[name]
    slopes = np.zeros_like(tensor)
    for place in np.ndindex(tensor.shape):
        before = tensor[place]
        tensor[place] = before + STEP
        above = loss()
        tensor[place] = before - STEP
        slopes[place] = (above - loss()) / (2 * STEP)
        tensor[place] = before
    assert_close_relative(name, run(weights, weights["plora.user"]).grads[name], slopes, 1e-7)


def test_every_trainable_has_a_gradient_of_its_shape() -> None:
    weights = tiny_weights()
    grads = run(weights, USERS).grads
    trainables = {name: tensor.shape for name, tensor in weights.items() if not name.startswith("encoder.")}
    assert {name: grad.shape for name, grad in grads.items()} == trainables | {"plora.user": USERS.shape}


def test_padding_and_the_other_rows_do_not_matter() -> None:
    """The second row alone, without its padding, gives what it gives in the batch."""
    weights = tiny_weights()
    together = run(weights, USERS)
    alone = oracle_gradients(
        weights,
        CONFIG,
        input_ids=np.array([[5, 6]]),
        attention_mask=np.array([[1, 1]]),
        labels=np.array([2]),
        example_weights=np.array([0.5]),
        methods=oracles_of(weights, METHODS, np.array([0]), {"plora.user": USERS[:1]}),
    )
    assert_close_relative("logits", together.logits[1], alone.logits[0], 1e-12)
    assert_close_relative("user", together.grads["plora.user"][0], alone.grads["plora.user"][0], 1e-12)
    assert not together.grads["plora.user"][2].any()
