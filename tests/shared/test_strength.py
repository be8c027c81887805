"""How much of a profile is used: every example is held out once, and evidence speaks for or against."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.shared.strength import STRENGTHS, expected_strength, fold_rows

NLLS = st.lists(st.floats(0, 500), min_size=len(STRENGTHS), max_size=len(STRENGTHS))


@given(st.lists(st.binary(max_size=1), max_size=40), st.integers(0, 12))
def test_every_example_is_held_out_once_and_with_all_of_its_text(keys: list[bytes], folds: int) -> None:
    splits = fold_rows(keys, folds)
    texts = sorted(set(keys))
    if min(len(texts), folds) < 2:
        assert splits == []
        return
    assert len(splits) == min(len(texts), folds)
    assert sorted(int(row) for _, held in splits for row in held) == list(range(len(keys)))
    for rest, held in splits:
        assert sorted([*rest, *held]) == list(range(len(keys)))
        assert len(rest) >= 1
        assert not {keys[row] for row in rest} & {keys[row] for row in held}
        assert abs(len({keys[row] for row in held}) - len(texts) / len(splits)) < 1


@given(st.lists(st.integers(0, 9), min_size=2, max_size=20), st.integers(2, 6), st.data())
def test_folds_are_the_same_whatever_the_order(keys: list[int], folds: int, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(keys))
    parts = [
        {tuple(sorted(own[row] for row in held)) for _, held in fold_rows(own, folds)}
        for own in (keys, shuffled)
    ]
    assert parts[0] == parts[1]


@given(NLLS, st.floats(-20, 20))
def test_the_strength_is_the_mean_under_the_weights(nll: list[float], trust: float) -> None:
    weights = [math.exp(trust * s - loss + min(nll)) for s, loss in zip(STRENGTHS, nll, strict=True)]
    wanted = math.fsum(w * s for w, s in zip(weights, STRENGTHS, strict=True)) / math.fsum(weights)
    found = expected_strength(np.array(nll), trust)
    assert 0.0 <= found <= 1.0
    if abs(wanted - 0.05) > 1e-9:
        assert found == pytest.approx(wanted if wanted >= 0.05 else 0.0, abs=1e-9)


def test_evidence_decides() -> None:
    helps, harms, silent = ([10.0, 8.0, 6.0, 4.0, 2.0], [2.0, 4.0, 6.0, 8.0, 10.0], [3.0] * 5)
    assert expected_strength(np.array(helps), 0.0) > 0.9
    assert expected_strength(np.array(harms), 0.0) < 0.1
    assert expected_strength(np.array(silent), 0.0) == pytest.approx(0.5)
    assert expected_strength(np.array(silent), 2.0) > 0.6
    assert expected_strength(np.array([2.0, 20, 30, 40, 50]), 2.0) == 0.0
    assert expected_strength(np.array([2.0, 2, 2, 2, math.inf]), 2.0) == 0.0
