"""The bytes of a record are those of Flower's own objects, whether its kind is known or new."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from umbel.coordinator.federation import envelopes
from umbel.coordinator.federation.envelopes import ARRAYS, CONFIG, enveloped, wire_bytes


def by_flower(record: RecordDict) -> int:
    """Every object by its hash, once."""
    sizes: dict[str, int] = {}

    def visit(item: Any) -> None:
        sizes[item.object_id] = len(item.deflate())
        for child in (item.children or {}).values():
            visit(child)

    visit(record)
    return sum(sizes.values())


VALUES = st.one_of(
    st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(max_size=80), st.booleans()
)
ARRAY = st.builds(
    lambda shape, kind, value: np.full(shape, value, kind),
    st.sampled_from([(), (3,), (2, 3), (3, 2), (0,), (40, 9)]),
    st.sampled_from(["f4", "f8", "i8", "u1"]),
    st.integers(0, 2),
)


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.text("abé", max_size=3), ARRAY, max_size=4),
            st.dictionaries(st.sampled_from(["round", "seconds", "release_id"]), VALUES, max_size=3),
        ),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_bytes_are_flowers(records: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for arrays, config in records:
        made = enveloped(ArrayRecord({n: Array(a) for n, a in arrays.items()}), config)
        assert wire_bytes(made) == by_flower(made)


def test_equal_data_under_another_name_of_its_type_travels_once() -> None:
    first = Array(np.zeros(64, np.float32))
    other = Array(dtype="float64", shape=(1, 64), stype=first.stype, data=first.data)
    different = Array(dtype="float64", shape=(1, 64), stype=first.stype, data=first.data[:-1] + b"1")
    for second in (other, different):
        made = enveloped(ArrayRecord({"x": first, "y": second}), {"round": 1})
        assert wire_bytes(made) == by_flower(made)


def test_records_in_pieces_and_of_other_kinds_are_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    long = ArrayRecord({"x": Array(np.zeros(1_400_000, np.float32)), "y": Array(np.zeros(3, np.float32))})
    for made in (
        enveloped(long, {"round": 3}),
        RecordDict({ARRAYS: long}),
        RecordDict({CONFIG: ConfigRecord({"a": 1}), "more": ConfigRecord({"a": 1})}),
        RecordDict(),
    ):
        assert wire_bytes(made) == by_flower(made)


def test_few_kinds_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelopes, "_MOST_KINDS", 3)
    envelopes._known_kinds.clear()
    for size in (*range(8), 7, 6):
        made = enveloped(ArrayRecord({"x": Array(np.zeros(size, np.float32))}), {"round": size})
        assert wire_bytes(made) == by_flower(made)
        assert len(envelopes._known_kinds) <= 3
