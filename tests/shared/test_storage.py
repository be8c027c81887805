"""Weights in fewer bytes: how far they may be off, and what a manifest may say of them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.shared.errors import ReleaseError
from umbel.shared.rng import generator
from umbel.shared.storage import packed, read_storage, unpacked


@given(
    parts=st.integers(1, 6), size=st.integers(1, 40), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 2**32)
)
@settings(max_examples=80, deadline=None)
def test_no_value_is_off_by_more_than_half_a_step(parts: int, size: int, scale: float, seed: int) -> None:
    """Each part has its own step, 1/127 of its largest value; the first part is zeros. Twice is once."""
    values = (scale * generator(seed, 0, "", "x").normal(size=(parts, size, 2))).astype(np.float32)
    values *= np.arange(parts, dtype=np.float32)[:, None, None]
    stored = packed("x", values, "int8")
    assert {name: (array.dtype.name, array.shape) for name, array in stored.items()} == {
        "x": ("int8", values.shape),
        "x.scales": ("float32", (parts,)),
    }
    found, problems = unpacked(stored, {"x": "int8"})
    assert (list(found), problems) == (["x"], [])
    step = np.abs(values).max((1, 2), keepdims=True) / 127
    assert (np.abs(found["x"] - values) <= step * 0.50001).all()
    assert not found["x"][0].any()
    again = packed("x", found["x"], "int8")
    np.testing.assert_array_equal(again["x"], stored["x"])


def test_float16_is_numpys() -> None:
    values = generator(0, 0, "", "x").normal(size=(3, 4)).astype(np.float32)
    stored = packed("x", values, "float16")
    assert stored["x"].nbytes == 24
    found, problems = unpacked({**stored, "other": values}, {"x": "float16", "elsewhere": "int8"})
    assert problems == []
    assert found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], values.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(found["other"], values)


@pytest.mark.parametrize(
    "rows", [{}, [], None, 3, {"x": "int4"}, {"x": None}, {"x": ["int8"]}, {"x": "float32"}]
)
def test_a_malformed_storage_is_refused(rows: Any) -> None:
    with pytest.raises(ReleaseError) as caught:
        read_storage(rows)
    assert len(caught.value.problems) == 1
