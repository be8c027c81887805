"""The private bias: its equation, birth, dropout, folding, what learning finds, and the whole way alone."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.builders import random_examples, write_devices
from tests.coordinator.conftest import FAMILIES, VOCABULARY, TinyBackbone
from tests.coordinator.personal import LABELS, random_batch, random_profile, trained_with
from tests.coordinator.small_training import people, train_small
from tests.numeric import assert_close_relative
from tests.tasks.ordinal import Ordinal

from umbel.coordinator.artifacts import MODEL
from umbel.coordinator.backbone import BackboneShape
from umbel.coordinator.graphs.parity import TOLERANCE
from umbel.coordinator.methods.base import AbstractMethod
from umbel.coordinator.methods.headbias import HeadBias, HeadBiasConfig
from umbel.coordinator.methods.plora import PLoRAConfig
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.publish import publish
from umbel.coordinator.sites import Frame
from umbel.device_client.device import learn_profile
from umbel.device_client.profile_file import read_profile
from umbel.shared.bias import fit_bias
from umbel.shared.learning import minimise
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import generator
from umbel.simulations.engines import RoundSettings, run_rounds

CONFIG = HeadBiasConfig(scale=0.7)
SHAPE = BackboneShape(hidden_size=4, layers=1, heads=1, vocabulary=9, max_tokens=9)
BIAS = "headbias.bias"

Floats = npt.NDArray[np.float32]


def lone(labels: int, config: HeadBiasConfig = CONFIG) -> HeadBias:
    method = HeadBias(config, SHAPE, [], torch.Generator())
    method.bind(labels)
    return method


def numbers(purpose: str, *shape: int) -> Floats:
    return generator(0, 0, "", purpose).normal(size=shape).astype(np.float32)


def model_of(tiny_backbone: TinyBackbone, family: str = "bert") -> PersonalModel:
    return trained_with(tiny_backbone(family), {"headbias": CONFIG})


def test_equation_example_by_example(tiny_backbone: TinyBackbone) -> None:
    """The head's own logits and 0.7 times the owner's entry; 1e-6 is float32's rounding of one sum."""
    model = model_of(tiny_backbone)
    ids, mask, owner = random_batch(0, 4, 6, 3, len(VOCABULARY)).tensors()
    users = numbers("users", 3, 3)
    found = model(ids, mask, owner, {BIAS: torch.tensor(users)}).detach().numpy()
    plain = model.task(model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
    expected = plain.detach().numpy().copy()
    for row in range(4):
        for label in range(3):
            expected[row, label] += 0.7 * users[owner[row], label]
    assert_close_relative("logits", found, expected, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_are_the_plain_model_to_the_bit(tiny_backbone: TinyBackbone, family: str) -> None:
    model = model_of(tiny_backbone, family)
    ids, mask, owner = random_batch(0, 4, 6, 2, len(VOCABULARY)).tensors()
    plain = model.task(model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
    found = model(ids, mask, owner, {BIAS: torch.zeros(2, 3)})
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


def test_personalised_dropout_hides_the_bias_and_rescales_nothing() -> None:
    users = torch.tensor(numbers("users", 3, 2))
    kept = Frame({BIAS: users}, torch.ones(3, 4), keep=torch.tensor([[1.0], [0.0], [1.0]]))
    found = lone(2).at_logits(torch.zeros(3, 2), kept)
    assert found is not None
    torch.testing.assert_close(found[[0, 2]], 0.7 * users[[0, 2]], rtol=0, atol=0)
    assert not found[1].any()


@pytest.mark.parametrize(("storage", "size"), [("float16", 2), ("float32", 4)])
@pytest.mark.parametrize("labels", [2, 3, 150])
def test_a_float_per_label_and_nothing_shared(
    tiny_backbone: TinyBackbone, labels: int, storage: str, size: int
) -> None:
    config = HeadBiasConfig.model_validate({"storage": storage})
    names = [str(number) for number in range(labels)]
    model = build_model(tiny_backbone("bert"), "classification", names, {"headbias": config}, 0)
    assert model.profile_spec().packed_bytes == labels * size
    assert [tensor.shape for tensor in model.profile_spec().tensors] == [(labels,)]
    assert model.shared_names() == ["task.weight", "task.bias"]


@pytest.mark.parametrize("company", [{}, {"plora": PLoRAConfig(rank=3, alpha=6, user_size=5)}])
def test_it_folds_into_the_tasks_bias(tiny_backbone: TinyBackbone, company: dict[str, PLoRAConfig]) -> None:
    model = trained_with(tiny_backbone("bert"), {"headbias": CONFIG, **company})
    ids, mask, owner = random_batch(0, 4, 6, 1, len(VOCABULARY)).tensors()
    profile = {n: torch.tensor(v) for n, v in random_profile(0, 1, model.profile_spec()).items()}
    personal = model(ids, mask, owner, profile).detach().numpy()
    before = model.get_parameter("task.bias").clone()
    twin = model.folded({name: values[0] for name, values in profile.items()})
    assert_close_relative("logits", twin(ids, mask, owner, {}).detach().numpy(), personal)
    assert twin.method_list() == []
    torch.testing.assert_close(
        twin.get_parameter("task.bias"), before + 0.7 * profile[BIAS][0], rtol=0, atol=0
    )
    assert torch.equal(model.get_parameter("task.bias"), before)


def test_what_cannot_take_a_bias_is_not_folded(tiny_backbone: TinyBackbone) -> None:
    model = model_of(tiny_backbone)
    model.task = Ordinal(LABELS, 32, torch.Generator().manual_seed(0))
    with pytest.raises(NotImplementedError, match="the task 'ordinal' cannot take a head"):
        model.folded({BIAS: torch.zeros(3)})


def test_a_method_that_says_nothing_of_folding_its_logits_is_not_folded(
    tiny_backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise what it adds to the logits would be lost without a word."""
    model = model_of(tiny_backbone)
    monkeypatch.setattr(HeadBias, "fold_logits", AbstractMethod.fold_logits)
    with pytest.raises(NotImplementedError, match="headbias cannot be folded into the task's head"):
        model.folded({BIAS: torch.zeros(3)})


@given(
    k=st.integers(1, 12),
    labels=st.integers(2, 5),
    scale=st.sampled_from([0.3, 0.5, 1.0, 2.0]),
    prior=st.sampled_from([0.3, 1.0, 3.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_learning_finds_the_baselines_bias(
    k: int, labels: int, scale: float, prior: float, seed: int
) -> None:
    """prior |b_u|^2 = (prior / scale^2) |scale b_u|^2: Newton's method on the bias itself finds the same."""
    rng = generator(seed, 0, "", "a person")
    logits = rng.normal(size=(k, labels)).astype(np.float32)
    given_labels = rng.integers(0, labels, k)
    method = lone(labels, HeadBiasConfig(scale=scale))

    def gradients_at(profile: Mapping[str, FloatArray]) -> tuple[FloatArray, dict[str, FloatArray]]:
        own = torch.tensor(profile[BIAS], requires_grad=True)
        added = method.at_logits(torch.zeros(k, labels), Frame({BIAS: own.expand(k, labels)}, torch.ones(k)))
        assert added is not None
        scores = torch.log_softmax(torch.tensor(logits) + added, 1)
        nll = -scores[torch.arange(k), torch.tensor(given_labels)]
        (gradient,) = torch.autograd.grad(nll.sum(), own)
        return nll.detach().numpy(), {BIAS: gradient.numpy()}

    recipe = LearningRecipe(steps=200, learning_rate=0.2, prior_strength=prior)
    found = minimise(gradients_at, {BIAS: np.zeros((1, labels), np.float32)}, recipe)[BIAS][0]
    wanted = fit_bias(logits, given_labels, prior / scale**2)
    np.testing.assert_allclose(scale * found, wanted, atol=2e-3)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"scale": -1}, {"storage": "int8"}, {"rank": 3}])
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        HeadBiasConfig.model_validate(wrong)


@pytest.fixture(scope="module")
def backbone(tiny_backbone: TinyBackbone) -> str:
    return tiny_backbone("bert").name


ALONE: dict[str, Any] = {"methods": {"headbias": {}}, "trainables": ["task.*"]}


def test_alone_it_is_stopped_and_resumed_to_the_same_bits(backbone: str, tmp_path: Path) -> None:
    """A method without parameters leaves the optimizer one group less, and the checkpoint as many tensors."""

    def stop(phase: str, done: int, *_: object) -> None:
        if phase == "train" and done == 12:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_small(backbone, tmp_path / "stopped", stop, **ALONE)
    train_small(backbone, tmp_path / "stopped", **ALONE)
    train_small(backbone, tmp_path / "whole", **ALONE)
    assert (tmp_path / "stopped" / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()


def test_alone_it_goes_the_whole_way(backbone: str, tmp_path: Path) -> None:
    training = {"max_steps": 60, "head_rate": 0.01}
    methods = {"headbias": {"scale": 1.0}}
    trained = train_small(
        backbone, tmp_path / "t", training=training, methods=methods, trainables=["task.*"],
        examples=people(8, 24),
    )  # fmt: skip
    release = publish(trained, tmp_path / "r")
    assert max(release.manifest.parity.values()) <= TOLERANCE
    assert set(release.manifest.trainables) == {"task.weight", "task.bias"}
    one_sided = [e for e in random_examples(0, "somebody", 40) if e.label == "no"][:6]
    learned = learn_profile(release, one_sided, tmp_path / "profile.umbel")
    assert learned.nll_personal < learned.nll_generic
    assert learned.file_bytes == 40 + 2 * 2
    (bias,) = read_profile(release, tmp_path / "profile.umbel")[BIAS]
    assert bias[0] > 0 > bias[1]
    reached = run_rounds(
        "serial", release_folder=release.folder, devices_folder=write_devices(tmp_path / "devices", [5, 6]),
        clients_total=2, out=tmp_path / "rounds",
        settings=RoundSettings(
            rounds=1, clients=2, evaluate_clients=2, local_rate=0.5, secure=False
        ),
    )  # fmt: skip
    assert [(record.clients, record.failures) for record in reached.rounds] == [(2, 0)]
