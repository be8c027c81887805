"""Reading a release checks everything, tells all at once, and never raises anything else."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from umbel.shared.answers import Calibration, Int8
from umbel.shared.errors import ReleaseError
from umbel.shared.files import sha256_bytes
from umbel.shared.profile import ProfileSpec, TensorSpec
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import (
    CONTRIBUTE_EMBEDDED,
    EMBEDDED,
    MANIFEST,
    Blob,
    Manifest,
    Release,
    read_release,
    write_release,
)

BLOBS = {
    "predict.onnx": b"graph p",
    "learn.onnx": b"graph l",
    "contribute.onnx": b"graph c",
    "backbone.safetensors": b"many numbers",
    "shared.safetensors": b"few numbers",
    "tokenizer.json": b"{}",
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def manifest(blobs: dict[str, bytes] = BLOBS, parent: str | None = None) -> Manifest:
    return Manifest(
        parent=parent,
        task="classification",
        labels=("no", "yes"),
        backbone={"name": "tiny", "family": "bert", "sha256": "a" * 64},
        methods={"plora": {"rank": 2}},
        max_tokens=16,
        profile=ProfileSpec((TensorSpec("plora.user", (8,)),)),
        recipe=LearningRecipe(),
        trainables={"task.bias": (2,)},
        parity={"predict/logits": 1e-6},
        blobs={name: Blob(sha256_bytes(data), len(data)) for name, data in blobs.items()},
    )


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return write_release(tmp_path / "release", manifest(), BLOBS)


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(ReleaseError) as caught:
        read_release(folder)
    return list(caught.value.problems)


def assert_read_or_refused(folder: Path) -> None:
    problems: list[str] | None = None
    try:
        found = read_release(folder)
    except ReleaseError as error:
        problems = list(error.problems)
    else:
        assert found.manifest.to_bytes() == (folder / MANIFEST).read_bytes()
    assert problems is None or problems


def rewrite(folder: Path, change: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
    path = folder / MANIFEST
    row = json.loads(path.read_bytes()) | change
    kept = {key: value for key, value in row.items() if key not in drop}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def test_what_was_written_is_read(release: Release) -> None:
    again = read_release(release.folder)
    assert again == release
    assert again.manifest == manifest()
    assert (
        again.release_id
        == again.manifest.release_id
        == sha256_bytes((release.folder / MANIFEST).read_bytes())
    )
    assert {name: again.blob_path(name).read_bytes() for name in BLOBS} == BLOBS


def test_blobs_are_named_by_their_content_and_written_once(release: Release) -> None:
    kept = release.blob_path("predict.onnx")
    os.utime(kept, (1, 1))
    blobs = BLOBS | {"shared.safetensors": b"other numbers"}
    following = write_release(release.folder, manifest(blobs, parent=release.release_id), blobs)
    assert kept.stat().st_mtime == 1
    assert len(list((release.folder / "blobs").iterdir())) == len(BLOBS) + 1
    assert following.release_id != release.release_id
    assert release.blob_path("shared.safetensors").read_bytes() == b"few numbers"


def test_a_damaged_blob_is_mended_by_writing_again(release: Release) -> None:
    release.blob_path("learn.onnx").write_bytes(b"graph x")
    assert write_release(release.folder, manifest(), BLOBS) == release


def test_a_manifest_of_other_blobs_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="does not describe the blobs"):
        write_release(tmp_path / "release", manifest(), BLOBS | {"learn.onnx": b"another"})
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize("name", sorted(BLOBS))
def test_one_flipped_bit_in_any_blob(release: Release, name: str) -> None:
    path = release.blob_path(name)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (problem,) = problems_of(release.folder)
    assert problem.startswith(f"blob '{name}' is damaged: sha256 is {sha256_bytes(bytes(data))[:12]}...")


def test_every_damage_is_told_at_once(release: Release) -> None:
    release.blob_path("predict.onnx").unlink()
    release.blob_path("learn.onnx").write_bytes(b"graph")
    release.blob_path("tokenizer.json").write_bytes(b"[]")
    release.blob_path("backbone.safetensors").unlink()
    release.blob_path("backbone.safetensors").mkdir()
    rewrite(release.folder, {"labels": ["no"], "max_tokens": "16", "colour": 1}, drop=("parent",))
    found = problems_of(release.folder)
    assert [problem.split(": /")[0].split(": sha256")[0] for problem in found] == [
        "manifest: unknown key 'colour'",
        "manifest: missing key 'parent'",
        "manifest: 'labels' is not a list of two or more different names without control characters "
        "(found ['no'])",
        "manifest: 'max_tokens' is not an integer from 2 to 65536 (found '16')",
        "blob 'backbone.safetensors' is missing",
        "blob 'learn.onnx' has 5 bytes, expected 7",
        "blob 'predict.onnx' is missing",
        "blob 'tokenizer.json' is damaged",
    ]


@pytest.mark.parametrize("version", ["umbel.release/1", None, 1, {"a": 1}, "x" * 500])
def test_another_version_is_told_alone(release: Release, version: object) -> None:
    rewrite(release.folder, {"format": version, "labels": 3})
    with pytest.raises(ReleaseError, match="is of another version") as caught:
        read_release(release.folder)
    (problem,) = caught.value.problems
    assert problem.endswith("this umbel reads 'umbel.release/2'")
    assert len(problem) < 120


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe\xff", b"[]", b"3", b"null", b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}"],
)
def test_bytes_that_are_no_manifest(release: Release, data: bytes) -> None:
    (release.folder / MANIFEST).write_bytes(data)
    with pytest.raises(ReleaseError):
        read_release(release.folder)


def test_a_manifest_without_end_is_not_read(release: Release) -> None:
    with (release.folder / MANIFEST).open("r+b") as stream:
        stream.truncate(1 << 30)
    assert problems_of(release.folder) == ["it has more than 16,777,216 bytes"]


@pytest.mark.parametrize("form", [{"indent": None}, {"sort_keys": False}, {"ensure_ascii": True}])
def test_one_manifest_has_one_form(tmp_path: Path, form: dict[str, Any]) -> None:
    """Otherwise one release could have many ids."""
    made = replace(manifest(), labels=("nö", "yes"))
    release = write_release(tmp_path, made, BLOBS)
    row = json.loads((tmp_path / MANIFEST).read_bytes())
    usual: dict[str, Any] = {"indent": 2, "sort_keys": True, "ensure_ascii": False}
    backwards = dict(sorted(row.items(), reverse=True))
    (tmp_path / MANIFEST).write_text(json.dumps(backwards, **usual) + "\n", encoding="utf-8")
    assert read_release(tmp_path) == release
    (tmp_path / MANIFEST).write_text(json.dumps(backwards, **(usual | form)) + "\n", encoding="utf-8")
    assert problems_of(tmp_path) == [
        "manifest: it is not written as umbel writes it (sorted keys, each once)"
    ]


def test_a_key_given_twice_is_refused(release: Release) -> None:
    path = release.folder / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"max_tokens": 16', b'"max_tokens": 8,\n  "max_tokens": 16'))
    assert problems_of(release.folder) == [
        "manifest: it is not written as umbel writes it (sorted keys, each once)"
    ]


@pytest.mark.parametrize(
    "address", ["../../../etc/passwd", "/etc/passwd", "A" * 64, "a" * 63, "", "a" * 63 + "\n"]
)
def test_no_address_leaves_the_folder(release: Release, address: str) -> None:
    row = json.loads((release.folder / MANIFEST).read_bytes())
    row["blobs"]["tokenizer.json"]["sha256"] = address
    rewrite(release.folder, {"blobs": row["blobs"]})
    (problem,) = problems_of(release.folder)
    assert problem.startswith("manifest: 'blobs' is not an object that gives sha256 and bytes of each of")


@pytest.mark.parametrize("name", ["../x", "other.onnx", ""])
def test_no_other_blob_names(release: Release, name: str) -> None:
    row = json.loads((release.folder / MANIFEST).read_bytes())
    rewrite(release.folder, {"blobs": row["blobs"] | {name: row["blobs"]["learn.onnx"]}})
    assert len(problems_of(release.folder)) == 1


def test_graphs_behind_the_embedding_come_together(release: Release) -> None:
    row = json.loads((release.folder / MANIFEST).read_bytes())
    graph = row["blobs"]["learn.onnx"]
    more = (CONTRIBUTE_EMBEDDED,)  # earlier releases lack it
    cases = ((EMBEDDED, 0), (EMBEDDED[:1], 1), (EMBEDDED[1:], 1), (EMBEDDED + more, 0), (more, 1))
    for names, problems in (*cases, (EMBEDDED[:1] + more, 1)):
        rewrite(release.folder, {"blobs": row["blobs"] | {f"{name}.onnx": graph for name in names}})
        if problems:
            assert len(problems_of(release.folder)) == problems
        else:
            assert set(read_release(release.folder).manifest.blobs) > {f"{name}.onnx" for name in names}


INT8_BLOBS = {
    "predict_int8.onnx": b"graph 8",
    "learn_int8.onnx": b"steps 8",
    "backbone_int8.safetensors": b"small numbers",
}


def test_what_is_said_of_answers_is_read_back(tmp_path: Path) -> None:
    blobs = BLOBS | INT8_BLOBS
    own = replace(manifest(blobs), int8=Int8(9, 0.01, 0.5, 0.02), calibration=Calibration(0.5, 2.0))
    assert read_release(write_release(tmp_path, own, blobs).folder).manifest == own


@pytest.mark.parametrize(
    ("blobs", "change"),
    [
        (INT8_BLOBS, {}),
        ({}, {"int8": {"texts": 9, "moved": 0.01, "changed": 0.0, "turned": 0.0}}),
        ({}, {"int8": {"texts": 0, "moved": 0.01, "changed": 0.0, "turned": 3.0}}),
        ({}, {"calibration": {"generic": 0.0, "personal": 1.0}}),
        ({}, {"calibration": {"generic": 1.0}}),
        ({}, {"calibration": []}),
        ({"predict_int8.onnx": b"graph 8"}, {}),
    ],
)
def test_what_is_said_of_answers_and_is_not_so(
    release: Release, blobs: dict[str, bytes], change: dict[str, Any]
) -> None:
    row = json.loads((release.folder / MANIFEST).read_bytes())
    for name, data in blobs.items():
        (release.folder / "blobs" / sha256_bytes(data)).write_bytes(data)
        row["blobs"][name] = {"sha256": sha256_bytes(data), "bytes": len(data)}
    rewrite(release.folder, {"blobs": row["blobs"], **change})
    assert problems_of(release.folder)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "absent", tmp_path / "file", tmp_path):
        with pytest.raises(ReleaseError, match="no release at"):
            read_release(place)


@given(field=st.sampled_from(sorted(json.loads(manifest().to_bytes()))), value=json_values)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_a_field_holds_is_a_release_or_one_error(release: Release, field: str, value: Any) -> None:
    path = release.folder / MANIFEST
    before = path.read_bytes()
    row = json.loads(before) | {field: value}
    path.write_bytes(
        json.dumps(row, indent=2, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"
    )
    assert_read_or_refused(release.folder)
    path.write_bytes(before)


@given(data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_a_nested_field_holds_is_a_release_or_one_error(
    release: Release, data: st.DataObject
) -> None:
    path = release.folder / MANIFEST
    before = path.read_bytes()
    row = json.loads(before)
    place = row
    key: Any = data.draw(st.sampled_from(["profile", "recipe", "blobs", "backbone", "trainables", "methods"]))
    while True:
        inner = place[key]
        keys = (
            list(inner)
            if isinstance(inner, dict)
            else list(range(len(inner)))
            if isinstance(inner, list)
            else []
        )
        if not keys or data.draw(st.booleans()):
            break
        place, key = inner, data.draw(st.sampled_from(keys))
    place[key] = data.draw(json_values)
    path.write_bytes(
        json.dumps(row, indent=2, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"
    )
    assert_read_or_refused(release.folder)
    path.write_bytes(before)


@pytest.mark.parametrize("label", ["\x1b[31mno", "no\n", "n" * 201])
def test_a_label_that_would_steer_a_terminal_is_refused(release: Release, label: str) -> None:
    rewrite(release.folder, {"labels": [label, "yes"]})
    (problem,) = problems_of(release.folder)
    assert problem.startswith(
        "manifest: 'labels' is not a list of two or more different names without control"
    )
