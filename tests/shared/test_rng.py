"""Randomness is a function of place: stable for ever, and unrelated between places."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.shared.rng import generator, integer_seed

_places = st.tuples(st.integers(), st.integers(0, 10**9), st.text(max_size=8), st.text(max_size=8))
PLACE = (7, 3, "ann", "dropout")
# What umbel.shared.rng._digest hashes for PLACE; written out, so that no change of it goes unnoticed.
DIGEST = int.from_bytes(hashlib.sha256(b"7|3|3|ann|dropout").digest(), "big")

GOLDEN_INTEGERS = [94, 403, 661, 5, 684]
GOLDEN_NORMAL = 0.3030754952413839
GOLDEN_SEED = 8300665401945431572


def test_numbers_that_must_never_change() -> None:
    """Philox keyed by the first 128 bits of the place's sha256; releases and results rest on these."""
    literal = np.random.Generator(np.random.Philox(key=DIGEST >> 128))
    found = generator(*PLACE).integers(0, 1000, 5)
    np.testing.assert_array_equal(found, literal.integers(0, 1000, 5))
    assert found.tolist() == GOLDEN_INTEGERS
    # numpy does not promise its distributions' bits; should one change, results change with it.
    assert generator(*PLACE).normal() == pytest.approx(GOLDEN_NORMAL, rel=1e-15)


def test_the_integer_seed_that_must_never_change() -> None:
    assert integer_seed(*PLACE) == DIGEST >> (256 - 63) == GOLDEN_SEED


@given(_places)
def test_the_same_place_gives_the_same_numbers(place: tuple[int, int, str, str]) -> None:
    assert generator(*place).bytes(16) == generator(*place).bytes(16)
    assert integer_seed(*place) == integer_seed(*place)
    assert 0 <= integer_seed(*place) < 2**63


@given(_places, _places)
def test_two_places_give_two_streams(one: tuple[int, int, str, str], two: tuple[int, int, str, str]) -> None:
    assert (generator(*one).bytes(16) == generator(*two).bytes(16)) == (one == two)
    assert (integer_seed(*one) == integer_seed(*two)) == (one == two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ((1, 2, "", "x"), (12, 0, "", "x")),
        ((1, 0, "a", "bc"), (1, 0, "ab", "c")),
        ((1, 0, "a|b", "c"), (1, 0, "a", "b|c")),
        ((1, 0, "3|ann", "x"), (1, 0, "ann", "x")),
        ((-1, 0, "a", "x"), (1, 0, "a", "x")),
    ],
)
def test_places_that_look_alike_when_joined(
    one: tuple[int, int, str, str], two: tuple[int, int, str, str]
) -> None:
    assert generator(*one).bytes(16) != generator(*two).bytes(16)


def test_streams_of_neighbouring_places_are_not_correlated() -> None:
    """200 streams of 2,000 normals: each pair's correlation is N(0, 1/2000); 6 sigma for 19,900 pairs."""
    streams = np.stack(
        [generator(0, n % 10, f"user {n // 10}", "noise").normal(size=2000) for n in range(200)]
    )
    correlations = np.asarray(np.corrcoef(streams))[np.triu_indices(200, 1)]
    assert np.abs(correlations).max() < 6 / 2000**0.5
    assert correlations.mean() == pytest.approx(0.0, abs=6 / (2000 * 19_900) ** 0.5)


def test_another_process_draws_the_same() -> None:
    """Also under another hash seed: Python's own hash() has no part in it."""
    program = f"from umbel.shared.rng import integer_seed; print(integer_seed(*{PLACE!r}))"
    for hash_seed in ("0", "1"):
        found = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        )
        assert int(found.stdout) == GOLDEN_SEED
