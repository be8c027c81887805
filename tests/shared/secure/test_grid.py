"""Coding for a secure sum: never off by a step, right on average, and far below 1 % of what is summed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from umbel.shared.errors import MessageError
from umbel.shared.messages import l2_norm
from umbel.shared.rng import generator
from umbel.shared.secure.grid import Grid, flat, unflat, vector_size

CLIPS = st.floats(1e-6, 1e6)


def within(values: np.ndarray, clip: float) -> np.ndarray:
    norm = float(np.sqrt(np.square(values, dtype=np.float64).sum()))
    return values if norm <= clip else (values * np.float32(clip / norm)).astype(np.float32)


@given(
    values=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 6), st.integers(0, 5)), elements=st.floats(-1, 1, width=32)
    ),
    clip=CLIPS,
    weights=st.lists(st.integers(1, 32), min_size=6, max_size=6),
    seed=st.integers(0, 99),
)
def test_a_sum_of_coded_numbers_is_off_by_less_than_a_step_per_device(
    values: np.ndarray, clip: float, weights: list[int], seed: int
) -> None:
    rows = [within((row * np.float32(clip)).astype(np.float32), clip) for row in values]
    grid, rng = Grid(len(rows), clip, 32), generator(seed, 0, "", "rounding")
    total = np.zeros(1 + values.shape[1], np.uint32)
    for row, weight in zip(rows, weights, strict=False):
        total += grid.coded(row, weight, rng)
    found, weight, told = grid.decoded(total)
    assert (weight, told) == (sum(weights[: len(rows)]), None)
    expected = sum(w * row.astype(np.float64) for row, w in zip(rows, weights, strict=False))
    assert np.abs(found - expected).max(initial=0) <= len(rows) / grid.scale * (1 + 1e-6)


@given(devices=st.integers(1, 2**16), clip=CLIPS, weight=st.integers(1, 1000), sign=st.sampled_from([-1, 1]))
def test_the_largest_sum_that_there_can_be_does_not_wrap(
    devices: int, clip: float, weight: int, sign: int
) -> None:
    """All devices put their whole clip into one number, and all are rounded away from 0."""
    grid = Grid(devices, clip, weight)
    one = grid.coded(np.array([sign * clip], np.float32), weight, generator(0, 0, "", "rounding"))
    total = np.array([devices * weight, devices * (int(one.view(np.int32)[1]) + sign)], np.int64)
    assert np.abs(total).max() < 2**31
    assert np.sign(grid.decoded(total.astype(np.uint32))[0][0]) == sign


def test_rounding_is_right_on_average() -> None:
    """20,000 draws between two steps: the mean is within 5 standard errors of 0.5 / sqrt(draws)."""
    grid, rng, draws = Grid(10, 1.0), generator(0, 0, "", "rounding"), 20_000
    value = np.float32(0.123456)
    coded = grid.coded(np.full(draws, value), 1, rng).view(np.int32)[1:]
    assert len(np.unique(coded)) == 2
    assert abs(coded.mean() - float(value) * grid.scale) < 5 * 0.5 / np.sqrt(draws)


@pytest.mark.parametrize("devices", [12, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_error_of_a_mean_is_far_below_a_hundredth_of_its_norm(devices: int, weighted: bool) -> None:
    """Independent changes at the clip: their mean is shorter than each by sqrt(n)."""
    size, rng = 20_000, generator(1, 0, "", "changes")
    grid = Grid(devices, 1.0, 32 if weighted else 1)
    changes = [within(rng.normal(0, 1, size).astype(np.float32), 1.0) for _ in range(devices)]
    weights = [n % 32 + 1 if weighted else 1 for n in range(devices)]
    total = np.zeros(1 + size, np.uint32)
    for change, weight in zip(changes, weights, strict=True):
        total += grid.coded(change, weight, rng)
    found, weight_sum, _ = grid.decoded(total)
    mean = np.zeros(size)
    for change, weight in zip(changes, weights, strict=True):
        mean += weight * change.astype(np.float64) / weight_sum
    error = l2_norm([found / weight_sum - mean])
    assert error < 1e-4 * l2_norm([mean])
    assert error < grid.error(size, devices, weight_sum) * 1.05


@given(
    shapes=st.dictionaries(
        st.text("ab./", max_size=4), st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=4
    )
)
def test_a_change_is_the_same_after_it_was_one_vector(shapes: dict[str, tuple[int, ...]]) -> None:
    rng = generator(2, 0, "", "shapes")
    change = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    vector = flat(change, shapes)
    assert len(vector) + 1 == vector_size(shapes) == vector_size(shapes, tells=True) - 1
    back = unflat(vector.astype(np.float64), shapes)
    assert list(back) == list(shapes)
    for name, values in change.items():
        np.testing.assert_array_equal(back[name], values)


@pytest.mark.parametrize(
    ("values", "weight", "problem"),
    [
        ([np.nan, 0], 1, "a value is no number"),
        ([1.01, 0], 1, "larger than the clip"),
        ([0.5, 0], 0, "the weight is out of range"),
        ([0.5, 0], 3, "the weight is out of range"),
    ],
)
def test_what_does_not_fit_is_not_coded(values: list[float], weight: int, problem: str) -> None:
    with pytest.raises(MessageError, match=problem):
        Grid(4, 1.0, 2).coded(np.array(values, np.float32), weight, generator(0, 0, "", "rounding"))


@given(told=st.lists(st.booleans(), min_size=1, max_size=9), weight=st.integers(1, 5))
def test_those_who_were_within_the_clip_are_counted_beside_the_sum(told: list[bool], weight: int) -> None:
    grid, rng = Grid(len(told), 2.0, 5, tells=True), generator(0, 0, "", "rounding")
    values = np.array([0.5, -1.25, 0.0], np.float32)
    total = np.zeros(2 + len(values), np.uint32)
    for within_ in told:
        total += grid.coded(values, weight, rng, within_)
    found, weights, within_clip = grid.decoded(total)
    assert (weights, within_clip) == (weight * len(told), sum(told))
    assert np.abs(found - weights * values.astype(np.float64)).max() <= len(told) / grid.scale * (1 + 1e-6)


@pytest.mark.parametrize(("tells", "told"), [(True, None), (False, True)])
def test_whether_a_change_was_within_the_clip_is_told_if_and_only_if_it_is_asked(
    tells: bool, told: bool | None
) -> None:
    grid = Grid(4, 1.0, tells=tells)
    with pytest.raises(MessageError, match="if and only if it is asked"):
        grid.coded(np.zeros(2, np.float32), 1, generator(0, 0, "", "rounding"), told)


def test_more_weight_than_can_be_counted_is_refused() -> None:
    with pytest.raises(MessageError, match="more than 31 bits can count"):
        Grid(2**16, 1.0, 2**15)
