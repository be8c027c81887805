"""Weights are views of their file, with the values that safetensors itself reads."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from umbel.device_client.weights import mapped
from umbel.shared.rng import generator

_TYPES = (np.float32, np.float16, np.int8, np.float64, np.int64)


@given(
    st.lists(
        st.tuples(st.sampled_from(_TYPES), st.lists(st.integers(0, 4), max_size=3)), min_size=1, max_size=6
    )
)
@settings(max_examples=40, deadline=None)
def test_a_mapped_file_holds_what_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[type, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("weights") / "some.safetensors"
    rng = generator(0, len(tensors), "", "weights")
    arrays: dict[str, np.ndarray] = {
        f"tensor {number}": np.asarray(100 * rng.standard_normal(shape)).astype(kind)
        for number, (kind, shape) in enumerate(tensors)
    }
    save_file(arrays, path, metadata={"by": "a test"})
    found, wanted = mapped(path), load_file(path)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
        assert found[name].tobytes() == values.tobytes()
        assert not found[name].flags.writeable


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{}" + b"more"])
def test_a_malformed_file_is_an_error_before_it_is_mapped(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(SafetensorError):
        mapped(path)


def test_a_type_that_no_release_holds(tmp_path: Path) -> None:
    path = tmp_path / "bools.safetensors"
    save_file({"a": np.array([True])}, path)
    with pytest.raises(KeyError):
        mapped(path)
