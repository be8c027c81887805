"""The parity tier: torch, onnxruntime and the numpy oracle agree on everything that a release computes.

The tolerance is 1e-5, relative, in L2 over each tensor: float32 rounds at 6e-8, and a gradient passes dozens
of layers of sums (tests/coordinator/test_oracle_parity.py says what was measured). A term that is missing, or
a user's row gone astray, is off by 1e-3 and more.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load
from tests.coordinator.conftest import FAMILIES, VOCABULARY, TinyBackbone
from tests.coordinator.personal import (
    TINY_PLORA,
    Batch,
    Joint,
    oracle_of,
    random_batch,
    random_users,
    torch_gradients,
    trained_model,
)
from tests.numeric import assert_close_relative
from tests.oracles.personal import OracleResult

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.graphs.joint import export_joint
from umbel.coordinator.methods.plora import PLoRAConfig
from umbel.coordinator.publish import trainable_names

GRADIENT = "grad."


class Sessions:
    """The three graphs of a release in onnxruntime, with the weights from the published files."""

    def __init__(self, joint: Joint) -> None:
        self.joint = joint
        graphs, files = joint.graphs()
        weights = {name: array for data in files.values() for name, array in load(data).items()}
        self.graphs = {name: self._open(data, weights) for name, data in graphs.items()}

    def _open(self, data: bytes, weights: Mapping[str, Any]) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(self, batch: Batch, profile: Mapping[str, Any]) -> OracleResult:
        """Returns what the graphs compute; what two of them compute must be the same in both."""
        feed = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "labels": batch.labels,
            "weights": batch.weights,
            "owner": batch.owner,
            **profile,
        }
        found: dict[str, Any] = {}
        for session in self.graphs.values():
            wanted = {value.name for value in session.get_inputs()}
            names = [value.name for value in session.get_outputs()]
            values = session.run(names, {name: value for name, value in feed.items() if name in wanted})
            for name, value in zip(names, values, strict=True):
                assert_close_relative(name, value, found.setdefault(name, value), 1e-6)
        grads = {n.removeprefix(GRADIENT): v for n, v in found.items() if n.startswith(GRADIENT)}
        return OracleResult(found["logits"], found["nll"], float(found["loss"]), grads)


def assert_agree(found: OracleResult, wanted: OracleResult, gradients: set[str]) -> None:
    assert found.grads.keys() >= gradients
    assert wanted.grads.keys() >= gradients
    assert_close_relative("logits", found.logits, wanted.logits)
    assert_close_relative("nll", found.nll, wanted.nll)
    assert_close_relative("loss", np.array(found.loss), np.array(wanted.loss))
    for name in sorted(gradients):
        assert_close_relative(name, found.grads[name], wanted.grads[name])


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
