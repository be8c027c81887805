"""What is trained on, held out and kept for calibration: every example once, by seed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coordinator.conftest import tiny_tokenizer

from umbel.coordinator.config import TrainingConfig
from umbel.coordinator.training.data import TrainingData, epoch_batches, prepare
from umbel.shared.examples import Example
from umbel.shared.text import TextEncoder

LABELS = ("no", "yes")


def config(**changes: float) -> TrainingConfig:
    return TrainingConfig.model_validate(changes)


def data_of(counts: list[int], seed: int = 0, **changes: float) -> TrainingData:
    """Returns what is made of people with so many examples; every text says whose it is by its length."""
    examples = [
        Example(f"u{user:02}", "good " * user + f"w{n}", LABELS[n % 2])
        for user, count in enumerate(counts)
        for n in range(count)
    ]
    encoder = TextEncoder(tiny_tokenizer().to_str().encode(), 16)
    return prepare(examples, LABELS, encoder, config(**changes), seed)


@given(counts=st.lists(st.integers(2, 9), min_size=3, max_size=7), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_example_is_in_exactly_one_part(counts: list[int], seed: int) -> None:
    data = data_of(counts, seed, validation_share=0.3)
    parts = [data.train, data.validation, *data.calibration]
    texts = np.concatenate([part.text for part in parts])
    assert sorted(texts) == list(range(sum(counts)))
    assert len(data.calibration) >= 1
    assert len(data.users) + len(data.calibration) == len(counts)


@given(counts=st.lists(st.integers(1, 9), max_size=5), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_each_user_keeps_one_example_to_train_on_and_holds_one_out(counts: list[int], seed: int) -> None:
    counts = [*counts, 2, 2]  # one user is kept for calibration, so one of these can hold something out
    data = data_of(counts, seed)
    for number, user in enumerate(data.users):
        count = counts[int(user[1:])]
        held = int((data.validation.user == number).sum())
        assert int((data.train.user == number).sum()) + held == count
        assert held == min(max(1, round(0.1 * count)), count - 1)


def test_the_same_seed_gives_the_same_split() -> None:
    first, again, other = (data_of([8] * 6, seed) for seed in (1, 1, 2))
    assert first.users == again.users
    assert np.array_equal(first.train.text, again.train.text)
    assert not np.array_equal(first.train.text, other.train.text)


def test_one_text_is_encoded_once_however_often_it_is_judged() -> None:
    examples = [Example(user, "good film", "yes") for user in "abcdef" for _ in range(2)]
    encoder = TextEncoder(tiny_tokenizer().to_str().encode(), 16)
    data = prepare(examples, LABELS, encoder, config(), 0)
    assert len(data.tokens) == 1


@given(size=st.integers(1, 7), cap=st.integers(1, 6), epoch=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_an_epoch_shows_each_example_once_and_no_user_too_often(size: int, cap: int, epoch: int) -> None:
    data = data_of([3, 9, 5, 7], calibration_share=0.0)
    settings_ = config(batch_size=size, examples_per_user=cap)
    batches = epoch_batches(data, settings_, 0, epoch)
    rows = np.concatenate(batches)
    assert len(set(rows.tolist())) == len(rows)
    assert max(len(batch) for batch in batches) <= size
    for user in range(len(data.users)):
        available = int((data.train.user == user).sum())
        assert int((data.train.user[rows] == user).sum()) == min(cap, available)
    again = epoch_batches(data, settings_, 0, epoch)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_calibration_users_are_never_trained_on() -> None:
    data = data_of([6] * 10, calibration_share=0.3)
    assert len(data.calibration) == 3
    kept = {int(text) for rows in data.calibration for text in rows.text}
    assert not kept & {int(text) for text in np.concatenate([data.train.text, data.validation.text])}
