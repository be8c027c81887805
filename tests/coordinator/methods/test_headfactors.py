"""The private mix of heads: its equation, birth, dropout, folding, its basis, and what learning finds."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.builders import random_examples
from tests.coordinator.conftest import FAMILIES, VOCABULARY, TinyBackbone
from tests.coordinator.personal import LABELS, random_batch, random_profile, trained_with
from tests.coordinator.small_training import people, train_small
from tests.numeric import assert_close_relative
from tests.tasks.ordinal import Ordinal

from umbel.coordinator.backbone import BackboneShape
from umbel.coordinator.graphs.parity import TOLERANCE
from umbel.coordinator.methods.headfactors import HeadFactors, HeadFactorsConfig
from umbel.coordinator.methods.plora import PLoRAConfig
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.publish import publish
from umbel.coordinator.sites import Frame
from umbel.device_client.device import learn_profile
from umbel.shared.errors import ConfigError
from umbel.shared.learning import minimise
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import generator

CONFIG = HeadFactorsConfig(user_size=3)
SHAPE = BackboneShape(hidden_size=4, layers=1, heads=1, vocabulary=9, max_tokens=9)
USER = "headfactors.user"

Floats = npt.NDArray[np.float32]


def numbers(purpose: str, *shape: int, seed: int = 0) -> Floats:
    return generator(seed, 0, "", purpose).normal(size=shape).astype(np.float32)


def lone(labels: int, seed: int = 0, config: HeadFactorsConfig = CONFIG) -> HeadFactors:
    """Returns the method with random heads for texts of 4 numbers."""
    method = HeadFactors(config, SHAPE, [], torch.Generator())
    method.bind(labels)
    with torch.no_grad():
        method.M.copy_(torch.tensor(numbers("M", *method.M.shape, seed=seed)))
        method.m.copy_(torch.tensor(numbers("m", *method.m.shape, seed=seed)))
    return method


def frame_of(users: Floats, embedding: Floats, keep: torch.Tensor | None = None) -> Frame:
    frame = Frame({USER: torch.tensor(users)}, torch.ones(len(users), 1), keep=keep)
    frame.embedding = torch.tensor(embedding)
    return frame


def model_of(tiny_backbone: TinyBackbone, family: str = "bert") -> PersonalModel:
    return trained_with(tiny_backbone(family), {"headfactors": CONFIG})


def test_equation_number_by_number() -> None:
    method = lone(2).requires_grad_(False)
    users, embedding = numbers("users", 5, 3), numbers("texts", 5, 4)
    found = method.at_logits(torch.zeros(5, 2), frame_of(users, embedding))
    assert found is not None
    for row in range(5):
        for label in range(2):
            expected = sum(
                float(users[row, j])
                * (float(method.M[j, label] @ torch.tensor(embedding[row])) + float(method.m[j, label]))
                for j in range(3)
            )
            assert float(found[row, label]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_are_the_plain_model_to_the_bit(tiny_backbone: TinyBackbone, family: str) -> None:
    """Whatever the shared heads have become: who has no profile never pays for those of others."""
    model = model_of(tiny_backbone, family)
    assert any(values.any() for values in model.methods.parameters())
    ids, mask, owner = random_batch(0, 4, 6, 2, len(VOCABULARY)).tensors()
    plain = model.task(model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
    torch.testing.assert_close(model(ids, mask, owner, {USER: torch.zeros(2, 3)}), plain, rtol=0, atol=0)


def test_personalised_dropout_hides_the_person_and_rescales_nothing() -> None:
    users, embedding = numbers("users", 3, 3), numbers("texts", 3, 4)
    whole = lone(2).at_logits(torch.zeros(3, 2), frame_of(users, embedding))
    keep = torch.tensor([[1.0], [0.0], [1.0]])
    found = lone(2).at_logits(torch.zeros(3, 2), frame_of(users, embedding, keep))
    assert found is not None
    assert whole is not None
    torch.testing.assert_close(found[[0, 2]], whole[[0, 2]], rtol=0, atol=0)
    assert not found[1].any()


@pytest.mark.parametrize(("storage", "size"), [("float16", 2), ("float32", 4)])
def test_a_float_per_head_is_private(tiny_backbone: TinyBackbone, storage: str, size: int) -> None:
    config = HeadFactorsConfig.model_validate({"user_size": 5, "storage": storage})
    model = build_model(tiny_backbone("bert"), "classification", LABELS, {"headfactors": config}, 0)
    assert model.profile_spec().packed_bytes == 5 * size
    assert {name: tuple(model.get_parameter(name).shape) for name in model.shared_names()} == {
        "methods.headfactors.M": (5, 3, 32),
        "methods.headfactors.m": (5, 3),
        "task.weight": (3, 32),
        "task.bias": (3,),
    }


@pytest.mark.parametrize("company", [{}, {"plora": PLoRAConfig(rank=3, alpha=6, user_size=5)}])
def test_it_folds_into_the_tasks_head(tiny_backbone: TinyBackbone, company: dict[str, PLoRAConfig]) -> None:
    model = trained_with(tiny_backbone("bert"), {"headfactors": CONFIG, **company})
    ids, mask, owner = random_batch(0, 4, 6, 1, len(VOCABULARY)).tensors()
    profile = {n: torch.tensor(v) for n, v in random_profile(0, 1, model.profile_spec()).items()}
    personal = model(ids, mask, owner, profile).detach().numpy()
    before = model.get_parameter("task.weight").clone()
    twin = model.folded({name: values[0] for name, values in profile.items()})
    assert twin.method_list() == []
    assert_close_relative("logits", twin(ids, mask, owner, {}).detach().numpy(), personal)
    assert torch.equal(model.get_parameter("task.weight"), before)


def test_a_task_that_cannot_take_a_head_is_not_folded(tiny_backbone: TinyBackbone) -> None:
    model = model_of(tiny_backbone)
    model.task = Ordinal(LABELS, 32, torch.Generator().manual_seed(0))
    with pytest.raises(NotImplementedError, match="the task 'ordinal' cannot take a head"):
        model.folded({USER: torch.zeros(3)})


@given(seed=st.integers(0, 99), users=st.integers(1, 9), labels=st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_the_new_basis_changes_no_answer(seed: int, users: int, labels: int) -> None:
    """The relative 1e-3 is float32's share of directions whose moment is cut off at 1e-4 of the largest."""
    method = lone(labels, seed)
    before, embedding = numbers("people", users, 3, seed=seed), numbers("texts", users, 4, seed=seed)
    answers = method.at_logits(torch.zeros(users, labels), frame_of(before, embedding))
    after = method.rebase({USER: torch.tensor(before)})[USER].numpy()
    again = method.at_logits(torch.zeros(users, labels), frame_of(after, embedding))
    assert answers is not None
    assert again is not None
    assert_close_relative("logits", again.detach().numpy(), answers.detach().numpy(), 1e-3)
    if users > 5:
        np.testing.assert_allclose(after.T @ after / users, np.eye(3), atol=1e-2)
    assert method.rebase({USER: torch.zeros(users, 3)})[USER].sum() == 0


@given(seed=st.integers(0, 99), k=st.integers(1, 12), prior=st.sampled_from([0.3, 1.0, 3.0]))
@settings(max_examples=15, deadline=None)
def test_learning_finds_the_person(seed: int, k: int, prior: float) -> None:
    """With two labels it is a logistic regression: Newton's method on the same loss finds the same vector."""
    method = lone(2, seed)
    embedding, logits = numbers("texts", k, 4, seed=seed), numbers("logits", k, 2, seed=seed)
    labels = generator(seed, 0, "", "labels").integers(0, 2, k)

    def gradients_at(profile: Mapping[str, FloatArray]) -> tuple[FloatArray, dict[str, FloatArray]]:
        own = torch.tensor(profile[USER], requires_grad=True)
        frame = Frame({USER: own.expand(k, 3)}, torch.ones(k, 1))
        frame.embedding = torch.tensor(embedding)
        added = method.at_logits(torch.zeros(k, 2), frame)
        assert added is not None
        scores = torch.log_softmax(torch.tensor(logits) + added, 1)
        nll = -scores[torch.arange(k), torch.tensor(labels)]
        (gradient,) = torch.autograd.grad(nll.sum(), own)
        return nll.detach().numpy(), {USER: gradient.numpy()}

    recipe = LearningRecipe(steps=800, learning_rate=0.2, prior_strength=prior)
    found = minimise(gradients_at, {USER: np.zeros((1, 3), np.float32)}, recipe)[USER][0]
    heads, offsets = (part.detach().double().numpy() for part in (method.M, method.m))
    features = (np.einsum("jld,kd->kjl", heads, embedding) + offsets) @ np.array([-1.0, 1.0])  # (k, 3)
    wanted = newton(features, logits[:, 1] - logits[:, 0], labels, prior)
    np.testing.assert_allclose(found, wanted, atol=2e-2)


def newton(
    features: npt.NDArray[np.float64], offset: Floats, labels: npt.NDArray[np.int64], prior: float
) -> npt.NDArray[np.float64]:
    """Minimises sum_i nll_i + prior / 2 |p|^2, with damped steps."""
    found = np.zeros(features.shape[1])

    def loss(p: npt.NDArray[np.float64]) -> float:
        z = (offset + features @ p) * np.where(labels == 1, 1, -1)
        return float(np.logaddexp(0, -z).sum() + prior / 2 * p @ p)

    for _ in range(60):
        chance = 1 / (1 + np.exp(-(offset + features @ found)))
        gradient = features.T @ (chance - labels) + prior * found
        curvature = features.T @ (features * (chance * (1 - chance))[:, None]) + prior * np.eye(len(found))
        step = np.linalg.solve(curvature, gradient)
        scale = 1.0
        while loss(found - scale * step) > loss(found) and scale > 1e-9:
            scale /= 2
        found = found - scale * step
    return found


@pytest.fixture(scope="module")
def backbone(tiny_backbone: TinyBackbone) -> str:
    return tiny_backbone("bert").name


@pytest.mark.parametrize(("start", "labels"), [("zeros", 2), ("embeddings", 17)])
def test_people_who_start_at_zero_move(backbone: str, tmp_path: Path, start: str, labels: int) -> None:
    """Heads at zero would keep them there; with many labels nobody's start is sought."""
    rows = [replace(e, label=f"label {n % labels}") for n, e in enumerate(people(4, 34))]
    methods = {"headfactors": {"start": start}}
    trained = train_small(backbone, tmp_path / "t", examples=rows, methods=methods)
    moved = trained.tensors["methods.headfactors.m"]
    assert moved.abs().max() > 1e-4


def test_with_a_head_that_stays_it_goes_the_whole_way(backbone: str, tmp_path: Path) -> None:
    """Answers without a profile are those of the adaptation, however long people's profiles are trained."""
    changes: dict[str, Any] = {
        "methods": {"headfactors": {"user_size": 3}, "headbias": {}},
        "backbone": {"train": "top:1"},
        "examples": people(8, 24),
        "trainables": [],
    }
    training = {"adapt_steps": 6, "head": "adapted", "max_steps": 30, "personalised_dropout": 0.0}
    trained = train_small(backbone, tmp_path / "t", training=training, **changes)
    shorter = train_small(backbone, tmp_path / "s", training=training | {"max_steps": 8}, **changes)
    for name in ("task.weight", "task.bias"):
        assert torch.equal(trained.tensors[name], shorter.tensors[name])
    heads = "methods.headfactors.M"
    assert not torch.equal(trained.tensors[heads], shorter.tensors[heads])
    release = publish(trained, tmp_path / "r")
    assert max(release.manifest.parity.values()) <= TOLERANCE
    assert not release.manifest.trainables
    one_sided = [e for e in random_examples(0, "somebody", 40) if e.label == "no"][:6]
    learned = learn_profile(release, one_sided, tmp_path / "profile.umbel")
    assert learned.nll_personal < learned.nll_generic
    assert learned.file_bytes == 40 + 2 * (3 + 2)


def test_a_head_that_stays_must_have_been_adapted(backbone: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.head = 'adapted'"):
        train_small(backbone, tmp_path / "t", training={"head": "adapted"})
    assert not (tmp_path / "t" / "model.safetensors").exists()


@pytest.mark.parametrize("wrong", [{"user_size": 0}, {"storage": "int8"}, {"rank": 3}, {"start": "ones"}])
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        HeadFactorsConfig.model_validate(wrong)
