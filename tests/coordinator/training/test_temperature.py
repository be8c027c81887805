"""Temperatures make probabilities as true as they can be made so, and profiles are weighed as devices do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coordinator.conftest import VOCABULARY, TinyBackbone
from tests.coordinator.personal import TINY_PLORA, random_users, trained_model

from umbel.coordinator.config import RecipeConfig
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.training.calibrate import TorchGradients
from umbel.coordinator.training.data import Rows
from umbel.coordinator.training.temperature import fit_calibration, fit_temperature
from umbel.shared.bias import softmax
from umbel.shared.learning import minimise
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import generator
from umbel.shared.strength import STRENGTHS, expected_strength
from umbel.shared.text import IntArray, TokenBatch

USERS, EACH, K = 6, 20, 4
CONFIG = RecipeConfig.model_validate({"k": [2, K, 8], "steps": [4]})


def nll(logits: FloatArray, labels: IntArray) -> FloatArray:
    return np.asarray(-np.log(softmax(logits)[np.arange(len(labels)), labels]), np.float32)


@given(seed=st.integers(0, 2**32), sharp=st.floats(0.3, 3.5), labels=st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_no_other_temperature_is_better(seed: int, sharp: float, labels: int) -> None:
    """Against a grid; the nll is flat at its minimum, so what is compared is the nll."""
    rng = generator(seed, 0, "", "test")
    logits = (rng.standard_normal((40, labels)) * 2 * sharp).astype(np.float32)
    wanted = rng.integers(0, labels, 40)
    found = fit_temperature(logits, wanted)
    grid = 1 / np.linspace(0.25, 4.0, 200)
    best = min(float(nll(logits / t, wanted).mean()) for t in grid)
    assert float(nll(logits / found, wanted).mean()) <= best + 1e-6


def test_what_is_drawn_from_sharper_logits_is_found() -> None:
    """Labels drawn at T = 2 of 4,000 answers: within 0.15 of 2, three standard errors and more."""
    rng = generator(0, 0, "", "test")
    logits = rng.standard_normal((4000, 2)) * 3
    wanted = (rng.random(4000) < softmax(logits / 2)[:, 1]).astype(np.int64)
    assert fit_temperature(logits.astype(np.float32), wanted) == pytest.approx(2.0, abs=0.15)


@pytest.fixture(scope="module")
def model(tiny_backbone: TinyBackbone) -> PersonalModel:
    return trained_model(tiny_backbone("bert"), TINY_PLORA)


@pytest.fixture(scope="module")
def twin(model: PersonalModel) -> TorchGradients:
    rng = generator(0, 0, "", "texts")
    ids = rng.integers(4, len(VOCABULARY), (USERS * EACH, 5))
    return TorchGradients(model, TokenBatch(ids, np.ones_like(ids)))


@pytest.fixture(scope="module")
def people(twin: TorchGradients) -> list[Rows]:
    """People whose labels are drawn from the model under a true profile."""
    profile = {"plora.user": random_users(3, USERS, TINY_PLORA.user_size, scale=4.0)}
    found = []
    for user in range(USERS):
        text = np.arange(user * EACH, (user + 1) * EACH)
        rows = Rows(text, np.full(EACH, user), np.zeros(EACH, np.int64))
        draw = generator(1, 0, str(user), "test").random((EACH, 1))
        label = (softmax(0.5 * twin.logits(rows, profile)).cumsum(1) < draw).sum(1)
        found.append(Rows(text, np.zeros(EACH, np.int64), label.clip(0, 2)))
    return found


@pytest.mark.parametrize("folds", [0, 3])
def test_it_is_what_each_user_would_find_alone(
    model: PersonalModel, twin: TorchGradients, people: list[Rows], folds: int
) -> None:
    """The slow twin: one user at a time, one fold at a time."""
    recipe = LearningRecipe(steps=4, learning_rate=0.3, folds=folds, trust=0.5)
    zeros = model.profile_spec().zeros(1)

    def learned(rows: Rows) -> dict[str, FloatArray]:
        return minimise(lambda profile: twin.learn(rows, profile), zeros, recipe)

    generic, personal, labels = [], [], []
    for rows in people:
        support, query = rows.take(np.arange(K)), rows.take(np.arange(8, EACH))
        strength = 1.0
        if folds:
            sums = np.zeros(len(STRENGTHS))
            for fold in range(folds):  # texts are numbered, and each is another one
                held = np.arange(K) % folds == fold
                profile = learned(support.take(np.flatnonzero(~held)))
                rest = support.take(np.flatnonzero(held))
                sums += [
                    nll(
                        twin.logits(rest, {n: v * np.float32(s) for n, v in profile.items()}), rest.label
                    ).sum()
                    for s in STRENGTHS
                ]
            strength = expected_strength(sums.astype(np.float32), recipe.trust)
        own = {name: values * np.float32(strength) for name, values in learned(support).items()}
        personal.append(twin.logits(query, own))
        generic.append(twin.logits(query, zeros))
        labels.append(query.label)
    found = fit_calibration(twin, people, CONFIG, recipe)
    assert found is not None
    wanted = [fit_temperature(np.concatenate(part), np.concatenate(labels)) for part in (generic, personal)]
    assert [found.generic, found.personal] == pytest.approx([max(t, 1.0) for t in wanted], abs=2e-3)
    assert max(wanted) > 1.0  # so that a temperature is compared


def test_too_few_answers_give_none(twin: TorchGradients, people: list[Rows]) -> None:
    assert fit_calibration(twin, people[:2], CONFIG, LearningRecipe(steps=1)) is None
    assert fit_calibration(twin, [], CONFIG, LearningRecipe(steps=1)) is None
