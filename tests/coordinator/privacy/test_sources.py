"""Chance from a key: the right distribution, a function of place, and of the key."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from umbel.coordinator.federation.privacy.sources import KEY, KeySource, SeedSource, Source, kept_key
from umbel.shared.errors import ConfigError

SOURCES: list[Source] = [KeySource(bytes(range(32))), SeedSource(3)]


@pytest.mark.parametrize("source", SOURCES)
def test_normal_numbers_are_normal_and_independent(source: Source) -> None:
    """400,000 numbers of a fixed place: Kolmogorov-Smirnov, tails, and neighbours that do not correlate."""
    found = source.normal(1, "noise", "x", 400_000)
    assert stats.kstest(found, "norm").pvalue > 0.001
    beyond = int((np.abs(found) > 3).sum())
    assert abs(beyond - 400_000 * 2 * stats.norm.sf(3)) < 5 * beyond**0.5
    halves = np.corrcoef(found[:200_000], found[200_000:])[0, 1]
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01
    assert abs(halves) < 0.01


@pytest.mark.parametrize("source", SOURCES)
def test_uniform_numbers_are_uniform(source: Source) -> None:
    found = np.concatenate([source.uniform(2, "sample", str(subject), 200) for subject in range(100)])
    assert len(set(found.tolist())) == 20_000
    assert stats.kstest(found, "uniform").pvalue > 0.001
    assert min(found) >= 0.0
    assert max(found) < 1.0


@pytest.mark.parametrize("size", [0, 1, 2, 7, 131_072, 131_073])
def test_any_size_has_its_numbers_and_the_same_each_time(size: int) -> None:
    source = SOURCES[0]
    found = source.normal(1, "noise", "x", size)
    assert found.shape == (size,)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, source.normal(1, "noise", "x", size))


def test_another_round_purpose_subject_or_key_gives_other_numbers() -> None:
    source = KeySource(bytes(32))
    rows = [
        source.normal(1, "noise", "x", 4),
        source.normal(2, "noise", "x", 4),
        source.normal(1, "sample", "x", 4),
        source.normal(1, "noise", "y", 4),
        KeySource(bytes(31) + b"1").normal(1, "noise", "x", 4),
    ]
    assert len({tuple(row) for row in rows}) == 5
    assert source.uniform(1, "a", "bc", 1) != source.uniform(1, "ab", "c", 1)


def test_a_key_is_made_once_is_secret_and_private(tmp_path: Path) -> None:
    key = kept_key(tmp_path / "out")
    assert key == kept_key(tmp_path / "out") == (tmp_path / "out" / KEY).read_bytes()
    assert key != kept_key(tmp_path / "another")
    assert len(key) == 32
    assert stat.S_IMODE(os.stat(tmp_path / "out" / KEY).st_mode) == 0o600


def test_a_key_that_rounds_were_noised_with_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rounds that were noised with it are there"):
        kept_key(tmp_path, begun=True)
    assert not (tmp_path / KEY).exists()
    assert kept_key(tmp_path) == kept_key(tmp_path, begun=True)


def test_a_damaged_key_is_refused_and_left(tmp_path: Path) -> None:
    (tmp_path / KEY).write_bytes(b"short")
    with pytest.raises(ConfigError, match="has 5 bytes, expected 32"):
        kept_key(tmp_path)
    assert (tmp_path / KEY).read_bytes() == b"short"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the key of the noise cannot be used"):
        kept_key(tmp_path / "file")
