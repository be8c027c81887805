"""Tensors that a seed stands for: what a manifest may say of them, and that a device notices other bits."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.shared.test_release import (
    BLOBS,
    assert_read_or_refused,
    json_values,
    manifest,
    problems_of,
    rewrite,
)

from umbel.shared.bank import RandomTensor, random_bank
from umbel.shared.errors import ReleaseError
from umbel.shared.rebuilt import described, digest, read_rebuilt, rebuild_all
from umbel.shared.release import MANIFEST, Release, read_release, write_release

SOURCE = RandomTensor(7, "layer 3 up", (5, 4, 3), 0.5)
ROW: Mapping[str, Any] = described(SOURCE).as_json()


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A release of one tensor in a blob and one that is rebuilt."""
    made = replace(manifest(), rebuilt={"bank": described(SOURCE)})
    return write_release(tmp_path / "release", made, BLOBS)


def test_what_was_written_is_rebuilt(release: Release) -> None:
    again = read_release(release.folder)
    assert again == release
    tensors, problems = rebuild_all(again.manifest.rebuilt)
    assert problems == []
    np.testing.assert_array_equal(tensors["bank"], random_bank(7, "layer 3 up", (5, 4, 3), 0.5))


def test_the_description_is_of_the_bits_that_the_bank_promises() -> None:
    """The digest is that of tests/shared/test_bank.py."""
    assert ROW == {
        "generator": "umbel.bank/1",
        "seed": 7,
        "part": "layer 3 up",
        "shape": [5, 4, 3],
        "deviation": 0.5,
        "sha256": "27db946a70facbd488260afd6ab00da3bf2e4f90c9966c1752cb8b53684eed78",
    }


def test_a_digest_is_of_the_values_in_their_order() -> None:
    values = SOURCE.values()
    assert digest(values) == digest(np.asfortranarray(values)) == digest(values.astype(">f4").astype("<f4"))
    assert digest(values) != digest(values[::-1])


@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"part": "layer 3 down"}, {"shape": [5, 3, 4]}, {"deviation": 0.6}]
)
def test_another_source_gives_other_bytes(change: dict[str, Any]) -> None:
    """All but a new shape of the same values, whose graph onnxruntime refuses to open."""
    tensors, problems = rebuild_all(read_rebuilt({"bank": {**ROW, **change}}))
    if "shape" in change:
        assert tensors["bank"].shape == (5, 3, 4)
    else:
        assert tensors == {}
        (problem,) = problems
        assert problem.startswith("'bank', rebuilt from its seed: sha256 is ")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"generator": "umbel.bank/2"}, "generator is umbel.bank/2, this umbel has 'umbel.bank/1'"),
        ({"generator": None}, "generator is None, this umbel has 'umbel.bank/1'"),
        ({"seed": -1}, "seed is -1, expected an integer from 0 to 9223372036854775807"),
        ({"seed": 1.0}, "seed is 1.0, expected an integer from 0 to 9223372036854775807"),
        ({"part": ""}, "part is not a short text"),
        ({"part": "p" * 201}, "part is not a short text"),
        ({"part": "\x1b[31m"}, "part is not a short text"),
        ({"part": "\ud800"}, "part is not a short text"),
        ({"shape": []}, "shape is not a list of 1 to 8 sizes"),
        ({"shape": [1] * 9}, "shape is not a list of 1 to 8 sizes"),
        ({"shape": [0]}, "a size of its shape is not a whole number from 1 to 268,435,456"),
        ({"shape": [1 << 60]}, "a size of its shape is not a whole number from 1 to 268,435,456"),
        ({"shape": [True]}, "a size of its shape is not a whole number from 1 to 268,435,456"),
        ({"deviation": 0}, "deviation is not a number above 0 and at most 1e+06"),
        ({"deviation": float("inf")}, "deviation is not a number above 0 and at most 1e+06"),
        ({"deviation": float("nan")}, "deviation is not a number above 0 and at most 1e+06"),
        ({"deviation": "1"}, "deviation is not a number above 0 and at most 1e+06"),
        ({"sha256": "A" * 64}, "sha256 is not 64 lower-case hex digits"),
        ({"url": "x"}, "expected an object with deviation, generator, part, seed, sha256, shape"),
    ],
)
def test_a_description_that_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ReleaseError) as caught:
        read_rebuilt({"bank": {**ROW, **change}})
    assert list(caught.value.problems) == [f"'bank': {problem}"]


@pytest.mark.parametrize("rows", [{}, [], None, "bank", {str(n): ROW for n in range(4097)}])
def test_descriptions_that_are_none_or_too_many(rows: object) -> None:
    with pytest.raises(ReleaseError) as caught:
        read_rebuilt(rows)
    assert list(caught.value.problems) == ["expected an object of 1 to 4096 tensors, or no such key"]


@pytest.mark.parametrize(
    "shapes", [[[1 << 20, 1 << 20]], [[1 << 14, 1 << 14], [1]], [[1 << 28] * 8]], ids=["one", "sum", "huge"]
)
def test_no_manifest_fills_the_memory(shapes: list[list[int]]) -> None:
    """Refused while it is read, before a value is made."""
    with pytest.raises(ReleaseError) as caught:
        read_rebuilt({str(n): {**ROW, "shape": shape} for n, shape in enumerate(shapes)})
    assert list(caught.value.problems) == ["they have more than 268,435,456 values"]


def test_what_a_seed_stands_for_is_no_trainable(release: Release) -> None:
    rewrite(release.folder, {"trainables": {"bank": [5, 4, 3]}})
    assert problems_of(release.folder) == ["manifest: 'bank' is rebuilt from a seed and a trainable"]


def test_problems_are_told_with_the_others(release: Release) -> None:
    rewrite(release.folder, {"rebuilt": {"bank": {**ROW, "seed": -1}}, "max_tokens": 1})
    assert problems_of(release.folder) == [
        "manifest: 'max_tokens' is not an integer from 2 to 65536 (found 1)",
        "manifest: rebuilt: 'bank': seed is -1, expected an integer from 0 to 9223372036854775807",
    ]


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_stands_there_is_a_release_or_one_error(release: Release, data: st.DataObject) -> None:
    path = release.folder / MANIFEST
    before = path.read_bytes()
    row = json.loads(before)
    place: Any = row
    key: Any = "rebuilt"
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
    place[key] = data.draw(json_values)
    text = json.dumps(row, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_bytes(text.encode(errors="surrogatepass") + b"\n")
    assert_read_or_refused(release.folder)
    path.write_bytes(before)
