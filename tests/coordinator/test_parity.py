"""The parity tier: torch, onnxruntime and the numpy oracle agree on everything that a release computes.

The tolerance is 1e-5, relative, in L2 over each tensor: float32 rounds at 6e-8, and a gradient passes dozens
of layers of sums (tests/coordinator/test_oracle_parity.py says what was measured). A term that is missing, or
a user's row gone astray, is off by 1e-3 and more.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.coordinator.conftest import FAMILIES, VOCABULARY, TinyBackbone
from tests.coordinator.personal import (
    TINY_PLORA,
    Batch,
    Joint,
    Sessions,
    assert_agree,
    oracle_of,
    random_batch,
    random_users,
    torch_gradients,
    trained_model,
)
from tests.numeric import assert_close_relative

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.graphs.joint import export_joint
from umbel.coordinator.graphs.parity import TOLERANCE, worst_difference
from umbel.coordinator.methods.plora import PLoRAConfig
from umbel.coordinator.publish import trainable_names


def assert_parity(sessions: Sessions, batch: Batch, users: int, seed: int, *, oracle: bool = True) -> None:
    model = sessions.joint.model
    (private,) = model.profile_spec().tensors
    profile = {private.name: random_users(seed, users, private.size)}
    found = sessions.run(batch, profile)
    gradients = {private.name, *sessions.joint.trainables}
    assert found.grads.keys() == gradients
    torch_result = torch_gradients(model, batch, profile)
    assert_agree(found, torch_result, gradients)
    if oracle:
        assert_agree(found, oracle_of(model, batch, profile), gradients)


@pytest.fixture(scope="module")
def tiny(tiny_joint: Joint) -> Sessions:
    return Sessions(tiny_joint)


@given(
    seed=st.integers(0, 2**32),
    seq=st.integers(2, 9),
    users=st.integers(1, 4),
    weights=st.lists(st.sampled_from([0.0, 0.3, 1.0, 1.7]), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tiny_bert(tiny: Sessions, seed: int, seq: int, users: int, weights: list[float]) -> None:
    """One set of graphs, batches of 1 to 5 rows of 2 to 9 tokens of 1 to 4 users, some without a row."""
    batch = random_batch(seed, len(weights), seq, users, len(VOCABULARY), weights)
    assert_parity(tiny, batch, users, seed)


@pytest.mark.parametrize(("rows", "users"), [(1, 1), (3, 2)])
def test_a_single_token(tiny: Sessions, rows: int, users: int) -> None:
    """The encoder never makes texts of one token, but the graphs would take them."""
    batch = random_batch(rows, rows, 2, users, len(VOCABULARY))
    cut = Batch(batch.input_ids[:, :1], batch.attention_mask[:, :1], batch.labels, batch.weights, batch.owner)
    assert_parity(tiny, cut, users, rows)


def test_one_user_has_the_numbers_that_they_have_among_others(tiny: Sessions) -> None:
    batch = replace(random_batch(1, 5, 8, 3, len(VOCABULARY)), owner=np.array([2, 0, 1, 0, 2]))
    profile = {"plora.user": random_users(1, 3, 5)}
    together = tiny.run(batch, profile)
    for user in range(3):
        own = np.flatnonzero(batch.owner == user)
        mine = replace(batch.take(own), owner=np.zeros(len(own), np.int64))
        alone = tiny.run(mine, {"plora.user": profile["plora.user"][user : user + 1]})
        assert_close_relative("logits", together.logits[own], alone.logits)
        assert_close_relative("gradient", together.grads["plora.user"][user], alone.grads["plora.user"][0])


@pytest.mark.slow
def test_minilm(minilm: Backbone) -> None:
    """The real all-MiniLM-L6-v2 with all shared tensors of PLoRA and the head; the export takes longest."""
    model = trained_model(minilm, PLoRAConfig(rank=8, alpha=16, user_size=16))
    names = trainable_names(model, ("task.*", "methods.*"))
    assert names == model.shared_names()
    sessions = Sessions(Joint(minilm, model, tuple(names), export_joint(model, names, minilm.shape)))
    for rows, seq, users in [(1, 2, 1), (1, 48, 1), (3, 17, 2), (5, 9, 4), (8, 24, 3)]:
        batch = random_batch(rows, rows, seq, users, minilm.shape.vocabulary)
        assert_parity(sessions, batch, users, rows)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_the_default_trainables(tiny_backbone: TinyBackbone, family: str) -> None:
    """torch against onnxruntime; the oracle speaks BERT only."""
    backbone = tiny_backbone(family)
    model = trained_model(backbone, TINY_PLORA)
    names = trainable_names(model, validated(CoordinatorConfig, {}, "here").trainables)
    assert {name.rpartition(".")[2] for name in names} == {"weight", "bias", "A"}
    sessions = Sessions(Joint(backbone, model, tuple(names), export_joint(model, names, backbone.shape)))
    for rows, seq, users in [(1, 2, 1), (1, 40, 1), (3, 17, 2), (5, 9, 4), (8, 24, 3)]:
        batch = random_batch(rows, rows, seq, users, len(VOCABULARY))
        assert_parity(sessions, batch, users, rows, oracle=family == "bert")


def test_parity_sees_a_small_mistake(tiny: Sessions) -> None:
    """One user's vector off by 1 in 1,000 fails."""
    batch = random_batch(0, 4, 6, 2, len(VOCABULARY))
    profile = {"plora.user": random_users(0, 2, 5)}
    found = tiny.run(batch, {"plora.user": profile["plora.user"] * np.float32(1.001)})
    with pytest.raises(AssertionError, match=r"^logits: relative L2 error"):
        assert_agree(found, torch_gradients(tiny.joint.model, batch, profile), set())


def test_what_is_zero_by_its_equation_may_be_rounding() -> None:
    """A gradient of 1e-12 in float64 is 1e-9 in float32; a missing one of 1e-4 is none."""
    zero, rounding = np.full(4, 1e-12), np.full(4, 1e-9)
    assert worst_difference([(rounding, zero)]) < TOLERANCE
    assert worst_difference([(np.zeros(4), np.full(4, 1e-4))]) > TOLERANCE
