"""Random banks: the bits that a seed stands for, their spread, and that parts are independent."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.shared.bank import random_bank


def test_the_same_bits_on_every_machine() -> None:
    """The digest was made with numpy 2 on x86-64; the values are also made here from sha256 and Philox."""
    found = random_bank(7, "layer 3 up", (5, 4, 3), 0.5)
    assert found.dtype == np.float32
    assert hashlib.sha256(found.astype("<f4").tobytes()).hexdigest() == (
        "27db946a70facbd488260afd6ab00da3bf2e4f90c9966c1752cb8b53684eed78"
    )
    # The place is "seed|round|length of user|user|purpose", and the key is the upper half of its sha256.
    digest = int.from_bytes(hashlib.sha256(b"7|0|0||bank layer 3 up").digest(), "big")
    words = np.random.Philox(key=digest >> 128).random_raw(8)
    assert isinstance(words, np.ndarray)
    levels = [
        byte - 256 if byte > 127 else byte for word in words for byte in int(word).to_bytes(8, "little")
    ]
    step = np.float32(0.5 / np.sqrt((256**2 - 1) / 3))
    expected = [np.float32(2 * level + 1) * step for level in levels[:60]]
    np.testing.assert_array_equal(found.ravel(), np.array(expected, np.float32))


def test_spread() -> None:
    """Of 38,400 values: mean and deviation within 4 standard errors, all of the 256 levels there."""
    values = random_bank(0, "x", (100, 24, 16), 0.02) / 0.02
    assert abs(values.mean()) < 4 / 38_400**0.5
    assert np.std(values) == pytest.approx(1, abs=4 * (0.4 / 38_400) ** 0.5)  # (kurtosis 1.8 - 1) / 4 = 0.2
    assert len(np.unique(values)) == 256
    assert values.min() == -values.max()


@given(
    seeds=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)),
    parts=st.tuples(st.text(max_size=5), st.text(max_size=5)),
)
@settings(max_examples=50, deadline=None)
def test_another_seed_or_part_gives_other_values(seeds: tuple[int, int], parts: tuple[str, str]) -> None:
    one, two = (random_bank(seed, part, (8, 8), 1.0) for seed, part in zip(seeds, parts, strict=True))
    assert np.array_equal(one, two) == (seeds[0] == seeds[1] and parts[0] == parts[1])


@given(count=st.integers(1, 40), longer=st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_a_longer_part_begins_with_the_shorter_one(count: int, longer: int) -> None:
    """So a bank can grow: the adapters that were there stay as they are."""
    np.testing.assert_array_equal(
        random_bank(0, "x", (count + longer,), 1.0)[:count], random_bank(0, "x", (count,), 1.0)
    )
