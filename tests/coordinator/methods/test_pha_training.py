"""PHA while it is trained: the contrastive terms, where users start, and the basis."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coordinator.conftest import VOCABULARY, TinyBackbone
from tests.coordinator.methods.small_pha import (
    CONFIG,
    frame_of,
    lone_pha,
    numbers,
    pha_of,
    shares_of,
    unit,
    values_of,
)
from tests.coordinator.personal import random_batch, random_users, trained_with

from umbel.coordinator.methods.pha import instance_term, prototype_term
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.training.step import Batch, UserTable, batch_loss


def same_of(owner: list[int]) -> torch.Tensor:
    users = torch.tensor(owner)
    return users.unsqueeze(1) == users


OWNERS = st.lists(st.integers(0, 3), min_size=1, max_size=7)


@given(owner=OWNERS, seed=st.integers(0, 99), scale=st.sampled_from([0.1, 1.0, 10.0]))
@settings(max_examples=60, deadline=None)
def test_instance_term_against_a_literal_program(owner: list[int], seed: int, scale: float) -> None:
    """A row's positives are the user's other rows; everyone but itself is in the denominator."""
    scores = random_users(seed, len(owner), len(owner), scale)
    rows = []
    for i, mine in enumerate(owner):
        positives = [j for j, other in enumerate(owner) if other == mine and j != i]
        if positives:
            others = [np.exp(np.float64(scores[i, j])) for j in range(len(owner)) if j != i]
            rows.append(np.mean([np.log(sum(others)) - scores[i, j] for j in positives]))
    values = torch.tensor(scores, requires_grad=True)
    found = instance_term(values, same_of(owner))
    assert found.item() == pytest.approx(np.mean(rows) if rows else 0.0, rel=1e-4, abs=1e-4)
    (gradient,) = torch.autograd.grad(found, values)
    assert torch.isfinite(gradient).all()
    assert gradient.any() == (len(rows) > 0 and len(owner) > 2)  # of two rows, one is all there is to choose


@given(owner=OWNERS, seed=st.integers(0, 99), scale=st.sampled_from([0.1, 1.0, 10.0]))
@settings(max_examples=60, deadline=None)
def test_prototype_term_against_a_literal_program(owner: list[int], seed: int, scale: float) -> None:
    """The denominator holds each user once, the own one too, so that the term is never below 0."""
    by_user = random_users(seed, len(owner), 4, scale)
    scores = by_user[:, owner]
    rows = []
    for i, mine in enumerate(owner):
        everyone = [np.exp(np.float64(by_user[i, user])) for user in sorted(set(owner))]
        rows.append(np.log(sum(everyone)) - by_user[i, mine])
    found = prototype_term(torch.tensor(scores), same_of(owner)).item()
    assert found == pytest.approx(np.mean(rows), rel=1e-4, abs=1e-5)
    assert found >= -1e-5
    if len(set(owner)) == 1:
        assert found == pytest.approx(0.0, abs=1e-5)


def step_of(model: PersonalModel, owner: list[int], keep: float = 1.0) -> tuple[UserTable, Any, Batch]:
    """A table of three users, a test batch and the same as training sees it."""
    table = UserTable(model.profile_spec(), 3)
    with torch.no_grad():
        table.values[0].copy_(torch.tensor(random_users(0, 3, 5)))
    rows = random_batch(0, len(owner), 6, 3, len(VOCABULARY))
    ids, mask, _ = rows.tensors()
    kept = torch.full((len(owner), 1), keep)
    return (
        table,
        rows,
        Batch(ids, mask, torch.tensor(rows.labels), torch.tensor(owner), kept, np.arange(len(owner))),
    )


@pytest.mark.parametrize("contrast", ["users", "bank"])
@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_terms_of_a_training_step_against_a_literal_program(
    tiny_backbone: TinyBackbone, contrast: str, keep: float
) -> None:
    """loss - nll = 0.3 L_IR + 0.2 L_Pro of cosines / 0.5: texts as they are read without any profile.

    1e-4: the difference of two losses in float32.
    """
    changes = {"instance_weight": 0.3, "prototype_weight": 0.2, "temperature": 0.5, "contrast": contrast}
    model = trained_with(tiny_backbone("bert"), {"pha": CONFIG.model_copy(update=changes)})
    owner = [0, 2, 0, 2, 2]
    table, _, batch = step_of(model, owner, keep)
    loss, nll = batch_loss(model, table, batch, 0.0)

    nobody = {"pha.prototype": torch.zeros(3, 5)}
    states = model.states(batch.ids, batch.mask, model.frame(batch.mask, batch.owner, nobody))
    share = (batch.mask / batch.mask.sum(1, keepdim=True)).unsqueeze(-1)  # the mean over tokens
    pooled = (states * share).sum(1).detach().numpy().astype(np.float64)
    v = values_of(pha_of(model))
    hidden = np.maximum(pooled @ v["retriever.first"].T + v["retriever.first_bias"], 0)
    z = unit(hidden @ v["retriever.second"].T + v["retriever.second_bias"])
    users = table.values[0].detach().numpy()
    own = unit(shares_of(v["bank_weights"]) @ v["bank"] + users @ v["basis"].T)
    instance = []
    for i in range(5):
        logs = {j: z[i] @ z[j] / 0.5 for j in range(5) if j != i}
        total = np.log(sum(np.exp(value) for value in logs.values()))
        instance.append(np.mean([total - logs[j] for j in logs if owner[j] == owner[i]]))
    contrasts = []
    for i in range(5):
        if contrast == "users":
            contrasts.append(-np.log(shares_of(z[i] @ own[[0, 2]].T / 0.5)[owner[i] // 2]))
        else:
            wanted = shares_of(own[owner[i]] @ unit(v["bank"]).T / 0.5)
            contrasts.append(-wanted @ np.log(shares_of(z[i] @ unit(v["bank"]).T / 0.5)))
    expected = 0.3 * np.mean(instance) + 0.2 * np.mean(contrasts)
    assert (loss - nll).item() == pytest.approx(expected, rel=1e-4)


def test_what_the_terms_teach(tiny_backbone: TinyBackbone) -> None:
    """The retriever, and the prototypes of the users who are there; not the encoder, nor what writes."""
    model = trained_with(tiny_backbone("bert"), {"pha": CONFIG})
    table, _, batch = step_of(model, [0, 2, 0, 2])
    model.requires_grad_(True)
    loss, _ = batch_loss(model, table, batch, 0.0)
    nll = torch.nn.functional.cross_entropy(
        model.run(batch.ids, batch.mask, model.frame(batch.mask, batch.owner, table.as_profile())),
        batch.labels,
    )
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss - nll, [table.values[0], *named.values()], materialize_grads=True)
    assert (found[0].abs().amax(1) > 1e-5).tolist() == [True, False, True]
    taught = {name for name, g in zip(named, found[1:], strict=True) if g.abs().max() > 1e-5}
    retriever = {f"retriever.{name}" for name in ("first", "first_bias", "second", "second_bias")}
    shared = {"bank", "bank_weights", "basis"}
    assert taught == {f"methods.pha.{name}" for name in retriever | shared}


def test_no_terms_without_weights_owners_or_states() -> None:
    off = lone_pha(instance_weight=0.0, prototype_weight=0.0)
    assert off.retriever is None
    assert not off.needs_generic_pass()
    with pytest.raises(ValueError, match="there is no retriever"):
        off.retrieve(torch.ones(1, 2, 4), torch.ones(1, 2))
    method, logits = lone_pha(), torch.zeros(2, 3)
    assert method.needs_generic_pass()
    users, x = numbers("users", 2, 5), numbers("x", 2, 3, 4)
    states, owner = torch.tensor(x), torch.tensor([0, 1])
    assert method.training_term(logits, None, frame_of(users, x, owner=owner)) is None
    assert method.training_term(logits, None, frame_of(users, x, generic_states=states)) is None
    both = frame_of(users, x, owner=owner, generic_states=states)
    assert off.training_term(logits, None, both) is None
    assert method.training_term(logits, None, both) is not None


def test_padding_does_not_count_in_retrieval() -> None:
    method, states = lone_pha(), torch.tensor(numbers("states", 2, 3, 4))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    z = method.retrieve(states, mask)
    torch.testing.assert_close(z[:1], method.retrieve(states[:1, :2], mask[:1, :2]))
    torch.testing.assert_close(z[1:], method.retrieve(states[1:, :1], mask[1:, :1]))


@given(users=st.integers(1, 12), scale=st.sampled_from([1e-3, 1.0, 1e2]), bank=st.integers(1, 13))
@settings(max_examples=40, deadline=None)
def test_rebase_changes_no_prototype_and_gives_unit_scale(users: int, scale: float, bank: int) -> None:
    """T k_u and k_0 stay; the strongest direction's moment is 1; 1e-4 as k_0 sums a bank of any scale."""
    method = lone_pha(prototypes=bank)
    vectors = torch.tensor(numbers("left", users, 5) * np.float32(scale))
    before, generic = (method.prototype(vectors).detach(), method.generic_prototype().detach())
    found = method.rebase({"pha.prototype": vectors, "other.tensor": torch.ones(users, 1)})
    new = found["pha.prototype"]
    assert found.keys() == {"pha.prototype", "other.tensor"}
    torch.testing.assert_close(method.prototype(new).detach(), before, rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(method.generic_prototype().detach(), generic, rtol=1e-4, atol=1e-4 * scale)
    moments = np.linalg.eigvalsh(new.double().numpy().T @ new.double().numpy() / users)
    assert moments[-1] == pytest.approx(1.0, rel=1e-3)
    if users > 5:
        assert moments[0] > 0.01


def test_rebase_sets_the_bank_out_along_the_directions_in_which_people_differ() -> None:
    """k_0 plus and minus each of T's first columns, once each; a bank that was trained stays as it is."""
    users = torch.tensor(numbers("users", 9, 5))
    method = lone_pha(prototypes=5)
    generic = method.generic_prototype().detach()
    method.rebase({"pha.prototype": users})
    columns = method.basis.detach().T
    wanted = torch.stack([columns[0], columns[1], -columns[0], -columns[1], torch.zeros(5)]) + generic
    torch.testing.assert_close(method.bank.detach(), wanted)
    assert not method.bank_weights.any()
    trained = lone_pha(contrast="bank")
    bank = trained.bank.clone()
    trained.rebase({"pha.prototype": users})
    assert torch.equal(trained.bank, bank)
    assert trained.bank_weights.all()


@pytest.mark.parametrize("users", [0, 3])
def test_rebase_when_nobody_has_learned_anything_changes_nothing(users: int) -> None:
    method = lone_pha()
    before = {name: parameter.clone() for name, parameter in method.named_parameters()}
    found = method.rebase({"pha.prototype": torch.zeros(users, 5)})
    assert torch.equal(found["pha.prototype"], torch.zeros(users, 5))
    assert all(torch.equal(parameter, before[name]) for name, parameter in method.named_parameters())


def test_seen_users_start_where_their_labels_point() -> None:
    """One direction in two features: the coordinates on it, the largest positive, then zeros."""
    summary = torch.tensor([[3.0, 4.0], [-6.0, -8.0], [0.0, 0.0]], dtype=torch.float64)
    found = lone_pha().start_users(summary)["pha.prototype"]
    wanted = torch.zeros(3, 5)
    wanted[:, 0] = torch.tensor([-5.0, 10.0, 0.0])
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert lone_pha().starts_users()
    assert not lone_pha(start="zeros").starts_users()
