"""torch's float32 against the numpy oracle's float64: logits, losses, every private and shared gradient."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.coordinator.conftest import VOCABULARY, TinyBackbone
from tests.coordinator.personal import (
    Batch,
    oracle_of,
    random_batch,
    random_users,
    torch_gradients,
    trained_model,
)
from tests.numeric import assert_close_relative

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.methods.plora import PLoRAConfig
from umbel.coordinator.model import PersonalModel


def assert_parity(model: PersonalModel, batch: Batch, users: int, size: int, seed: int) -> None:
    """Asserts that both programs agree within 1e-5 on everything that they compute.

    The tolerance is relative L2 per tensor. float32 rounds at 6e-8 and a gradient passes dozens of layers of
    sums: the worst tensor was off by 3.1e-6 on MiniLM and by 4.8e-6 in 3,000 random batches of the tiny
    encoder (4e-7 at the median). A missing term or a user's row gone astray is off by 1e-3 and more.
    """
    profile = {"plora.user": random_users(seed, users, size)}
    found, wanted = torch_gradients(model, batch, profile), oracle_of(model, batch, profile)
    assert_close_relative("logits", found.logits, wanted.logits)
    assert_close_relative("nll", found.nll, wanted.nll)
    assert_close_relative("loss", np.array(found.loss), np.array(wanted.loss))
    assert found.grads.keys() == wanted.grads.keys()
    for name, gradient in found.grads.items():
        assert_close_relative(name, gradient, wanted.grads[name])


@pytest.fixture(scope="module")
def tiny(tiny_backbone: TinyBackbone) -> PersonalModel:
    return trained_model(tiny_backbone("bert"), PLoRAConfig(rank=3, alpha=6, user_size=5))


@given(
    seed=st.integers(0, 2**32),
    seq=st.integers(2, 9),
    users=st.integers(1, 4),
    weights=st.lists(st.sampled_from([0.0, 0.3, 1.0, 1.7]), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tiny_encoder(tiny: PersonalModel, seed: int, seq: int, users: int, weights: list[float]) -> None:
    """Batches of 1 to 5 padded rows; rows may weigh 0, and some of the 1 to 4 users own none."""
    batch = random_batch(seed, len(weights), seq, users, len(VOCABULARY), weights)
    assert_parity(tiny, batch, users, 5, seed)


@pytest.mark.parametrize(("rows", "seq", "users"), [(1, 2, 1), (1, 48, 1), (3, 17, 2), (5, 9, 4), (8, 24, 3)])
def test_minilm(minilm: Backbone, rows: int, seq: int, users: int) -> None:
    """The real all-MiniLM-L6-v2, with a user and a label for every row or shared ones."""
    model = trained_model(minilm, PLoRAConfig(rank=8, alpha=16, user_size=16))
    batch = random_batch(rows, rows, seq, users, minilm.shape.vocabulary)
    assert_parity(model, batch, users, 16, seed=rows)


def test_parity_sees_a_small_mistake(tiny: PersonalModel) -> None:
    """One user's vector off by 1 in 1,000 fails: the tolerance is not so wide that nothing could fail."""
    batch = random_batch(0, 4, 6, 2, len(VOCABULARY))
    profile = {"plora.user": random_users(0, 2, 5)}
    wanted = oracle_of(tiny, batch, profile)
    found = torch_gradients(tiny, batch, {"plora.user": profile["plora.user"] * np.float32(1.001)})
    with pytest.raises(AssertionError, match=r"^logits: relative L2 error"):
        assert_close_relative("logits", found.logits, wanted.logits)
