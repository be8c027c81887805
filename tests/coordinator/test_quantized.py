"""The graphs in 8 bits are what their equations say, in plain ONNX, and answer each text by itself."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load
from tests.builders import tiny_training
from tests.coordinator.conftest import VOCABULARY, TinyBackbone
from tests.coordinator.personal import Joint, random_batch, random_profile, trained_with
from tests.coordinator.test_every_method import NAMES, small
from tests.numeric import relative_error
from tests.oracles.int8 import back, linear
from torch import Tensor, nn

from umbel.coordinator.graphs import quantized
from umbel.coordinator.graphs.joint import export_joint
from umbel.coordinator.graphs.parity import open_session
from umbel.coordinator.graphs.quantized import LEVELS, quantized_graphs, quantized_matrix
from umbel.coordinator.publish import publish_model, publish_update
from umbel.shared.errors import ReleaseError
from umbel.shared.release import Release, read_release
from umbel.shared.rng import generator

Arrays = Mapping[str, np.ndarray[Any, Any]]


def _run(graph: bytes, outputs: list[str], weights: Arrays, feed: Arrays) -> list[np.ndarray[Any, Any]]:
    wanted = {tensor.name for tensor in onnx.ModelProto.FromString(graph).graph.initializer}
    session = open_session("it", graph, {n: array for n, array in weights.items() if n in wanted})
    taken = {value.name for value in session.get_inputs()}
    found: list[np.ndarray[Any, Any]] = session.run(outputs, {n: v for n, v in feed.items() if n in taken})
    return found


class _OracleLinear(torch.autograd.Function):
    """x W^T + b, there and back in the oracle's numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.weight = weight.detach().numpy()
        rows = linear(x.detach().numpy().reshape(-1, x.shape[-1]), ctx.weight, bias.detach().numpy())
        return torch.from_numpy(rows.reshape(*x.shape[:-1], -1))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        rows = back(g.numpy().reshape(-1, g.shape[-1]), ctx.weight)
        return torch.from_numpy(rows.reshape(*g.shape[:-1], -1)), None, None


class _Answering(nn.Module):
    """A linear layer that answers what the oracle says."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        apply: Any = _OracleLinear.apply
        return apply(x, self.layer.weight, self.layer.bias)


def _in_oracle_numbers(module: nn.Module) -> None:
    """Makes every linear layer of an encoder answer what the oracle says."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, _Answering(child))
        else:
            _in_oracle_numbers(child)


def _assert_as_the_equations_say(joint: Joint) -> None:
    """Compares the graphs with torch whose encoder's linear layers compute in the oracle's numbers.

    Where a quotient lies next to a half, the two round it to neighbours now and then. What float32 answers is
    several times further away.
    """
    model = copy.deepcopy(joint.model).eval().requires_grad_(False)
    graphs, files = joint.cut()
    weights = {name: array for data in files.values() for name, array in load(data).items()}
    small, file = quantized_graphs({name: graphs[name] for name in ("predict", "learn")}, weights)
    batch = random_batch(1, 3, 9, 2, len(VOCABULARY))
    profile = random_profile(1, 2, model.profile_spec())
    feed: dict[str, np.ndarray[Any, Any]] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "owner": batch.owner,
    }
    labels = np.arange(3) % len(model.task.labels)
    feed |= {"labels": labels, "weights": np.ones(3, np.float32), **profile}
    _in_oracle_numbers(model.encoder)
    private = {n: torch.tensor(v, requires_grad=True) for n, v in profile.items()}
    logits = model(*batch.tensors(), private)
    gradients = torch.autograd.grad(
        model.task.nll(logits, torch.from_numpy(labels)).sum(), list(private.values())
    )
    wanted = {"predict": [logits.detach().numpy()], "learn": [own.numpy() for own in gradients]}
    outputs = {"predict": ["logits"], "learn": [f"grad.{name}" for name in private]}
    for name, expected in wanted.items():
        found = _run(small[name], outputs[name], {**weights, **load(file.data)}, feed)
        plain = _run(graphs[name], outputs[name], weights, feed)
        for near, exact, right in zip(found, plain, expected, strict=True):
            assert relative_error(near, right) < 0.3 * relative_error(exact, right), name


def test_it_is_what_the_equations_say(tiny_joint: Joint) -> None:
    _assert_as_the_equations_say(tiny_joint)


@pytest.mark.slow
def test_with_every_method_it_is_what_the_equations_say(tiny_backbone: TinyBackbone) -> None:
    backbone = tiny_backbone("bert")
    model = trained_with(backbone, {name: small(name) for name in NAMES})
    _assert_as_the_equations_say(Joint(backbone, model, (), export_joint(model, [], backbone.shape)))


def test_every_matrix_of_the_encoder_is_in_it_and_nothing_else(tiny_joint: Joint) -> None:
    """Two layers of six matrices; what is left of them in float32 is no matrix product's any more."""
    graphs, files = tiny_joint.cut()
    weights = {name: array for data in files.values() for name, array in load(data).items()}
    small, file = quantized_graphs({name: graphs[name] for name in ("predict", "learn")}, weights)
    assert sorted(array.dtype.name for array in load(file.data).values()) == ["float32"] * 12 + ["int8"] * 12
    for data in small.values():
        graph = onnx.ModelProto.FromString(data)
        assert {node.domain for node in graph.graph.node} == {""}
        assert [entry.domain for entry in graph.opset_import] == [""]
        sizes = {tensor.name: list(tensor.dims) for tensor in graph.graph.initializer}
        left = [name for name in sizes if name.startswith("encoder.") and "embeddings" not in name]
        assert all(len(sizes[name]) == 1 or name.endswith(".int8") for name in left)


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 9),
    seed=st.integers(0, 2**32),
    size=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e6]),
)
def test_a_matrix_is_within_half_a_step(rows: int, columns: int, seed: int, size: float) -> None:
    """Rows of zeros included; a relative 1e-5 is for float32."""
    weight = (generator(seed, 0, "", "test").standard_normal((rows, columns)) * size).astype(np.float32)
    found, scale = quantized_matrix(weight)
    assert found.dtype == np.int8
    assert np.abs(found.astype(int)).max(initial=0) <= LEVELS
    back = found.T.astype(np.float64) * scale[:, None]
    assert (np.abs(back - weight) <= 0.5 * scale[:, None] * (1 + 1e-5)).all()


def test_a_text_is_answered_by_itself(int8_release: Release) -> None:
    """Beside a text of far larger states the answer is the same but for float32's rounding."""
    from umbel.device_client.engine import Engine

    engine = Engine(int8_release).quick()
    profile = int8_release.manifest.profile.zeros(1)
    texts = ["good film", "slow tender book we like", "bad", "not very bad film"]
    tokens, nobody = engine.encode(texts), np.zeros(len(texts), np.int64)
    together = engine.predict(tokens, nobody, profile, {})
    for n, text in enumerate(texts):
        alone = engine.predict(engine.encode([text]), nobody[:1], profile, {})
        assert alone[0] == pytest.approx(together[n], abs=1e-5)


def test_a_release_says_how_near_it_comes(int8_release: Release) -> None:
    found = read_release(int8_release.folder).manifest.int8
    assert found is not None
    assert (found.texts, 0 < found.moved < 0.1, 0 <= found.changed < 0.2) == (256, True, True)
    assert 0 < found.turned < 0.1


def test_it_is_left_out_if_so_wanted(tmp_path: Path, tiny_release: Release) -> None:
    assert tiny_release.manifest.int8 is None
    assert "predict_int8.onnx" not in tiny_release.manifest.blobs


def test_what_is_too_far_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "MOST_MOVED", 1e-9)
    monkeypatch.setattr(quantized, "MOST_TURNED", 1e-9)
    made = tiny_training(tmp_path, onboarding=False, taught=False)
    with pytest.raises(ReleaseError, match="8 bits are too far") as caught:
        publish_model(*made, tmp_path / "release", texts=["good film"])
    first, second = caught.value.problems
    assert first.startswith("on 1 texts probabilities move by ")
    assert second.startswith("gradients turn by ")
    assert not (tmp_path / "release" / "manifest.json").exists()


def stirred(release: Release) -> dict[str, Any]:
    rng = generator(0, 0, "", "after rounds")
    return {
        name: rng.normal(0, 1, shape).astype(np.float32)
        for name, shape in release.manifest.trainables.items()
    }


def test_after_rounds_it_is_the_same_and_measured_again(int8_release: Release, tmp_path: Path) -> None:
    """Rounds change no matrix of the encoder, but what is made of its answers."""
    after = publish_update(int8_release, stirred(int8_release), tmp_path / "after")
    before, found = int8_release.manifest.int8, after.manifest.int8
    assert found is not None
    assert before is not None
    assert (found.texts, found.moved != before.moved) == (256, True)
    for name in ("predict_int8.onnx", "learn_int8.onnx", "backbone_int8.safetensors"):
        assert after.manifest.blobs[name] == int8_release.manifest.blobs[name]


def test_after_rounds_that_take_it_too_far_it_is_gone(
    int8_release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "MOST_TURNED", 1e-9)
    after = read_release(publish_update(int8_release, stirred(int8_release), tmp_path / "after").folder)
    assert after.manifest.int8 is None
    assert not any("int8" in name for name in after.manifest.blobs)
