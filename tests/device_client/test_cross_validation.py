"""What held-out examples say of a profile: as a slow twin finds, fold by fold and example by example."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import random_examples
from tests.device_client.test_learning import ENGINE, shared, support
from tests.linear_engine import PRIVATE
from tests.oracles.held_out import held_out_oracle

from umbel.device_client.caution import CautiousLearning
from umbel.device_client.cross_validation import CrossValidation, cross_validated
from umbel.device_client.device import cross_validate, packed_learning
from umbel.device_client.held_out import HeldOut, text_folds
from umbel.device_client.learning import Encoded, learn_exactly, predict_logits
from umbel.device_client.own_learning import _worse_note
from umbel.shared.bias import softmax
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Release
from umbel.shared.strength import STRENGTHS

RECIPE = LearningRecipe(steps=6, learning_rate=0.5, prior_strength=0.1, folds=3, trust=1.0)


def measured(parts: list[Encoded], recipe: LearningRecipe) -> list[HeldOut | None]:
    learning = CautiousLearning(ENGINE, parts, recipe, shared=shared(), measured=True)
    while not learning.finished:
        learning.advance()
    return [learning.held_out(user) for user in range(len(parts))]


def slow(own: Encoded, folds: list[int], recipe: LearningRecipe) -> np.ndarray:
    def learn(rows: list[int]) -> np.ndarray:
        return np.asarray(learn_exactly(ENGINE, [own.rows(rows)], recipe, shared=shared())[PRIVATE], float)

    def answer(profile: np.ndarray, row: int) -> np.ndarray:
        kept = profile.astype(np.float16).astype(np.float32)
        logits = predict_logits(ENGINE, own.rows([row]).tokens, {PRIVATE: kept}, shared=shared())
        return np.asarray(softmax(logits)[0], float)

    strengths = STRENGTHS if recipe.folds >= 2 else (1.0,)
    return np.array(
        held_out_oracle(folds, recipe.trust, strengths, learn, answer, own.labels.tolist()), float
    )


def columns(found: HeldOut) -> np.ndarray:
    parts = (found.nll_generic, found.nll_personal, found.right_generic, found.right_personal)
    return np.stack([np.asarray(part, float) for part in parts], 1)


@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=3), folds=st.integers(2, 4))
@settings(max_examples=15, deadline=None)
def test_what_is_held_out_is_judged_as_the_slow_twin_judges_it(counts: list[int], folds: int) -> None:
    recipe = replace(RECIPE, folds=folds)
    parts = [support(user, count) for user, count in enumerate(counts)]
    for part, found in zip(parts, measured(parts, recipe), strict=True):
        texts = [bytes(ids[mask > 0]) for ids, mask in zip(part.tokens.ids, part.tokens.mask, strict=True)]
        known = sorted(set(texts))
        if len(known) < 2:
            assert found is None
            continue
        assert found is not None
        assert found.rows.tolist() == list(range(len(part)))
        number = [known.index(text) % min(folds, len(known)) for text in texts]
        np.testing.assert_allclose(columns(found), slow(part, number, recipe), atol=2e-3)  # a float16 rounds
        figures = found.figures()
        assert figures["examples"] == len(part)
        assert figures["nll_personal"] == pytest.approx(found.nll_personal.mean())


@given(
    folds=st.lists(st.integers(0, 3), min_size=8, max_size=8).filter(lambda own: len(set(own)) > 1),
    cautious=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_folds_may_be_given(folds: list[int], cautious: bool) -> None:
    """As whoever compares two releases gives them; without cross-validation all of a profile is judged."""
    recipe = replace(RECIPE, folds=3 if cautious else 0)
    own = support(1, 8)
    rows = np.arange(8)
    splits = [(0, rows[np.array(folds) != n], rows[np.array(folds) == n]) for n in sorted(set(folds))]
    validation = CrossValidation(ENGINE, [own], recipe, splits, shared=shared(), measured=True)
    while not validation.finished:
        validation.advance()
    found = validation.held_out(0)
    assert found is not None
    np.testing.assert_allclose(columns(found), slow(own, folds, recipe), atol=2e-3)


def test_one_fold_says_nothing_and_no_number_of_an_example_is_shown() -> None:
    assert cross_validated(ENGINE, support(0, 3).first(0), RECIPE, []) is None
    (found,) = measured([support(0, 5)], RECIPE)
    assert repr(found) == "HeldOut()"
    assert measured([support(0, 5)], replace(RECIPE, folds=0)) == [None]
    assert measured([support(0, 5).first(1)], RECIPE) == [None]


@pytest.mark.parametrize(
    ("strength", "personal", "noted"), [(0.4, 0.8, True), (0.4, 0.7, False), (0.0, 0.8, False)]
)
def test_a_profile_that_did_worse_and_is_used_is_noted(strength: float, personal: float, noted: bool) -> None:
    right = np.ones(2, bool)
    found = HeldOut(np.arange(2), np.full(2, 0.7), np.full(2, personal), right, right)
    assert bool(_worse_note(strength, found)) == noted
    assert _worse_note(strength, None) == ()


@given(st.lists(st.text(max_size=2), max_size=20), st.integers(0, 5))
def test_folds_by_text_are_of_texts_alone(texts: list[str], folds: int) -> None:
    found = text_folds(texts, folds)
    assert len(found) == len(texts)
    for text in texts:
        assert len({int(n) for n, own in zip(found, texts, strict=True) if own == text}) == 1
    wanted = max(min(folds, len(set(texts))), 1)
    assert set(found.tolist()) == set(range(wanted if texts else 0))
    assert text_folds(texts[::-1], folds).tolist() == found.tolist()[::-1]


@pytest.mark.full
def test_two_releases_are_compared_on_the_same_folds(
    embedded_release: Release, tiny_release: Release
) -> None:
    mine = random_examples(0, "me", 8)
    folds = text_folds([example.text for example in mine], 3)
    found = [cross_validate(release, mine, folds) for release in (embedded_release, tiny_release)]
    for own in found:
        assert own is not None
        assert own.rows.tolist() == list(range(8))
        assert not np.array_equal(own.nll_generic, own.nll_personal)
    _, learned = packed_learning(embedded_release, mine)
    assert learned.held_out is not None
    assert learned.held_out.figures()["examples"] == 8
