"""PHA: its equation, birth, the written adapters, options, counts, and the way to a release."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file
from tests.builders import random_examples
from tests.coordinator.conftest import FAMILIES, VOCABULARY, TinyBackbone, tiny_config, write_backbone
from tests.coordinator.methods.small_pha import (
    CONFIG,
    Array,
    Floats,
    frame_of,
    lone_pha,
    numbers,
    pha_of,
    shares_of,
    values_of,
)
from tests.coordinator.personal import random_batch, random_users, torch_gradients, trained_with
from tests.numeric import assert_close_relative
from tests.oracles.pha import TINY

from umbel.coordinator.artifacts import rebuild
from umbel.coordinator.backbone import BackboneShape
from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.graphs.parity import TOLERANCE
from umbel.coordinator.methods.pha import PHA, PHAConfig
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.publish import publish
from umbel.coordinator.sites import Frame, Site
from umbel.coordinator.train import train
from umbel.shared.errors import TrainingError

END = Site(1, "feed_forward", 6, 4, "layer.1.output.dense", 0)


def delta_of(method: PHA, frame: Frame) -> Floats:
    """What is added at the end of layer 1."""
    rows, seq = frame.mask.shape
    delta = method.at_site(END, torch.zeros(rows, seq, 6), torch.zeros(rows, seq, 4), frame)
    assert delta is not None
    found: Floats = delta.detach().numpy()
    return found


def normal(x: Array, gain: Array, shift: Array) -> Array:
    value: Array = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * gain + shift
    return value


def test_equation_against_a_literal_numpy_program() -> None:
    """Token by token, W written entry by entry; 1e-5 for two normalisations in float32."""
    method, x, users = lone_pha(), numbers("x", 2, 3, 4), numbers("users", 2, 5)
    found = delta_of(method, frame_of(users, x))
    v = values_of(method)
    net = {name.removeprefix("hypernetwork."): value for name, value in v.items()}
    generic = shares_of(v["bank_weights"]) @ v["bank"]
    expected = np.zeros((2, 3, 4))
    for row in range(2):
        k = generic + v["basis"] @ users[row]
        hidden = net["first"] @ np.concatenate([k, net["layers"][1]]) + net["first_bias"]
        mixed = net["second"] @ np.maximum(hidden, 0) + net["second_bias"]
        u = normal(mixed, net["norm.weight"], net["norm.bias"])
        W_down = [[net["down"][i * 3 + j] @ u for j in range(3)] for i in range(4)]
        W_up = [[net["up"][j * 4 + o] @ u for o in range(4)] for j in range(3)]
        for token in range(3):
            n = normal(x[row, token].astype(np.float64), net["inputs.1.weight"], net["inputs.1.bias"])
            inner = np.maximum(n @ np.array(W_down) + net["down_bias"] @ u, 0)
            expected[row, token] = inner @ np.array(W_up) + net["up_bias"] @ u
    assert_close_relative("delta", found, expected)


@pytest.mark.parametrize("role", ["query", "key", "value", "feed_forward_in"])
def test_it_acts_where_the_feed_forward_block_ends_and_nowhere_else(role: str) -> None:
    method = lone_pha()
    site = Site(1, role, 4, 4, "", 0)
    frame = frame_of(numbers("users", 2, 5), numbers("x", 2, 3, 4))
    assert method.at_site(site, torch.ones(2, 3, 4), torch.ones(2, 3, 4), frame) is None


def test_birth_is_hyperfan_in() -> None:
    """A written W_down has variance 1 / d, a written W_up start_scale^2 / b; b_up start_scale^2 / d.

    Over 40 prototypes and all entries; 10 % for what the sample leaves open.
    """
    shape = BackboneShape(hidden_size=96, layers=1, heads=1, vocabulary=9, max_tokens=9)
    config = PHAConfig(width=16, start_scale=0.01, embedding_scale=0.3, prototypes=40)
    method = PHA(config, shape, [], torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapter = method.hypernetwork(0, method.prototype(torch.tensor(numbers("k", 40, 64))))
    assert method.bank.std().item() == pytest.approx(0.3, rel=0.05)
    assert method.hypernetwork.layers.std().item() == pytest.approx(0.3, rel=0.2)
    assert adapter.down.shape == (40, 96, 16)
    assert adapter.up.shape == (40, 16, 96)
    assert adapter.down.std().item() == pytest.approx(96**-0.5, rel=0.1)
    assert adapter.up.std().item() == pytest.approx(0.01 * 16**-0.5, rel=0.1)
    assert adapter.up_bias.std().item() == pytest.approx(0.01 * 96**-0.5, rel=0.1)
    assert adapter.down_bias.std().item() == pytest.approx(0.01, rel=0.3)
    for name, bound in (
        ("up", 0.01 * (3 / (64 * 16)) ** 0.5),
        ("down", (3 / (64 * 96)) ** 0.5),
        ("up_bias", 0.01 * (3 / (64 * 96)) ** 0.5),
        ("down_bias", 0.01 * (3 / 64) ** 0.5),
    ):
        largest = method.get_parameter(f"hypernetwork.{name}").abs().max().item()
        assert 0.95 * bound < largest <= bound * (1 + 1e-6)


def new_model(backbone: TinyBackbone, family: str, **options: Any) -> PersonalModel:
    config = PHAConfig.model_validate({**TINY, **options})
    return build_model(backbone(family), "classification", ("awful", "fair", "great"), {"pha": config}, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_model_is_nearly_the_plain_backbone_and_can_be_exactly(
    tiny_backbone: TinyBackbone, family: str
) -> None:
    ids, mask, owner = random_batch(0, 4, 7, 2, len(VOCABULARY)).tensors()
    plain = tiny_backbone(family).module(input_ids=ids, attention_mask=mask).last_hidden_state
    users = {"pha.prototype": torch.tensor(random_users(0, 2, 5))}
    for scale, tolerance in ((0.0, 0.0), (1e-3, 0.01), (PHAConfig().start_scale, 0.2)):
        model = new_model(tiny_backbone, family, start_scale=scale).eval()
        states = model.states(ids, mask, model.frame(mask, owner, users))
        difference = (states - plain).norm() / plain.norm()
        assert difference <= tolerance
        assert (difference > 0) == (scale > 0)


def test_gradients_are_alive_at_birth(tiny_backbone: TinyBackbone) -> None:
    """With the small start a person's gradient is there at once; from exact zeros W_up's head has one."""
    batch = random_batch(0, 4, 7, 2, len(VOCABULARY))
    nobody = {"pha.prototype": np.zeros((2, 5), np.float32)}
    small = torch_gradients(new_model(tiny_backbone, "bert", start_scale=1e-3).eval(), batch, nobody)
    assert np.abs(small.grads["pha.prototype"]).max() > 1e-7
    exact = torch_gradients(new_model(tiny_backbone, "bert", start_scale=0.0).eval(), batch, nobody)
    assert not exact.grads["pha.prototype"].any()
    assert np.abs(exact.grads["methods.pha.hypernetwork.up"]).max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_profile_the_prototype_is_the_generic_one(tiny_backbone: TinyBackbone, family: str) -> None:
    """k_u = 0 is the model whose T is zero, whatever k_u."""
    model = trained_with(tiny_backbone(family), {"pha": CONFIG})
    batch = random_batch(0, 3, 6, 2, len(VOCABULARY))
    generic = model(*batch.tensors(), {"pha.prototype": torch.zeros(2, 5)})
    users = {"pha.prototype": torch.tensor(random_users(0, 2, 5))}
    assert not torch.allclose(model(*batch.tensors(), users), generic, rtol=1e-3)
    with torch.no_grad():
        pha_of(model).basis.zero_()
    torch.testing.assert_close(model(*batch.tensors(), users), generic, rtol=0, atol=0)


def test_personalised_dropout_hides_the_whole_prototype_and_rescales_nothing() -> None:
    method, x, users = lone_pha(), numbers("x", 4, 3, 4), numbers("users", 4, 5)
    personal, generic = (delta_of(method, frame_of(u, x)) for u in (users, np.zeros_like(users)))
    keep = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    mixed = delta_of(method, frame_of(users, x, keep=keep))
    np.testing.assert_array_equal(mixed[[0, 2]], personal[[0, 2]])
    np.testing.assert_array_equal(mixed[[1, 3]], generic[[1, 3]])
    assert np.abs(personal - generic).max() > 0.01


def test_adapters_that_were_written_once_add_what_is_written_per_example() -> None:
    """1e-6: the same products, for one matrix instead of a batch of equal ones."""
    method, x, user = lone_pha(), numbers("x", 3, 4, 4), numbers("user", 1, 5)
    adapters = method.fold_adapter({"pha.prototype": torch.tensor(user[0])})
    assert len(adapters) == 2
    assert adapters[1].down.shape == (4, 3)
    assert adapters[1].up.shape == (3, 4)
    assert not adapters[1].up.requires_grad
    wanted = delta_of(method, frame_of(np.repeat(user, 3, axis=0), x))
    found = adapters[1](torch.tensor(x)).detach().numpy()
    assert_close_relative("adapter", found, wanted, 1e-6)
    assert np.abs(found - adapters[0](torch.tensor(x)).detach().numpy()).max() > 0.01  # a layer has its own


def test_it_does_not_fold_into_weights(tiny_backbone: TinyBackbone) -> None:
    with pytest.raises(NotImplementedError, match="pha cannot be folded"):
        new_model(tiny_backbone, "bert").folded({"pha.prototype": torch.zeros(5)})


def test_counts_and_bytes_at_bert_base() -> None:
    """Heads 64 (2 * 8 * 768 + 768 + 8), network 128 * 128 + 128 + 64 * 128 + 64, norm 2 * 64, layers 12 * 64,
    input norms 12 * 2 * 768, bank 16 * 64 + 16, basis 64 * 64. Retriever 128 * 768 + 128 + 64 * 128 + 64.
    A profile is 64 float16: 128 bytes, for 156,768 values of adapters that it stands for.
    """
    shape = BackboneShape(768, 12, 12, 30522, 512)
    method = PHA(PHAConfig(), shape, [], torch.Generator().manual_seed(0))
    sizes = {name: parameter.numel() for name, parameter in method.named_parameters()}
    retriever = sum(size for name, size in sizes.items() if name.startswith("retriever."))
    assert retriever == 106_688
    assert sum(sizes.values()) - retriever == 885_328
    (private,) = method.profile_tensors()
    assert (private.name, private.shape, private.packed_bytes) == ("pha.prototype", (64,), 128)
    written = method.fold_adapter({"pha.prototype": torch.zeros(64)})
    each = sum(part.numel() for a in written for part in (a.down, a.down_bias, a.up, a.up_bias))
    assert each == 12 * (2 * 8 * 768 + 768 + 8) == 156_768


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"prototype_size": 0},
        {"layer_size": 0},
        {"hidden": 0},
        {"code_size": 0},
        {"prototypes": 0},
        {"embedding_scale": 0.0},
        {"start_scale": -0.1},
        {"instance_weight": -1.0},
        {"prototype_weight": -1.0},
        {"temperature": 0.0},
        {"contrast": "tasks"},
        {"start": "noise"},
        {"storage": "int8"},
    ],
)
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PHAConfig.model_validate(wrong)


def test_from_a_configuration_to_a_release(tmp_path: Path) -> None:
    """The retriever is trained and saved, but no graph reads it, so that no release holds it."""
    row = {
        "backbone": {"name": str(write_backbone(tmp_path / "b", tiny_config("bert"))), "max_tokens": 16},
        "methods": {"pha": {**TINY, "start_scale": 0.01}},
        "training": {"max_steps": 20, "batch_size": 16, "evaluate_every": 10, "shared_rate": 0.01},
        "recipe": {"steps": [4], "prior_strength": [1.0], "k": [4]},
    }
    examples = [example for n in range(6) for example in random_examples(0, f"user {n}", 16)]
    config = validated(CoordinatorConfig, row, "config")
    trained = train(config, examples, tmp_path / "training", threads=1)
    backbone, model = rebuild(trained)
    new = build_model(backbone, "classification", trained.labels, config.method_configs(), config.seed)
    aside = model.training_only_names()
    assert len(aside) == 4
    for name in {*aside, *model.shared_names()} - {"methods.pha.bank_weights"}:  # equal again: see `rebase`
        assert not torch.equal(model.get_parameter(name), new.get_parameter(name)), name
    release = publish(trained, tmp_path / "release")
    assert max(release.manifest.parity.values()) <= TOLERANCE
    assert not aside & set(load_file(release.blob_path("shared.safetensors")))
    assert not [name for name in release.manifest.trainables if name.startswith("methods.pha.")]
    rest = {name: value for name, value in trained.tensors.items() if name != min(aside)}
    with pytest.raises(TrainingError) as caught:
        rebuild(replace(trained, tensors=rest))
    assert list(caught.value.problems) == [f"missing tensor: {min(aside)}"]
