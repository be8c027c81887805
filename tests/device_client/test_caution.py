"""A profile is used as far as it helps on examples held out: as a slow twin finds, person by person."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device_client.test_learning import ENGINE, shared, support
from tests.linear_engine import PRIVATE
from tests.oracles.caution import strength_oracle

from umbel.device_client.caution import cautious_profiles
from umbel.device_client.learning import Encoded, learn_exactly, learn_profiles, predict_logits
from umbel.shared.bias import softmax
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import generator
from umbel.shared.strength import STRENGTHS, expected_strength
from umbel.shared.text import TokenBatch

RECIPE = LearningRecipe(steps=6, folds=3, trust=1.0)


def slow_strength(own: Encoded, recipe: LearningRecipe) -> float:
    def learn(rows: list[int]) -> np.ndarray:
        return np.asarray(learn_exactly(ENGINE, [own.rows(rows)], recipe, shared=shared())[PRIVATE], float)

    def nll(profile: np.ndarray, row: int) -> float:
        kept = profile.astype(np.float16).astype(np.float32)
        part = own.rows([row])
        logits = predict_logits(ENGINE, part.tokens, {PRIVATE: kept}, shared=shared())
        return float(-np.log(max(softmax(logits)[0, part.labels[0]], 1e-12)))

    texts = [bytes(ids[mask > 0]) for ids, mask in zip(own.tokens.ids, own.tokens.mask, strict=True)]
    return strength_oracle(texts, recipe.folds, recipe.trust, STRENGTHS, learn, nll)


@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=3),
    folds=st.integers(0, 5),
    trust=st.sampled_from([-3.0, 0.0, 2.0]),
)
@settings(max_examples=25, deadline=None)
def test_strengths_and_profiles_are_those_of_the_slow_twin(
    counts: list[int], folds: int, trust: float
) -> None:
    recipe = replace(RECIPE, folds=folds, trust=trust)
    parts = [support(user, max(count, 1)).first(count) for user, count in enumerate(counts)]
    profile, strengths = cautious_profiles(ENGINE, parts, recipe, shared=shared())
    exact = learn_exactly(ENGINE, parts, recipe, shared=shared())[PRIVATE]
    for user, part in enumerate(parts):
        wanted = slow_strength(part, recipe)
        assert strengths[user] == pytest.approx(wanted, abs=2e-3)  # a float16 may round either way
        scaled = (exact[user] * strengths[user]).astype(np.float16).astype(np.float32)
        assert np.array_equal(profile[PRIVATE][user], scaled)


def test_copies_of_an_example_are_no_evidence_and_order_does_not_matter() -> None:
    own = support(0, 4)
    recipe = replace(RECIPE, folds=4)
    order = generator(0, 0, "", "test").permutation(12)
    copies, turned = own.rows([0, 1, 2, 3] * 3), own.rows(np.tile([0, 1, 2, 3], 3)[order])
    _, strengths = cautious_profiles(
        ENGINE, [copies, turned, own.rows([3, 1, 0, 2]), own], recipe, shared=shared()
    )
    assert strengths[0] == pytest.approx(strengths[1], abs=1e-6)
    assert strengths[2] == pytest.approx(strengths[3], abs=1e-6)
    one = own.rows([0])
    _, alone = cautious_profiles(ENGINE, [one, one.rows([0, 0, 0])], recipe, shared=shared())
    assert (
        alone.tolist()
        == [np.float32(expected_strength(np.zeros(len(STRENGTHS), np.float32), recipe.trust))] * 2
    )


def test_without_folds_everything_is_used() -> None:
    parts = [support(0, 5), support(1, 4)]
    recipe = replace(RECIPE, folds=0)
    profile, strengths = cautious_profiles(ENGINE, parts, recipe, shared=shared())
    assert strengths.tolist() == [1.0, 1.0]
    plain = learn_profiles(ENGINE, parts, recipe, shared=shared())
    assert np.array_equal(profile[PRIVATE], plain[PRIVATE])


def test_what_helps_is_used_and_what_does_not_is_not() -> None:
    """One person says yes to every text, the other says yes and no by turns."""
    ids = np.array([[1 + n % 4, 1 + n // 4] for n in range(12)], np.int64)
    tokens = TokenBatch(ids, np.ones_like(ids))
    clear, noise = Encoded(tokens, np.ones(12, np.int64)), Encoded(tokens, np.arange(12) % 2)
    values = {name: np.zeros_like(array) for name, array in shared().items()}
    eager = LearningRecipe(steps=60, learning_rate=0.5, prior_strength=1e-3, folds=12, trust=0.0)
    profile, strengths = cautious_profiles(ENGINE, [clear, noise], eager, shared=values)
    assert strengths[0] > 0.6  # already a quarter of it answers nearly surely, so they all weigh alike
    assert strengths[1] < 0.45
    assert np.abs(profile[PRIVATE][1]).max() < np.abs(profile[PRIVATE][0]).max()
