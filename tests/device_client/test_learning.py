"""Few-shot learning on softmax regression: each user alone, from their own examples as stored."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.linear_engine import LABELS, PRIVATE, SHAPES, WORDS, linear_engine
from tests.oracles.learning import bias_oracle

from umbel.device_client import learning
from umbel.device_client.engine import Engine
from umbel.device_client.learning import (
    Encoded,
    encode_examples,
    learn_profiles,
    predict_logits,
)
from umbel.shared.errors import ExampleError, ProfileError
from umbel.shared.examples import Example
from umbel.shared.profile import FloatArray, ProfileSpec, TensorSpec
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Release
from umbel.shared.rng import generator
from umbel.shared.text import TokenBatch, join

ENGINE = linear_engine()
LONG = LearningRecipe(steps=800, learning_rate=0.1, prior_strength=0.5)


def shared(seed: int = 0) -> dict[str, FloatArray]:
    rng = generator(seed, 0, "", "values")
    return {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in SHAPES.items()}


def support(user: int, count: int) -> Encoded:
    rng = generator(0, 0, str(user), "support")
    rows = [
        Example(str(user), " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=3)), LABELS[int(label)])
        for label in rng.random(count) < (0.9 if user % 2 else 0.2)
    ]
    return encode_examples(ENGINE, rows)


@pytest.mark.parametrize("count", [1, 4, 16])
def test_learning_finds_the_optimum(count: int) -> None:
    """The private tensor is a bias per label here, so its optimum is that of the baseline's oracle."""
    values, own = shared(), support(1, count)
    logits = predict_logits(ENGINE, own.tokens, ENGINE.release.manifest.profile.zeros(), shared=values)
    found = learn_profiles(ENGINE, [own], LONG, shared=values)[PRIVATE][0]
    assert found == pytest.approx(bias_oracle(logits, own.labels, 0.5), abs=2e-3)  # float16 rounds at 1e-3


@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_users_in_one_batch_learn_what_they_learn_alone(counts: list[int]) -> None:
    values = shared()
    parts = [support(user, max(count, 1)).first(count) for user, count in enumerate(counts)]
    together = learn_profiles(ENGINE, parts, LearningRecipe(), shared=values)[PRIVATE]
    assert together.shape == (len(counts), 2)
    for user, part in enumerate(parts):
        alone = learn_profiles(ENGINE, [part], LearningRecipe(), shared=values)[PRIVATE][0]
        assert together[user] == pytest.approx(alone, abs=1e-3)  # one unit of float16


def test_users_without_examples_keep_exactly_what_they_started_from() -> None:
    start = {PRIVATE: np.array([[1 / 3, 2.0], [1 / 3, 2.0]], np.float32)}  # a third is no float16
    parts = [support(0, 4), support(1, 1).first(0)]
    found = learn_profiles(ENGINE, parts, LearningRecipe(), start=start, shared=shared())[PRIVATE]
    assert found[1].tolist() == start[PRIVATE][1].tolist()
    assert found[0].tolist() != start[PRIVATE][0].tolist()
    none = [support(1, 1).first(0)]
    assert learn_profiles(ENGINE, none, LearningRecipe(), shared=shared())[PRIVATE].tolist() == [[0.0, 0.0]]


def test_the_prior_pulls_to_the_start() -> None:
    start = {PRIVATE: np.array([[0.5, -0.5]], np.float32)}
    recipe = replace(LONG, prior_strength=1e5, learning_rate=1e-4)
    found = learn_profiles(ENGINE, [support(0, 8)], recipe, start=start, shared=shared())
    assert found[PRIVATE] == pytest.approx(start[PRIVATE], abs=1e-3)


def test_a_profile_is_rounded_to_what_is_stored() -> None:
    found = learn_profiles(ENGINE, [support(0, 8)], LearningRecipe(), shared=shared())[PRIVATE]
    assert found.dtype == np.float32
    assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
    exact = with_profile(TensorSpec(PRIVATE, (2,), "float32"))
    thirds = {PRIVATE: np.full((1, 2), 1 / 3, np.float32)}
    assert spec_of(exact).rounded(thirds)[PRIVATE][0, 0] == np.float32(1 / 3)
    assert spec_of(ENGINE).rounded(thirds)[PRIVATE][0, 0] == np.float16(1 / 3)


def test_what_is_stored_as_bits_is_rounded_to_bits_user_by_user() -> None:
    bits = with_profile(TensorSpec(PRIVATE, (2,), "top:1"))
    values = np.array([[0.1, 0.2], [3.0, -3.0], [0.0, 0.0]], np.float32)
    assert spec_of(bits).rounded({PRIVATE: values})[PRIVATE].tolist() == [[0, 1], [1, 0], [0, 0]]
    found = learn_profiles(bits, [support(0, 4), support(1, 4)], LearningRecipe(), shared=shared())[PRIVATE]
    assert found.dtype == np.float32
    assert sorted(found[0].tolist()) == sorted(found[1].tolist()) == [0, 1]


def test_a_dead_zone_rounds_what_is_not_clear_to_nothing() -> None:
    bits = with_profile(TensorSpec(PRIVATE, (2,), "top:1@0.25"))
    values = np.array([[0.1, 0.2], [3.0, -3.0], [-0.3, 0.2], [0.25, 0.2]], np.float32)
    assert spec_of(bits).rounded({PRIVATE: values})[PRIVATE].tolist() == [[0, 0], [1, 0], [0, 1], [1, 0]]


@pytest.mark.parametrize("storage", ["float16", "top:1", "top:1@0.25"])
def test_values_that_are_not_finite_are_found_before_they_are_bits(storage: str) -> None:
    engine = with_profile(TensorSpec(PRIVATE, (2,), storage))
    start = {PRIVATE: np.array([[np.inf, 0.0]], np.float32)}
    with pytest.raises(ProfileError, match="did not converge"):
        learn_profiles(engine, [support(0, 4)], LearningRecipe(), start=start, shared=shared())


def spec_of(engine: Engine) -> ProfileSpec:
    return engine.release.manifest.profile


def with_profile(spec: TensorSpec) -> Engine:
    engine: Any = linear_engine()
    release = engine.release
    manifest = replace(release.manifest, profile=ProfileSpec((spec,)))
    engine.release = Release(release.folder, manifest, release.release_id)
    found: Engine = engine
    return found


def test_a_profile_that_runs_away_is_one_error_without_numbers() -> None:
    """float16 ends at 65,504, and one label's bias goes up by the rate."""
    recipe = LearningRecipe(steps=1, learning_rate=100.0, prior_strength=0.0)
    start = {PRIVATE: np.full((1, 2), 65_500, np.float32)}
    with pytest.raises(ProfileError) as caught:
        learn_profiles(ENGINE, [support(0, 4)], recipe, start=start, shared=shared())
    assert list(caught.value.problems) == [f"{PRIVATE}: holds values that are not finite"]


def test_steps_are_told() -> None:
    told: list[int] = []
    learn_profiles(
        ENGINE, [support(0, 2)], LearningRecipe(steps=3), shared=shared(), on_step=lambda n, _: told.append(n)
    )
    assert told == [1, 2, 3]


def test_predictions_in_batches_are_those_in_one_go() -> None:
    own, values = support(1, 11), shared()
    profile = {PRIVATE: np.array([[0.0, 0.0], [1.0, -1.0]], np.float32)}
    owner = np.arange(11) % 2
    one = predict_logits(ENGINE, own.tokens, profile, owner=owner, shared=values)
    for size in (1, 4, 11, 100):
        found = predict_logits(ENGINE, own.tokens, profile, owner=owner, shared=values, batch_size=size)
        assert np.array_equal(found, one)
    assert predict_logits(ENGINE, own.tokens.rows([]), profile, shared=values).shape == (0, 2)
    assert np.array_equal(
        predict_logits(ENGINE, own.tokens, profile, shared=values)[owner == 0], one[owner == 0]
    )


def test_unknown_labels_are_told_by_number_only() -> None:
    rows = [Example("ann", "good film", label) for label in ("yes", "a secret", "no", "another secret")]
    with pytest.raises(ExampleError) as caught:
        encode_examples(ENGINE, rows)
    assert list(caught.value.problems) == [
        "example 2: label is not one of the release's",
        "example 4: label is not one of the release's",
    ]
    assert caught.value.hint == "Its labels are: no, yes."
    assert "secret" not in str(caught.value)


def test_encoded_examples_can_be_cut_and_picked() -> None:
    own = support(0, 5)
    assert len(own) == 5
    assert len(own.first(3)) == 3
    assert len(own.first(9)) == 5
    assert own.rows([4, 0]).labels.tolist() == [own.labels[4], own.labels[0]]


@pytest.mark.full
def test_real_graphs_learn_users_together_as_alone(tiny_release: Release) -> None:
    engine = Engine(tiny_release)
    texts = ("good film", "bad film", "a slow book", "we like the tender book", "not very good")
    rows = [Example("", text, ("no", "yes")[n % 2]) for n, text in enumerate(texts)]
    parts = [encode_examples(engine, part) for part in (rows[:1], rows[1:], rows)]
    recipe = LearningRecipe(steps=8)
    together = learn_profiles(engine, parts, recipe)["plora.user"]
    alone = np.concatenate([learn_profiles(engine, [part], recipe)["plora.user"] for part in parts])
    assert np.linalg.norm(together) > 0.1
    assert together == pytest.approx(alone, abs=1e-3)  # one unit of float16


class Watched:
    """The linear engine, which notes the rows and the width of every graph run."""

    def __init__(self) -> None:
        self._engine: Any = linear_engine()
        self.runs: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def learn(self, tokens: TokenBatch, *rest: Any) -> Any:
        self.runs.append(tokens.ids.shape)
        return self._engine.learn(tokens, *rest)


def spread(counts: list[int]) -> list[Encoded]:
    """Users with examples of 1 to 8 words."""
    parts = []
    for user, count in enumerate(counts):
        rng = generator(1, 0, str(user), "spread")
        texts = [[WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(1, 9))] for _ in range(count)]
        labels = [LABELS[i] for i in rng.integers(2, size=count)]
        rows = [Example(str(user), " ".join(t), label) for t, label in zip(texts, labels, strict=True)]
        parts.append(encode_examples(ENGINE, rows))
    return parts


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any))
@settings(max_examples=30, deadline=None)
def test_gradients_in_pieces_are_those_in_one(counts: list[int]) -> None:
    """Every example once, and the sum of the pieces' gradients; 1e-6 of float32 sums in another order."""
    parts, values = spread(counts), shared()
    profile = {PRIVATE: generator(2, 0, "", "profile").normal(0, 1, (len(counts), 2)).astype(np.float32)}
    owner = np.repeat(np.arange(len(counts)), counts)
    pieces = learning._pieces(learning.together(parts), owner, None)
    tokens, labels = join([part.tokens for part in parts]), np.concatenate([part.labels for part in parts])
    nll, whole = ENGINE.learn(tokens, labels, owner, profile, values)
    found = [ENGINE.learn(own.tokens, own.labels, who, profile, values) for own, who in pieces]
    assert max(len(piece[0]) for piece in pieces) <= 32
    assert sorted(np.concatenate([part for part, _ in found])) == pytest.approx(sorted(nll), rel=1e-6)
    total = np.sum([part[PRIVATE] for _, part in found], axis=0)
    assert np.linalg.norm(total - whole[PRIVATE]) <= 1e-6 * max(float(np.abs(whole[PRIVATE]).sum()), 1.0)


def test_a_graph_run_holds_32_rows_at_most_and_texts_of_like_length_share_one() -> None:
    """A step's memory does not grow with the examples; short texts are not padded to the longest of all."""
    engine: Any = Watched()
    learn_profiles(engine, spread([33, 40, 0, 30]), LearningRecipe(steps=2), shared=shared())
    rows, widths = zip(*engine.runs, strict=True)
    assert rows == (32, 32, 32, 7) * 2
    assert list(widths[:4]) == sorted(widths[:4])
    assert widths[0] < widths[3]


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_size_of_pieces_changes_no_profile(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    parts, values = spread([33, 5]), shared()
    wanted = learn_profiles(ENGINE, parts, LearningRecipe(), shared=values)[PRIVATE]
    monkeypatch.setattr(learning, "_ROWS", rows)
    found = learn_profiles(ENGINE, parts, LearningRecipe(), shared=values)[PRIVATE]
    assert found == pytest.approx(wanted, abs=2e-3)  # two units of float16 at 1


def test_the_loss_that_is_told_is_the_mean_over_all_pieces() -> None:
    parts, values = spread([50]), shared()
    told: list[float] = []
    learn_profiles(
        ENGINE, parts, LearningRecipe(steps=1), shared=values, on_step=lambda _, nll: told.append(nll)
    )
    zeros = ENGINE.release.manifest.profile.zeros(1)
    nll, _ = ENGINE.learn(parts[0].tokens, parts[0].labels, np.zeros(50, np.int64), zeros, values)
    assert told == [pytest.approx(float(nll.mean()), rel=1e-6)]
