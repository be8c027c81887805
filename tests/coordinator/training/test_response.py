"""Where a prompt starts: how answers respond to it, how large effects are, and what it is all good for."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.coordinator.conftest import TinyBackbone
from tests.coordinator.small_training import people
from tests.oracles.response import responses_oracle, slopes_oracle

from umbel.coordinator.config import TrainingConfig
from umbel.coordinator.methods.lopa import LoPA, LoPAConfig
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.training import response
from umbel.coordinator.training.collaborative import factorise
from umbel.coordinator.training.data import Rows, TrainingData, prepare
from umbel.coordinator.training.response import Summary, responding_start
from umbel.coordinator.training.start import start_users
from umbel.coordinator.training.step import UserTable
from umbel.shared.rng import generator
from umbel.shared.text import TextEncoder

LABELS = ("no", "yes")


def numbers(purpose: str, *shape: int) -> Any:
    return generator(0, 0, "", purpose).normal(size=shape)


def small(tiny_backbone: TinyBackbone, **options: Any) -> tuple[PersonalModel, TrainingData, UserTable]:
    backbone = tiny_backbone("bert")
    config = LoPAConfig.model_validate({"rows": 3, "rank": 4, "width": 5, **options})
    model = build_model(backbone, "classification", LABELS, {"lopa": config}, 0)
    with torch.no_grad():  # as if it was trained: a head of small random weights hardly answers
        dict(model.named_parameters())["task.weight"].mul_(40.0)
    encoder = TextEncoder(backbone.tokenizer_json, 16)
    training = TrainingConfig.model_validate({"calibration_share": 0.2})
    data = prepare(people(16, 40), LABELS, encoder, training, 0)
    return model.eval(), data, UserTable(model.profile_spec(), len(data.users))


@pytest.mark.parametrize("combine", ["product", "add", "concat"])
def test_responses_are_differences(tiny_backbone: TinyBackbone, combine: str) -> None:
    model, data, _ = small(tiny_backbone, combine=combine)
    texts = np.array([0, 3, 5])
    logits, moves = response._responses(model, data, texts)
    for number, text in enumerate(texts):
        part = data.tokens.rows([int(text)])
        ids, mask = torch.tensor(part.ids), torch.tensor(part.mask)

        def moved(move: Any, ids: Any = ids, mask: Any = mask) -> Any:
            frame = model.nobody(mask)
            frame.shift = torch.tensor(move, dtype=torch.float32).unsqueeze(0)
            with torch.no_grad():
                return model.run(ids, mask, frame)[0].double().numpy()

        np.testing.assert_allclose(logits[number], moved(np.zeros(moves.shape[2])), atol=1e-5)
        slow = responses_oracle(moved, moves.shape[2], 1e-2)
        assert np.abs(slow).max() > 1e-3
        np.testing.assert_allclose(moves[number], slow, atol=0.02 * np.abs(slow).max())


@given(seed=st.integers(0, 999), labels=st.integers(2, 4), parts=st.integers(1, 2), count=st.integers(8, 30))
@settings(max_examples=60, deadline=None)
def test_slopes_are_a_newton_step(seed: int, labels: int, parts: int, count: int) -> None:
    rng = generator(seed, 0, "", "slopes")
    logits = rng.normal(size=(4, labels))
    made = [rng.normal(size=(4, labels, 2)) for _ in range(parts)]
    coordinates = rng.normal(size=(3, 2))
    text, user, label = (rng.integers(most, size=count) for most in (4, 3, labels))
    found = response._slopes(Rows(text, user, label), np.arange(4), logits, made, coordinates)
    wanted = slopes_oracle(list(zip(text, user, label, strict=True)), logits, made, coordinates)
    assume(max(wanted) < 20)  # where judgements say next to nothing, differences of floats do not either
    assert found == pytest.approx(wanted, rel=1e-2, abs=1e-3)


def test_texts_are_named_as_the_summary_names_them() -> None:
    """Judgements of texts 5 and 9 find the rows of texts 5 and 9, whatever their places."""
    logits, part = np.zeros((2, 2)), np.array([[[-1.0], [1.0]], [[1.0], [-1.0]]])
    rows = Rows(np.array([5, 5, 9, 9]), np.array([0, 1, 0, 1]), np.array([1, 0, 0, 1]))
    (found,) = response._slopes(rows, np.array([5, 9]), logits, [part], np.array([[1.0], [-1.0]]))
    assert found == pytest.approx(1.0)  # gradient 4 * 1, curvature 4 * 1
    swapped = Rows(rows.text, rows.user, 1 - rows.label)
    assert response._slopes(swapped, np.array([5, 9]), logits, [part], np.array([[1.0], [-1.0]])) == [0.0]


def test_what_summaries_say_of_logits_adds_up() -> None:
    """Tastes and leans of all axes together give back every person's logits, up to a constant per text."""
    for own in (2, 3):
        values, features = numbers("values", 6, own * 4 + own), numbers("features", 5, 4)
        summary = Summary(values, np.arange(5), features)
        assert summary.labels == own
        left, sizes, axes = np.linalg.svd(values, full_matrices=False)
        taste, lean = response._wanted(summary, axes, np.arange(5), 3)
        found = np.einsum("uj,tcj->utc", left * sizes, taste + lean)
        direct = np.zeros((6, 5, 3))
        direct[:, :, 3 - own :] = np.einsum("ucf,tf->utc", values[:, : own * 4].reshape(6, own, 4), features)
        direct[:, :, 3 - own :] += values[:, None, own * 4 :]
        np.testing.assert_allclose(found, direct - direct.mean(2, keepdims=True), atol=1e-9)


def mean_nll(model: PersonalModel, data: TrainingData, table: UserTable) -> float:
    tokens = data.tokens.rows(data.train.text)
    arrays = (tokens.ids, tokens.mask, data.train.user)
    with torch.no_grad():
        logits = model(*(torch.from_numpy(array) for array in arrays), table.as_profile())
        return float(model.task.nll(logits, torch.from_numpy(data.train.label)).mean())


@pytest.mark.parametrize("combine", ["product", "add", "concat"])
@pytest.mark.parametrize("shared_texts", [False, True])
def test_seen_people_start_nearer_to_their_labels(
    tiny_backbone: TinyBackbone, combine: str, shared_texts: bool
) -> None:
    model, data, table = small(tiny_backbone, combine=combine)
    lopa = model.methods["lopa"]
    assert isinstance(lopa, LoPA)
    before, generic = lopa.V.clone(), mean_nll(model, data, table)
    factors = factorise(data.train, len(data.users), 2, 3, 2.0, 0) if shared_texts else None
    start_users(model, table, data, factors)
    assert not torch.equal(lopa.V, before)
    assert mean_nll(model, data, table) < generic - 0.002
    rows = table.as_profile()["lopa.rows"].detach()
    moved = (rows[:, 0] @ lopa.V.detach().T).square().mean().sqrt()
    assert float(moved) <= 1.001 * lopa.response_reach()
    assert torch.equal(rows, rows[:, :1].expand_as(rows))  # every row of a person starts alike
    again, first = UserTable(model.profile_spec(), len(data.users)), lopa.V.clone()
    start_users(model, again, data, factors)
    assert torch.equal(again.as_profile()["lopa.rows"], rows)
    assert torch.equal(lopa.V, first)


def test_where_nobody_differs_nothing_is_found(tiny_backbone: TinyBackbone) -> None:
    model, data, _ = small(tiny_backbone)
    summary = Summary(np.zeros((len(data.users), 6)), np.arange(4), numbers("features", 4, 2))
    assert responding_start(model, data, summary, 4, 1.0, 0) is None


@pytest.mark.parametrize("combine", ["product", "add"])
def test_moves_that_make_nothing_likelier_are_not_made(tiny_backbone: TinyBackbone, combine: str) -> None:
    """Held-out judgements say so.

    Labels of held-out judgements are the opposite of what the summary says: every size of move is wrong.
    """
    model, data, _ = small(tiny_backbone, combine=combine)
    sign = np.where(np.arange(len(data.users)) % 2 == 0, 1.0, -1.0)
    summary = Summary(
        np.stack([0 * sign, sign], 1), np.arange(len(data.tokens)), np.zeros((len(data.tokens), 1))
    )
    agreed = Rows(
        data.validation.text, data.validation.user, (sign[data.validation.user] > 0).astype(np.int64)
    )
    against = replace(agreed, label=1 - agreed.label)
    found = responding_start(model, replace(data, validation=agreed), summary, 4, 1.0, 0)
    assert found is not None
    assert responding_start(model, replace(data, validation=against), summary, 4, 1.0, 0) is None


def test_more_directions_than_people_differ_in_are_left(tiny_backbone: TinyBackbone) -> None:
    """Columns beyond stay as they were made, and nobody is anywhere along them."""
    model, data, _ = small(tiny_backbone)
    lopa = model.methods["lopa"]
    assert isinstance(lopa, LoPA)
    before = lopa.V.clone()
    values = np.zeros((len(data.users), 4))
    values[:, 2] = values[:, 3] = numbers("lean", len(data.users))
    values[:, 2] *= -1
    label = (values[data.validation.user, 3] > 0).astype(np.int64)
    data = replace(data, validation=replace(data.validation, label=label))
    summary = Summary(values, np.arange(len(data.tokens)), np.zeros((len(data.tokens), 1)))
    moves = responding_start(model, data, summary, 4, 1.0, 0)
    assert moves is not None
    found = lopa.start_responding(*moves)
    assert torch.equal(lopa.V[:, 1:], before[:, 1:])
    assert not found["lopa.rows"][:, :, 1:].any()
    assert found["lopa.rows"][:, :, 0].any()
