"""Profiles: what is packed is unpacked, the size is known beforehand, and no damage goes unnoticed."""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from umbel.shared.errors import ProfileError
from umbel.shared.profile import ProfileSpec, TensorSpec, pack_profile, top_storage, unpack_profile

RELEASE = "ab" * 32
HEADER_BYTES = 4 + 2 + 2 + 32  # magic, version, flags, release id
RELEARN = "Learn a new one with: umbel device learn."
SPEC = ProfileSpec((TensorSpec("plora.user", (3,), "float16"), TensorSpec("gate", (2, 2), "float32")))
PROFILE = {
    "plora.user": np.array([[1.0, -0.5, 0.25]], np.float32),
    "gate": np.array([[[0.1, 0.2], [0.3, 0.4]]], np.float32),
}

_shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
_numbers = st.tuples(_shapes, st.sampled_from(["float16", "float32"]))
_bits = st.tuples(st.integers(1, 3), st.integers(2, 21)).flatmap(
    lambda shape: st.tuples(
        st.just(shape),
        st.builds(
            "top:{}{}".format, st.integers(1, shape[1] - 1), st.sampled_from(["", "@0", "@0.3", "@0.000001"])
        ),
    )
)
_specs = st.lists(_numbers | _bits, min_size=1, max_size=4).map(
    lambda rows: ProfileSpec(tuple(TensorSpec(f"t{n}", shape, kind) for n, (shape, kind) in enumerate(rows)))
)


@st.composite
def profiles(draw: st.DrawFn) -> tuple[ProfileSpec, dict[str, npt.NDArray[np.float32]]]:
    """A spec and finite values for it; float16 ones within its range."""
    spec = draw(_specs)
    values = {}
    for tensor in spec.tensors:
        most = 65_504.0 if tensor.storage == "float16" else float(np.finfo(np.float32).max)
        elements = st.floats(-most, most, width=32)
        values[tensor.name] = draw(hnp.arrays(np.float32, (1, *tensor.shape), elements=elements))
    return spec, values


def refused(spec: ProfileSpec, data: bytes, release: str = RELEASE) -> ProfileError:
    with pytest.raises(ProfileError) as caught:
        unpack_profile(spec, data, release)
    return caught.value


def unpackable(profile: dict[str, Any], release: str = RELEASE) -> tuple[str, ...]:
    with pytest.raises(ProfileError, match=r"^the profile cannot be packed") as caught:
        pack_profile(SPEC, profile, release)
    return tuple(caught.value.problems)


def largest(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """Ones at the `count` largest of each row, the first of equal ones; none where all are equal."""
    bits = np.zeros_like(values)
    for row, out in zip(
        values.reshape(-1, values.shape[-1]), bits.reshape(-1, values.shape[-1]), strict=True
    ):
        ranked = sorted(range(len(row)), key=lambda place: (-row[place], place))
        if len(set(row.tolist())) > 1:
            out[ranked[:count]] = 1
    return bits


def chosen(values: npt.NDArray[np.float32], count: int, zone: str) -> npt.NDArray[np.float32]:
    """Ones at what fewer than `count` of its row are above, once what is nearer to 0 than Z is 0; or none."""
    bits = np.zeros_like(values)
    width = values.shape[-1]
    for row, out in zip(values.reshape(-1, width), bits.reshape(-1, width), strict=True):
        clear = [0.0 if abs(value) < np.float32(zone) else value for value in row]
        ones = [sum(other > own for other in clear) < count for own in clear]
        out[:] = 0 if all(ones) else ones
    return bits


@given(profiles())
def test_round_trip(case: tuple[ProfileSpec, dict[str, npt.NDArray[np.float32]]]) -> None:
    """float32 comes back as it was; float16 rounded once, bits as ones; and then as it was for ever."""
    spec, profile = case
    data = pack_profile(spec, profile, RELEASE)
    assert len(data) == spec.file_bytes
    back = unpack_profile(spec, data, RELEASE)
    assert back.keys() == profile.keys()
    for tensor in spec.tensors:
        assert back[tensor.name].dtype == np.float32
        values = profile[tensor.name]
        if tensor.storage.startswith("top:"):
            count, at, zone = tensor.storage[4:].partition("@")
            wanted = chosen(values, int(count), zone) if at else largest(values, int(count))
        else:
            wanted = values.astype(np.float16 if tensor.storage == "float16" else np.float32)
        np.testing.assert_array_equal(back[tensor.name], wanted)
    assert pack_profile(spec, back, RELEASE) == data


@given(_specs)
def test_the_size_is_known_from_the_spec_alone(spec: ProfileSpec) -> None:
    width = {"float16": 16, "float32": 32}
    values = sum(-(-int(np.prod(t.shape)) * width.get(t.storage, 1) // 8) for t in spec.tensors)
    assert spec.packed_bytes == values
    assert spec.file_bytes == HEADER_BYTES + values
    assert len(pack_profile(spec, spec.zeros(), RELEASE)) == spec.file_bytes


@given(_specs)
def test_a_spec_survives_its_json(spec: ProfileSpec) -> None:
    assert ProfileSpec.from_json(spec.as_json()) == spec


def test_the_bytes_themselves() -> None:
    """Little-endian, in the order of the spec: any other implementation can read this."""
    expected = b"UMBP" + struct.pack("<HH", 1, 0) + bytes.fromhex(RELEASE)
    expected += struct.pack("<3e", 1.0, -0.5, 0.25) + struct.pack("<4f", 0.1, 0.2, 0.3, 0.4)
    assert pack_profile(SPEC, PROFILE, RELEASE) == expected
    assert len(expected) == SPEC.file_bytes == 40 + 3 * 2 + 4 * 4


def test_zeros_have_a_row_per_user() -> None:
    zeros = SPEC.zeros(3)
    shapes = {name: values.shape for name, values in zeros.items()}
    assert shapes == {"plora.user": (3, 3), "gate": (3, 2, 2)}
    assert {values.dtype.name for values in zeros.values()} == {"float32"}
    assert not any(values.any() for values in zeros.values())


def test_a_profile_without_its_leading_axis_packs_the_same() -> None:
    flat = {name: values[0] for name, values in PROFILE.items()}
    assert pack_profile(SPEC, flat, RELEASE) == pack_profile(SPEC, PROFILE, RELEASE)


def test_all_that_is_wrong_with_a_profile_is_told_at_once() -> None:
    assert unpackable({"plora.user": np.zeros((2, 3)), "stray": np.zeros(1)}) == (
        "unknown tensor: stray",
        "plora.user: shape is (2, 3), expected (3,)",
        "missing tensor: gate",
    )


def test_the_right_number_of_values_in_the_wrong_shape() -> None:
    assert unpackable({**PROFILE, "gate": np.zeros((1, 4))}) == ("gate: shape is (1, 4), expected (2, 2)",)


@pytest.mark.parametrize("value", [np.nan, np.inf, 70_000.0])
def test_values_that_cannot_be_stored(value: float) -> None:
    """70,000 is beyond float16's largest, 65,504. The value itself is private and not told."""
    broken = {**PROFILE, "plora.user": np.array([0.0, value, 0.0], np.float32)}
    assert unpackable(broken) == ("plora.user: holds values that are not finite as float16",)


@pytest.mark.parametrize("release", ["", "ab", "AB" * 32, "zz" * 32, "ab" * 33, RELEASE + "\n"])
def test_a_release_id_that_is_none(release: str) -> None:
    assert unpackable(PROFILE, release) == ("the release id is not 64 lower-case hex digits",)


DATA = pack_profile(SPEC, PROFILE, RELEASE)


@pytest.mark.parametrize("length", range(HEADER_BYTES))
def test_a_truncated_header(length: int) -> None:
    error = refused(SPEC, DATA[:length])
    assert error.headline == "this is not an umbel profile"
    assert error.problems == (f"it has {length} bytes, and its header alone has 40",)
    assert error.hint == RELEARN


@pytest.mark.parametrize("length", [HEADER_BYTES, len(DATA) - 1, len(DATA) + 1])
def test_another_length(length: int) -> None:
    error = refused(SPEC, (DATA + b"\0")[:length])
    assert error.headline == "the profile does not fit this release"
    assert error.problems == (f"it has {length} bytes, expected {len(DATA)}",)
    assert error.hint == RELEARN


@given(st.integers(0, HEADER_BYTES * 8 - 1))
def test_any_flipped_bit_of_the_header_is_noticed(bit: int) -> None:
    damaged = bytearray(DATA)
    damaged[bit // 8] ^= 1 << bit % 8
    assert len(refused(SPEC, bytes(damaged)).problems) == 1


def test_what_a_damaged_header_is_told_as() -> None:
    assert refused(SPEC, b"PMBU" + DATA[4:]).problems == ("it does not begin with UMBP",)
    assert refused(SPEC, DATA[:6] + b"\2\0" + DATA[8:]).problems == ("flags are 0x0002, expected none",)
    both = refused(SPEC, DATA[:4] + struct.pack("<H", 7) + DATA[6:], release="cd" * 32)
    assert both.problems == (
        "format version is 7, expected 1",
        "it belongs to release abababababab, not to cdcdcdcdcdcd",
    )
    assert both.hint == RELEARN


def test_values_that_are_not_finite_name_every_tensor() -> None:
    nan16, inf32 = struct.pack("<e", np.nan), struct.pack("<f", np.inf)
    damaged = DATA[:40] + nan16 + DATA[42:-4] + inf32
    assert refused(SPEC, damaged).problems == (
        "plora.user: values that are not finite",
        "gate: values that are not finite",
    )


BITS = ProfileSpec((TensorSpec("mask", (2, 5), "top:2"),))


def test_the_bits_themselves() -> None:
    """Row after row without a gap, the first value in the highest bit, zeros at the end."""
    values = np.array([[[0.1, 0.9, -3.0, 0.9, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0]]], np.float32)
    data = pack_profile(BITS, {"mask": values}, RELEASE)
    assert data[HEADER_BYTES:] == bytes([0b01010000, 0])
    np.testing.assert_array_equal(unpack_profile(BITS, data, RELEASE)["mask"][0, 0], [0, 1, 0, 1, 0])


@pytest.mark.parametrize("bits", [(0b01011000, 0), (0b01000000, 0), (0b01010000, 1)])
def test_bits_that_nobody_packed(bits: tuple[int, int]) -> None:
    """Three ones in a row, one, and one behind the last value."""
    whole = pack_profile(BITS, BITS.zeros(), RELEASE)
    assert refused(BITS, whole[:HEADER_BYTES] + bytes(bits)).problems == (
        "mask: rows that have neither 2 ones nor none",
    )


ZONED = ProfileSpec((TensorSpec("mask", (3, 5), "top:2@0.3"),))


def test_the_bits_of_a_dead_zone() -> None:
    """Clear ones; all but what is clearly unwanted; nothing clear. The float32 next to 0.3 is the edge."""
    edge = np.float32(0.3)
    below = np.nextafter(edge, np.float32(0))
    rows = [[edge, 0.9, below, -edge, 0.5], [0.1, -edge, 0.0, below, -below], [below, -below, 0.0, -0.0, 0.1]]
    data = pack_profile(ZONED, {"mask": np.array([rows], np.float32)}, RELEASE)
    assert data[HEADER_BYTES:] == bytes([0b01001_101, 0b11_00000_0])
    read = unpack_profile(ZONED, data, RELEASE)["mask"]
    assert read.tolist() == [[[0, 1, 0, 0, 1], [1, 0, 1, 1, 1], [0, 0, 0, 0, 0]]]


def test_a_dead_zone_is_compared_in_float32() -> None:
    """float32's 0.3 lies above 0.3: a float64 between the two is as clear as its float32 is."""
    (tensor,) = ZONED.tensors
    between = np.full(5, 0.3)
    assert float(np.float32(0.3)) > 0.3
    rows = np.stack([between * [1, 1, 0, 0, 0]] * 3)
    np.testing.assert_array_equal(tensor.stored(rows), tensor.stored(rows.astype(np.float32)))
    assert tensor.stored(rows).sum() == 6


@given(st.integers(0, 2**5 - 1))
def test_bits_of_a_dead_zone_that_nobody_packed(row: int) -> None:
    """Fewer than 2 ones, but for none, and all five are what no row of logits gives."""
    whole = pack_profile(ZONED, ZONED.zeros(), RELEASE)
    data = whole[:HEADER_BYTES] + (row << 11).to_bytes(2, "big")
    if row.bit_count() in (0, 2, 3, 4):
        assert pack_profile(ZONED, unpack_profile(ZONED, data, RELEASE), RELEASE) == data
    else:
        assert refused(ZONED, data).problems == ("mask: rows that have neither 2 to 4 ones nor none",)


@given(st.integers(1, 999_999), st.integers(0, 999_999))
def test_a_storage_that_is_written_is_read(kept: int, millionths: int) -> None:
    storage = top_storage(kept, millionths / 1_000_000)
    tensor = TensorSpec("mask", (1 << 20,), storage)
    assert tensor.top == kept
    assert tensor.dead_zone == (millionths / 1_000_000 if millionths else None)
    assert tensor.packed_bytes == 1 << 17
    assert top_storage(kept) == f"top:{kept}"


@pytest.mark.parametrize("zone", [-0.1, 1.0, 0.999_999_9, 1e-7, 0.1 + 0.2, np.nan, np.inf])
def test_a_dead_zone_that_has_no_storage(zone: float) -> None:
    with pytest.raises(ProfileError, match="cannot be written into a storage"):
        top_storage(3, zone)


@pytest.mark.parametrize(
    "zone",
    ["", "0.", ".5", "0.0", "0.50", "1", "1.0", "-0.5", "5e-1", "0.0000001", "00.5", "0.5 ", "0,5", "0.٣"],
)
def test_a_dead_zone_that_is_spelt_otherwise(zone: str) -> None:
    """There is one spelling of each, of at most six places."""
    row = {"name": "a", "shape": [5], "storage": f"top:2@{zone}"}
    with pytest.raises(ProfileError) as caught:
        ProfileSpec.from_json([row])
    assert caught.value.problems == ("tensor 0: storage must be one of float16, float32, top:K or top:K@Z",)
    with pytest.raises(ProfileError, match="cannot be described"):
        TensorSpec("a", (5,), f"top:2@{zone}")


@pytest.mark.parametrize(
    ("shape", "storage"),
    [((2, 5), "top:5"), ((), "top:1"), ((4,), "top:-1"), ((4,), "top:4@0.5"), ((), "top:1@0.5")],
)
def test_bits_that_cannot_be_described(shape: tuple[int, ...], storage: str) -> None:
    with pytest.raises(ProfileError, match="cannot be described"):
        TensorSpec("mask", shape, storage)


def test_a_tensor_that_cannot_be_described() -> None:
    with pytest.raises(ProfileError) as caught:
        TensorSpec("gate", (2, 0), "int8")
    assert caught.value.headline == "private tensor 'gate' cannot be described"
    assert caught.value.problems == (
        "storage is 'int8', expected one of float16, float32, top:K or top:K@Z",
        "shape (2, 0) has a size below 1",
    )


def test_names_given_twice() -> None:
    with pytest.raises(ProfileError) as caught:
        ProfileSpec(
            (TensorSpec("b", (1,)), TensorSpec("a", (1,)), TensorSpec("b", (2,)), TensorSpec("a", (1,)))
        )
    assert caught.value.problems == ("more than once: a", "more than once: b")


ROW = {"name": "a", "shape": [2], "storage": "float16"}
NOT_A_ROW = "tensor 0: expected an object with name, shape and storage"
NOT_A_SIZE = "tensor 0: each size of its shape must be a whole number from 1 to 16,777,216"
NOT_A_SHAPE = "tensor 0: shape must be a list of at most 8 sizes"
NOT_A_NAME = "tensor 0: name must be text of 1 to 200 characters"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (None, "it is a NoneType, expected a list"),
        ({"name": "a"}, "it is a dict, expected a list"),
        ("abc", "it is a str, expected a list"),
        ([None], NOT_A_ROW),
        (["abc"], NOT_A_ROW),
        ([[1, 2, 3]], NOT_A_ROW),
        ([{}], NOT_A_ROW),
        ([{**ROW, "extra": 1}], NOT_A_ROW),
        ([{**ROW, "name": ""}], NOT_A_NAME),
        ([{**ROW, "name": 5}], NOT_A_NAME),
        ([{**ROW, "name": "a" * 201}], NOT_A_NAME),
        ([{**ROW, "shape": "12"}], NOT_A_SHAPE),
        ([{**ROW, "shape": None}], NOT_A_SHAPE),
        ([{**ROW, "shape": [1] * 9}], NOT_A_SHAPE),
        ([{**ROW, "shape": [0]}], NOT_A_SIZE),
        ([{**ROW, "shape": [-1]}], NOT_A_SIZE),
        ([{**ROW, "shape": [True]}], NOT_A_SIZE),
        ([{**ROW, "shape": [1.0]}], NOT_A_SIZE),
        ([{**ROW, "shape": [float("inf")]}], NOT_A_SIZE),
        ([{**ROW, "shape": ["2"]}], NOT_A_SIZE),
        ([{**ROW, "shape": [10**30]}], NOT_A_SIZE),
        ([{**ROW, "shape": [1 << 24, 2]}], "it has more than 16,777,216 values"),
        (
            [{**ROW, "storage": "float64"}],
            "tensor 0: storage must be one of float16, float32, top:K or top:K@Z",
        ),
        ([{**ROW, "storage": []}], "tensor 0: storage must be one of float16, float32, top:K or top:K@Z"),
        (
            [{**ROW, "storage": "top:0"}],
            "tensor 0: storage must be one of float16, float32, top:K or top:K@Z",
        ),
        ([{**ROW, "storage": "top:2"}], "tensor 0: storage top:K needs rows longer than K"),
        ([{**ROW, "storage": "top:2@0.5"}], "tensor 0: storage top:K needs rows longer than K"),
        ([{**ROW, "shape": [], "storage": "top:2"}], "tensor 0: storage top:K needs rows longer than K"),
        ([ROW, ROW], "more than once: a"),
    ],
)
def test_a_hostile_spec_is_one_typed_error(rows: object, problem: str) -> None:
    with pytest.raises(ProfileError) as caught:
        ProfileSpec.from_json(rows)
    assert caught.value.problems == (problem,)


def test_all_that_is_wrong_with_a_spec_is_told_at_once() -> None:
    with pytest.raises(ProfileError, match=r"^the profile spec is malformed") as caught:
        ProfileSpec.from_json([ROW, {**ROW, "name": "", "shape": [0]}, 3])
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["tensor 1"] * 2 + ["tensor 2"]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "shape", "storage", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(_json | st.lists(st.fixed_dictionaries({"name": _json, "shape": _json, "storage": _json}), max_size=3))
def test_any_json_is_a_spec_or_a_profile_error(rows: object) -> None:
    try:
        spec = ProfileSpec.from_json(rows)
    except ProfileError:
        return
    assert spec.as_json() == rows
