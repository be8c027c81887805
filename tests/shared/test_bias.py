"""The private bias, the baseline to beat, against gradient descent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.learning import bias_oracle

from umbel.shared.bias import fit_bias, softmax
from umbel.shared.rng import generator


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 6),
    labels=st.integers(2, 4),
    prior=st.sampled_from([0.1, 1.0, 10.0]),
)
@settings(max_examples=25, deadline=None)
def test_newton_finds_what_gradient_descent_finds(seed: int, count: int, labels: int, prior: float) -> None:
    rng = generator(seed, 0, "", "bias")
    logits = rng.normal(0, 2, (count, labels)).astype(np.float32)
    chosen = rng.integers(0, labels, count)
    assert fit_bias(logits, chosen, prior) == pytest.approx(bias_oracle(logits, chosen, prior), abs=1e-6)


def test_without_examples_there_is_no_bias() -> None:
    assert fit_bias(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), 1.0).tolist() == [0.0, 0.0, 0.0]


@given(
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    prior=st.sampled_from([1e-6, 1e-3, 0.1, 10.0]),
    count=st.integers(1, 40),
)
@settings(deadline=None)
def test_one_label_alone_gives_a_finite_bias_towards_it(scale: float, prior: float, count: int) -> None:
    """Stationary: what the examples pull is what the prior pulls back."""
    logits = (generator(0, 0, "", "one label").normal(0, 1, (count, 3)) * scale).astype(np.float32)
    labels = np.ones(count, np.int64)
    bias = fit_bias(logits, labels, prior)
    assert np.isfinite(bias).all()
    assert bias.argmax() == 1 or (bias == 0).all()
    gradient = (softmax(logits + bias) - np.eye(3)[labels]).sum(0) + prior * bias
    assert np.abs(gradient).max() < 1e-6 + 1e-8 * scale  # as flat as losses of that size can tell


def test_softmax_of_huge_logits_is_finite() -> None:
    assert softmax(np.array([[3e38, -3e38], [0.0, 0.0]], np.float32)).tolist() == [[1.0, 0.0], [0.5, 0.5]]
