"""Profiles that grow: bits keep what was chosen, logits their distribution, silence stays silence."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from umbel.shared.errors import ProfileError
from umbel.shared.growth import LOW_LOGIT, grown_file, grown_profile
from umbel.shared.profile import ProfileSpec, TensorSpec, pack_profile, unpack_profile
from umbel.shared.rng import generator

OLD, NEW = "a" * 64, "b" * 64


def spec_of(layers: int, count: int, storage: str) -> ProfileSpec:
    return ProfileSpec(tuple(TensorSpec(name, (layers, count), storage) for name in ("x.down", "x.up")))


def logits_of(spec: ProfileSpec, seed: int) -> dict[str, Any]:
    """Logits as they are learned, but in every third row, where nothing was."""
    found = {}
    for tensor in spec.tensors:
        values = generator(seed, 0, "", tensor.name).normal(size=(1, *tensor.shape)).astype(np.float32)
        values[:, ::3] = 0.0
        found[tensor.name] = values
    return found


@given(
    layers=st.integers(1, 6),
    sizes=st.integers(2, 130).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
    more=st.integers(0, 70),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=80, deadline=None)
def test_packed_bits_move_into_longer_rows(layers: int, sizes: tuple[int, int], more: int, seed: int) -> None:
    """Read bit by bit from both files: the old ones in their places, the new ones zero, no other byte."""
    count, kept = sizes
    old, new = (spec_of(layers, size, f"top:{kept}") for size in (count, count + more))
    before = pack_profile(old, logits_of(old, seed), OLD)
    after = grown_file(old, new, before, (OLD, NEW))
    assert len(after) == new.file_bytes == 40 + 2 * -(-layers * (count + more) // 8)
    assert after[8:40].hex() == NEW

    def bit(data: bytes, side: int, size: int, layer: int, number: int) -> int:
        start, place = 40 + side * -(-layers * size // 8), layer * size + number
        return data[start + place // 8] >> (7 - place % 8) & 1

    for side in (0, 1):
        for layer in range(layers):
            was = [bit(before, side, count, layer, n) for n in range(count)]
            now = [bit(after, side, count + more, layer, n) for n in range(count + more)]
            assert now == was + [0] * more
            assert sum(now) == (0 if layer % 3 == 0 else kept)
    assert unpack_profile(new, after, NEW).keys() == {"x.down", "x.up"}  # no padding bit is set


@given(
    count=st.integers(2, 60),
    more=st.integers(1, 40),
    temperature=st.sampled_from([0.1, 1.0, 100.0, 500.0]),
    seed=st.integers(0, 2**32),
)
@example(count=2, more=1, temperature=0.1, seed=44234246)
@settings(max_examples=60, deadline=None)
def test_logits_keep_their_distribution(count: int, more: int, temperature: float, seed: int) -> None:
    """To the bit where something was learned; the mean of all where nothing was. Also once packed."""
    old, new = spec_of(4, count, "float16"), spec_of(4, count + more, "float16")
    before = pack_profile(old, logits_of(old, seed), OLD)
    after = unpack_profile(new, grown_file(old, new, before, (OLD, NEW), LOW_LOGIT), NEW)
    for name, values in unpack_profile(old, before, OLD).items():
        was, now = (softmax(part / np.float32(temperature)) for part in (values, after[name]))
        nothing = (values == values[..., :1]).all(-1)  # two learned logits may be one float16, too
        assert nothing[:, ::3].all()
        np.testing.assert_array_equal(now[~nothing][:, :count], was[~nothing])
        assert not now[~nothing][:, count:].any()
        assert not after[name][:, ::3].any()
        np.testing.assert_allclose(now[nothing], 1 / (count + more), rtol=1e-6)


def softmax(logits: Any) -> Any:
    """In float32 as in a graph, but for the sums: in float64, so that zeros at the end change none."""
    weights = np.exp(logits - logits.max(-1, keepdims=True)).astype(np.float64)
    return weights / np.cumsum(weights, -1)[..., -1:]


@given(
    sizes=st.integers(2, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
    more=st.integers(1, 40),
    scale=st.sampled_from([0.1, 0.5, 2.0]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=80, deadline=None)
def test_bits_of_a_dead_zone_move_into_longer_rows(
    sizes: tuple[int, int], more: int, scale: float, seed: int
) -> None:
    """A row has as many ones as before, K or more or none, and the longer file is whole."""
    count, kept = sizes
    old, new = (spec_of(4, size, f"top:{kept}@0.25") for size in (count, count + more))
    learned = {name: np.float32(scale) * values for name, values in logits_of(old, seed).items()}
    before = pack_profile(old, learned, OLD)
    now = unpack_profile(new, grown_file(old, new, before, (OLD, NEW)), NEW)
    for name, was in unpack_profile(old, before, OLD).items():
        assert np.array_equal(now[name][..., :count], was)
        assert not now[name][..., count:].any()


def test_what_does_not_grow_stays_as_it_is() -> None:
    spec = ProfileSpec(
        (TensorSpec("a", (3,)), TensorSpec("b", (), "float32"), TensorSpec("c", (2, 4), "top:2"))
    )
    wider = ProfileSpec((*spec.tensors[:2], TensorSpec("c", (2, 5), "top:2")))
    profile = {"a": np.ones((1, 3), np.float32), "b": np.full(1, 2, np.float32)}
    profile["c"] = np.array([[[1, 0, 1, 0], [0, 0, 0, 0]]], np.float32)
    grown = grown_profile(spec, wider, profile)
    assert np.array_equal(grown["a"], profile["a"])
    assert np.array_equal(grown["b"], profile["b"])
    assert grown["c"].tolist() == [[[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("now", "problem"),
    [
        (TensorSpec("y", (2, 9), "top:3"), "the releases have different private tensors"),
        (TensorSpec("x", (2, 9), "top:4"), "x: kept as top:3, in the other release as top:4"),
        (TensorSpec("x", (2, 9), "top:3@0.5"), "x: kept as top:3, in the other release as top:3@0.5"),
        (TensorSpec("x", (3, 9), "top:3"), "x: shape is (2, 8), in the other release (3, 9)"),
        (TensorSpec("x", (2, 7), "top:3"), "x: shape is (2, 8), in the other release (2, 7)"),
        (TensorSpec("x", (2, 1, 9), "top:3"), "x: shape is (2, 8), in the other release (2, 1, 9)"),
    ],
)
def test_another_release_is_refused(now: TensorSpec, problem: str) -> None:
    old = ProfileSpec((TensorSpec("x", (2, 8), "top:3"),))
    with pytest.raises(ProfileError, match="cannot be taken along") as caught:
        grown_profile(old, ProfileSpec((now,)), old.zeros())
    assert list(caught.value.problems) == [problem]


def test_numbers_grow_only_by_what_the_caller_says() -> None:
    old, new = spec_of(1, 4, "float16"), spec_of(1, 5, "float16")
    with pytest.raises(ProfileError) as caught:
        grown_profile(old, new, old.zeros())
    assert caught.value.problems[0] == "x.down: only bits can grow here, and it holds float16"


def test_a_profile_of_another_release_is_refused() -> None:
    old, new = spec_of(1, 4, "top:2"), spec_of(1, 5, "top:2")
    data = pack_profile(old, logits_of(old, 0), OLD)
    with pytest.raises(ProfileError, match="does not fit this release"):
        grown_file(old, new, data, (NEW, NEW))
