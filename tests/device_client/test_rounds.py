"""A device's part in a round, on softmax regression, against a slow and obvious program."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.linear_engine import LABELS, PRIVATE, SHAPES, WORDS, linear_engine

from umbel.device_client.learning import encode_examples, learn_profiles
from umbel.device_client.rounds import evaluate, minibatches, shared_change, train
from umbel.device_client.simulated import SimulatedHome
from umbel.shared.errors import ExampleError
from umbel.shared.examples import Example, write_examples
from umbel.shared.messages import LocalSettings, RoundTask, l2_norm
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import generator

ENGINE = linear_engine()
WIDE = LocalSettings(local_steps=3, local_rate=0.5, batch_size=4, clip=1e6, profile_dropout=0.0)


def some_examples(count: int, purpose: str = "examples") -> list[Example]:
    rng = generator(1, 0, "ann", purpose)
    texts = [" ".join(WORDS[i] for i in rng.integers(len(WORDS), size=3)) for _ in range(count)]
    return [Example("ann", text, LABELS["good" in text.split()]) for text in texts]


@pytest.fixture
def home(tmp_path: Path) -> SimulatedHome:
    write_examples(tmp_path / "examples.jsonl", some_examples(10))
    write_examples(tmp_path / "heldout.jsonl", some_examples(7, "heldout"))
    return SimulatedHome(tmp_path)


def task(settings: LocalSettings = WIDE, **changes: Any) -> RoundTask:
    rng = generator(2, 0, "", "values")
    values = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in SHAPES.items()}
    usual = RoundTask(ENGINE.release.release_id, 2, 5, "train", settings, values)
    return replace(usual, **changes)


def slow_change(
    examples: list[Example],
    batches: list[npt.NDArray[np.int64]],
    bias: npt.NDArray[np.float32],
    ask: RoundTask,
) -> dict[str, npt.NDArray[np.float64]]:
    """SGD on the mean nll of each batch, one example after another, in float64."""
    W = ask.arrays["head.weight"].astype(np.float64)
    b = ask.arrays["head.bias"].astype(np.float64)
    for batch in batches:
        step_W, step_b = np.zeros_like(W), np.zeros_like(b)
        for index in batch:
            x = np.array([examples[index].text.split().count(word) for word in WORDS], np.float64)
            chances = np.exp(W @ x + b + bias)
            error = chances / chances.sum() - np.eye(2)[LABELS.index(examples[index].label)]
            step_W += np.outer(error, x) / len(batch)
            step_b += error / len(batch)
        W, b = W - ask.settings.local_rate * step_W, b - ask.settings.local_rate * step_b
    return {"head.weight": W - ask.arrays["head.weight"], "head.bias": b - ask.arrays["head.bias"]}


def test_the_change_is_that_of_plain_sgd_with_the_profile_frozen(home: SimulatedHome) -> None:
    # float32 against float64: 3 steps leave about 1e-7.
    contribution = train(ENGINE, home, 4, task())
    profile = home.load_profile(ENGINE.release)
    assert profile is not None
    expected = slow_change(some_examples(10), minibatches(10, 4, 3, 4, task()), profile[PRIVATE][0], task())
    for name, change in contribution.change.items():
        np.testing.assert_allclose(change, expected[name], rtol=0, atol=1e-6)
    assert contribution.examples == 10
    assert contribution.round == 2


def test_the_profile_that_is_kept_is_learned_under_the_values_of_the_round(home: SimulatedHome) -> None:
    train(ENGINE, home, 4, task())
    support = encode_examples(ENGINE, some_examples(10))
    expected = learn_profiles(ENGINE, [support], ENGINE.release.manifest.recipe, shared=task().arrays)
    kept = home.load_profile(ENGINE.release)
    assert kept is not None
    np.testing.assert_array_equal(kept[PRIVATE], expected[PRIVATE])
    assert np.abs(kept[PRIVATE]).max() > 0
    other = learn_profiles(ENGINE, [support], ENGINE.release.manifest.recipe, shared=ENGINE.trainables())
    assert not np.array_equal(other[PRIVATE], kept[PRIVATE])


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_round_starts_from_what_onboarding_writes(home: SimulatedHome, share: float) -> None:
    """Labels count a tenth each, times the recipe's share, as far as it is kept in float16."""
    engine = linear_engine(onboards=True)
    recipe = LearningRecipe(steps=2, start=share)
    train(engine, home, 4, task(replace(WIDE, recipe=recipe)))
    kept = home.load_profile(engine.release)
    support = encode_examples(engine, some_examples(10))
    start = share * 0.1 * np.bincount(support.labels, minlength=2).astype(np.float32)[None]
    wanted = learn_profiles(engine, [support], recipe, start={PRIVATE: start}, shared=task().arrays)
    assert kept is not None
    np.testing.assert_allclose(kept[PRIVATE], wanted[PRIVATE], rtol=0, atol=1e-6)


def test_a_round_is_the_same_whatever_was_stored_before(home: SimulatedHome) -> None:
    first = train(ENGINE, home, 4, task())
    home.save_profile(ENGINE.release, {PRIVATE: np.array([[9.0, -9.0]], np.float32)})
    again = train(ENGINE, home, 4, task())
    for name in SHAPES:
        np.testing.assert_array_equal(first.change[name], again.change[name])


@pytest.mark.parametrize("elsewhere", [task(seed=6), task(round=3)])
def test_another_seed_or_round_takes_other_minibatches(home: SimulatedHome, elsewhere: RoundTask) -> None:
    first, other = train(ENGINE, home, 4, task()), train(ENGINE, home, 4, elsewhere)
    assert not np.array_equal(first.change["head.bias"], other.change["head.bias"])


def test_another_device_takes_other_minibatches() -> None:
    assert not np.array_equal(minibatches(10, 4, 1, 4, task()), minibatches(10, 4, 1, 5, task()))


def test_the_change_is_clipped_and_the_count_capped(home: SimulatedHome) -> None:
    free = train(ENGINE, home, 4, task())
    assert l2_norm(free.change.values()) > 0.05
    tight = train(ENGINE, home, 4, task(replace(WIDE, clip=0.05, example_cap=3)))
    assert l2_norm(tight.change.values()) == pytest.approx(0.05, rel=1e-5)
    assert tight.examples == 3


def test_whether_the_change_was_within_the_clip_is_told_if_it_is_asked(home: SimulatedHome) -> None:
    norm = l2_norm(train(ENGINE, home, 4, task()).change.values())
    asked = replace(WIDE, tell_within=True)
    assert train(ENGINE, home, 4, task()).within is None
    assert train(ENGINE, home, 4, task(replace(asked, clip=1.01 * norm))).within is True
    assert train(ENGINE, home, 4, task(replace(asked, clip=0.99 * norm))).within is False


def test_profile_dropout_trains_what_people_without_a_profile_get() -> None:
    support = encode_examples(ENGINE, some_examples(10))
    profile = {PRIVATE: np.array([[1.0, -1.0]], np.float32)}
    nobody = {PRIVATE: np.zeros((1, 2), np.float32)}
    always, never, half = (task(replace(WIDE, profile_dropout=rate)) for rate in (1.0, 0.0, 0.5))
    dropped = shared_change(ENGINE, support, profile, 4, always)
    generic = shared_change(ENGINE, support, nobody, 4, never)
    np.testing.assert_array_equal(dropped["head.bias"], generic["head.bias"])
    mixed = shared_change(ENGINE, support, profile, 4, half)["head.bias"][1]
    whole = shared_change(ENGINE, support, profile, 4, never)["head.bias"][1]
    assert min(generic["head.bias"][1], whole) < mixed < max(generic["head.bias"][1], whole)


def test_a_round_can_bring_its_own_recipe(home: SimulatedHome) -> None:
    train(ENGINE, home, 4, task(replace(WIDE, recipe=LearningRecipe(steps=0))))
    kept = home.load_profile(ENGINE.release)
    assert kept is not None
    np.testing.assert_array_equal(kept[PRIVATE], np.zeros((1, 2)))


def test_an_evaluation_counts_and_stores_nothing(home: SimulatedHome) -> None:
    ask = task(stage="evaluate")
    before = sorted(path.name for path in home.folder.iterdir())
    reply = evaluate(ENGINE, home, ask)
    assert sorted(path.name for path in home.folder.iterdir()) == before
    support = encode_examples(ENGINE, some_examples(10))
    profile = learn_profiles(ENGINE, [support], ENGINE.release.manifest.recipe, shared=ask.arrays)
    correct = 0
    for example in some_examples(7, "heldout"):
        tokens = ENGINE.encode([example.text])
        logits = ENGINE.predict(tokens, np.zeros(1, np.int64), profile, ask.arrays)
        correct += LABELS[int(logits[0].argmax())] == example.label
    assert (reply.correct, reply.total) == (correct, 7)
    assert 0 < correct < 7  # so that neither constant would pass


def test_a_home_without_heldout_examples_cannot_be_evaluated(home: SimulatedHome) -> None:
    (home.folder / "heldout.jsonl").unlink()
    with pytest.raises(ExampleError, match="no held-out examples"):
        evaluate(ENGINE, home, task(stage="evaluate"))


def test_a_label_that_the_release_lacks_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    write_examples(tmp_path / "examples.jsonl", [Example("ann", "good film", "maybe")])
    home = SimulatedHome(tmp_path)
    with pytest.raises(ExampleError):
        train(ENGINE, home, 4, task())
    assert home.load_profile(ENGINE.release) is None


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 9), st.integers(0, 3))
def test_minibatches_are_passes_over_all_examples(count: int, size: int, steps: int, client: int) -> None:
    batches = minibatches(count, size, steps, client, task())
    width = min(size, count)
    assert [len(batch) for batch in batches] == [width] * steps
    per_pass = count // width
    for start in range(0, steps, per_pass):
        numbers = [int(n) for batch in batches[start : start + per_pass] for n in batch]
        assert len(set(numbers)) == len(numbers)
        assert set(numbers) <= set(range(count))
