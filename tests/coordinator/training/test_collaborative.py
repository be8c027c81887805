"""What judgements of the same texts say of users and texts, and training towards it."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.collaborative import logits_oracle, nll_oracle, trait_loss_oracle

from umbel.coordinator.training.collaborative import Factors, _turned, factorise, found_factors, has_overlap
from umbel.coordinator.training.data import Rows
from umbel.coordinator.training.start import collaborative_summaries
from umbel.coordinator.training.traits import TraitHead
from umbel.shared.rng import generator

USERS, TEXTS = 40, 60


def judgements(seed: int, strength: float, each: int = 40) -> tuple[Rows, np.ndarray]:
    """Users of two opposite tastes judge texts of one trait; also returns the trait (texts,)."""
    rng = generator(seed, 0, "", "judgements")
    trait = rng.normal(size=TEXTS)
    taste = np.where(np.arange(USERS) % 2, 1.0, -1.0)
    text = np.concatenate([rng.permutation(TEXTS)[:each] for _ in range(USERS)])
    user = np.repeat(np.arange(USERS), each)
    chance = 1 / (1 + np.exp(-strength * taste[user] * trait[text]))
    return Rows(text, user, (rng.random(len(text)) < chance).astype(np.int64)), trait


def split(rows: Rows) -> tuple[Rows, Rows]:
    index = np.arange(len(rows))
    return rows.take(index[index % 10 != 0]), rows.take(index[index % 10 == 0])


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(3, 7), st.integers(2, 4), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_turning_changes_no_answer(seed: int, users: int, texts: int, labels: int, size: int) -> None:
    """Every nll is what the factors that were fitted say; only what means nothing by itself is chosen."""
    rng = generator(seed, 0, "", "turned")
    trait, taste = rng.normal(size=(texts, size)), rng.normal(size=(users, labels, size))
    worth, lean, base = (rng.normal(size=shape) for shape in ((texts, labels), (users, labels), (labels,)))
    counts = rng.integers(1, 9, texts).astype(np.float64)
    found = _turned(np.arange(texts) * 3, counts, trait, taste, worth, lean, base)
    rows = [(t, u, label) for t in range(texts) for u in range(users) for label in range(labels)]
    text, user, label = np.array(rows).T
    wanted = [nll_oracle(logits_oracle(trait, taste, worth, lean, base, u, t), c) for t, u, c in rows]
    assert found.nll(Rows(text * 3, user, label)) == pytest.approx(np.array(wanted), rel=1e-6, abs=1e-6)
    assert found.weight == pytest.approx(counts / (counts + 4))
    for values, axis in (
        (found.worth, 1),
        (found.lean, 1),
        (found.lean, 0),
        (found.taste, 1),
        (found.taste, 0),
    ):
        assert values.sum(axis) == pytest.approx(0, abs=1e-6)


def test_traits_are_in_units_of_logits_the_strongest_first() -> None:
    rows, _ = judgements(0, 3.0)
    found = factorise(rows, USERS, 2, 3, 2.0, 0)
    flat = found.taste.reshape(-1, 3)
    assert flat.T @ flat / USERS == pytest.approx(np.eye(3), abs=1e-2)
    sizes = (found.weight[:, None] * found.trait**2).sum(0)
    assert list(sizes) == sorted(sizes, reverse=True)


def test_what_people_agree_on_is_found() -> None:
    rows, trait = judgements(1, 3.0)
    train, held = split(rows)
    found = found_factors(train, held, USERS, 2, 2, 0)
    assert found is not None
    assert abs(np.corrcoef(found.trait[:, 0], trait[found.text])[0, 1]) > 0.9
    first = collaborative_summaries(found)[:, 0]
    assert (first[::2] > 0).all() != (first[1::2] > 0).all()  # who is of which taste
    assert found.nll(held).mean() < 0.5 < np.log(2)


@pytest.mark.parametrize("why", ["nobody agrees", "no text twice", "one user", "nothing held out"])
def test_nothing_is_found_where_there_is_nothing(why: str) -> None:
    rows, _ = judgements(2, 0.0 if why == "nobody agrees" else 3.0)
    train, held = split(rows)
    users = USERS
    if why == "no text twice":
        train = Rows(np.arange(len(train)), train.user, train.label)
        assert not has_overlap(train)
    if why == "one user":
        train, held = (Rows(r.text, np.zeros_like(r.user), r.label) for r in (train, held))
        users = 1
    if why == "nothing held out":
        held = held.take(np.arange(0))
    assert found_factors(train, held, users, 2, 2, 0) is None


def test_the_same_seed_gives_the_same_bits() -> None:
    rows, _ = judgements(3, 2.0)
    first, again, other = (factorise(rows, USERS, 2, 2, 2.0, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(getattr(first, f.name), getattr(again, f.name)) for f in fields(Factors))
    assert not np.array_equal(first.trait, other.trait)


def test_the_trait_head_against_a_literal_program() -> None:
    rows, _ = judgements(4, 2.0, each=8)
    factors = factorise(rows, USERS, 2, 2, 2.0, 0)
    head = TraitHead(factors, 5, TEXTS + 7, torch.Generator().manual_seed(0))
    rng = generator(0, 0, "", "embeddings")
    embedding, text = rng.normal(size=(12, 5)), rng.integers(0, TEXTS + 7, 12)
    text[0] = TEXTS + 3  # nobody judged it
    both = np.concatenate([factors.trait, factors.worth], axis=1)
    largest = max(np.average(both[:, column] ** 2, weights=factors.weight) for column in range(4))
    target = {int(t): both[at] / largest**0.5 for at, t in enumerate(factors.text)}
    weight = {int(t): float(factors.weight[at]) for at, t in enumerate(factors.text)}
    matrix, offset = (value.detach().double().numpy() for value in (head.matrix, head.offset))
    wanted = trait_loss_oracle(embedding, matrix, offset, target, weight, text)
    found = head.loss(torch.tensor(embedding).float(), text).item()
    assert found == pytest.approx(wanted, rel=1e-5)
