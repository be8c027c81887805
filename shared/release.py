"""A release: a manifest and content-addressed blobs. Reading checks all of it and tells all problems at once.

    release/
      manifest.json        what is in it; its sha256 is the release's id
      blobs/<sha256>       graphs, weights, tokenizer

Blobs are named by their content, so that a new release re-sends only what changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, final

from umbel.shared.answers import Calibration, Int8
from umbel.shared.checks import has_controls, is_sha256, shown
from umbel.shared.errors import ReleaseError, UmbelError
from umbel.shared.examples import MAX_NAME_CHARACTERS
from umbel.shared.files import atomic_write, plain_bytes, sha256_bytes, sha256_file
from umbel.shared.onboarding import GRAPH as ONBOARDING_GRAPH
from umbel.shared.onboarding import PREFIX, TEACH, Onboarding
from umbel.shared.profile import ProfileSpec
from umbel.shared.rebuilt import Rebuilt, read_rebuilt
from umbel.shared.recipe import LearningRecipe
from umbel.shared.storage import read_storage

FORMAT = "umbel.release/2"
MANIFEST = "manifest.json"
GRAPHS = ("predict", "learn", "contribute")
EMBEDDED = ("predict_embedded", "learn_embedded")
"""The same behind a text's embedding, in releases whose methods act on nothing else."""
CONTRIBUTE_EMBEDDED = "contribute_embedded"
"""And what rounds want: where a release lacks it, as earlier ones do, rounds read texts at every step."""
INT8_GRAPHS = {"predict": "predict_int8", "learn": "learn_int8"}
"""Graphs that there are with the encoder's matrices in 8 bits as well, in releases that have them."""
BACKBONE_WEIGHTS = "backbone.safetensors"
INT8_WEIGHTS = "backbone_int8.safetensors"
SHARED_WEIGHTS = "shared.safetensors"
TOKENIZER = "tokenizer.json"
_BLOBS = (*(f"{graph}.onnx" for graph in GRAPHS), BACKBONE_WEIGHTS, SHARED_WEIGHTS, TOKENIZER)
_ONBOARDING_BLOB, _TEACHING_BLOB = f"{ONBOARDING_GRAPH}.onnx", f"{TEACH}.onnx"
_EMBEDDED_BLOBS = {f"{graph}.onnx" for graph in EMBEDDED}
_CONTRIBUTING_BLOB = f"{CONTRIBUTE_EMBEDDED}.onnx"
INT8_BLOBS = {*(f"{graph}.onnx" for graph in INT8_GRAPHS.values()), INT8_WEIGHTS}
_KEYS = (
    "format",
    "parent",
    "task",
    "labels",
    "backbone",
    "methods",
    "max_tokens",
    "profile",
    "recipe",
    "trainables",
)
_ALL_KEYS = (*_KEYS, "parity", "blobs")
_OPTIONAL = ("rebuilt", "storage", "onboarding", "int8", "calibration")
MAX_MANIFEST_BYTES = 16 << 20
_MAX_TOKENS = 1 << 16
_Part = TypeVar("_Part")
_AGAIN = "Fetch or publish it again; nothing was changed."


@final
@dataclass(frozen=True, slots=True)
class Blob:
    """A file of a release: its sha256 (64 hex digits) and its size in bytes."""

    sha256: str
    size_bytes: int


@final
@dataclass(frozen=True, slots=True)
class Manifest:
    """What a release is.

    Attributes:
        parent: Id of the release that it follows, or None.
        task: Kind of task, such as "classification".
        labels: Label names, in the order of the logits.
        backbone: name, family and sha256 of the pretrained weights it started from.
        methods: Method name -> its options.
        max_tokens: Texts are cut to this many tokens.
        profile: The private tensors of one user.
        recipe: How a device learns them.
        trainables: Shared tensor name -> shape: what a device may work on in a round, and nothing else.
        parity: Graph output -> worst relative difference from torch that was measured at publication.
        blobs: File name -> its content's address.
        rebuilt: Shared tensor name -> the seed that it is rebuilt from: it is in no blob.
        storage: Shared tensor name -> how a blob holds it, where that is not as float32.
        onboarding: What its prototypes stand for; None where it has no onboarding.
        int8: How far `predict_int8` and `learn_int8` are from the graphs in float32; None without them.
        calibration: The temperatures of what people are shown; None: they see what the graphs give.
    """

    parent: str | None
    task: str
    labels: tuple[str, ...]
    backbone: Mapping[str, str]
    methods: Mapping[str, Mapping[str, Any]]
    max_tokens: int
    profile: ProfileSpec
    recipe: LearningRecipe
    trainables: Mapping[str, tuple[int, ...]]
    parity: Mapping[str, float]
    blobs: Mapping[str, Blob]
    rebuilt: Mapping[str, Rebuilt] = field(default_factory=dict)
    storage: Mapping[str, str] = field(default_factory=dict)
    onboarding: Onboarding | None = None
    int8: Int8 | None = None
    calibration: Calibration | None = None
    _id: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def to_bytes(self) -> bytes:
        """Returns the manifest as JSON; the same manifest gives the same bytes."""
        row: dict[str, Any] = {
            "format": FORMAT,
            "parent": self.parent,
            "task": self.task,
            "labels": list(self.labels),
            "backbone": dict(self.backbone),
            "methods": {name: dict(options) for name, options in self.methods.items()},
            "max_tokens": self.max_tokens,
            "profile": self.profile.as_json(),
            "recipe": self.recipe.as_json(),
            "trainables": {name: list(shape) for name, shape in self.trainables.items()},
            "parity": dict(self.parity),
            "blobs": {name: {"sha256": b.sha256, "bytes": b.size_bytes} for name, b in self.blobs.items()},
        }
        if self.rebuilt:  # there is one way to say that nothing is: without the key
            row["rebuilt"] = {name: tensor.as_json() for name, tensor in self.rebuilt.items()}
        if self.storage:
            row["storage"] = dict(self.storage)
        if self.onboarding is not None:
            row["onboarding"] = self.onboarding.as_json()
        if self.int8 is not None:
            row["int8"] = self.int8.as_json()
        if self.calibration is not None:
            row["calibration"] = self.calibration.as_json()
        return _canonical(row)

    @property
    def release_id(self) -> str:
        """The release's id: the sha256 of the manifest."""
        if not self._id:  # every message is checked against it
            self._id.append(sha256_bytes(self.to_bytes()))
        return self._id[0]


@final
@dataclass(frozen=True, slots=True)
class Release:
    """A release on disk whose every byte has been checked.

    Attributes:
        folder: Where it lies.
        manifest: What it is.
        release_id: sha256 of the manifest file.
    """

    folder: Path
    manifest: Manifest
    release_id: str

    def blob_path(self, name: str) -> Path:
        """Returns where a blob lies."""
        return self.folder / "blobs" / self.manifest.blobs[name].sha256


def write_release(folder: Path, manifest: Manifest, blobs: Mapping[str, bytes]) -> Release:
    """Writes a release; blobs that are there already are kept, and the manifest comes last.

    Raises:
        ReleaseError: The manifest names other blobs than the ones given, or would be refused when read. Then
            nothing is written.
        OSError: The folder cannot be written; an older release in it still reads as before.
    """
    described = {name: Blob(sha256_bytes(data), len(data)) for name, data in blobs.items()}
    if described != dict(manifest.blobs):
        raise ReleaseError("the manifest does not describe the blobs that were given")
    problems: list[str] = []
    _manifest(json.loads(manifest.to_bytes()), problems)
    if problems:
        raise ReleaseError("this release cannot be written", problems, "Nothing was written.")
    for name, data in blobs.items():
        path = folder / "blobs" / described[name].sha256
        if not path.is_file() or sha256_file(path) != described[name].sha256:
            atomic_write(path, data)
    atomic_write(folder / MANIFEST, manifest.to_bytes())
    return read_release(folder)


def read_release(folder: Path) -> Release:
    """Reads and checks a release: its manifest, and the size and hash of every blob.

    Raises:
        ReleaseError: Anything is missing, unknown, damaged or of another version; lists all that was found.
    """
    path = folder / MANIFEST
    data = _manifest_bytes(folder, path)
    row = _parse(str(path), data)
    manifest, problems = _checked(row, data)
    problems += _blob_problems(folder, row.get("blobs"))
    if problems or manifest is None:
        raise ReleaseError(f"the release at {folder} cannot be used", problems, _AGAIN)
    return Release(folder, manifest, sha256_bytes(data))


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Reads a manifest that lies in no folder yet.

    Args:
        data: Its bytes.
        name: What error texts call it.

    Raises:
        ReleaseError: It cannot be used; lists all that was found.
    """
    manifest, problems = _checked(_parse(name, data), data)
    if problems or manifest is None:
        raise ReleaseError(f"{name} cannot be used", problems, _AGAIN)
    return manifest


def _checked(row: Mapping[str, Any], data: bytes) -> tuple[Manifest | None, list[str]]:
    problems: list[str] = []
    manifest = _manifest(row, problems)
    if not problems and not _is_canonical(row, data):
        problems.append("manifest: it is not written as umbel writes it (sorted keys, each once)")
    return manifest, problems


def _manifest_bytes(folder: Path, path: Path) -> bytes:
    try:
        data = plain_bytes(path, MAX_MANIFEST_BYTES)
    except OSError as error:
        raise ReleaseError(
            f"no release at {folder}",
            [f"{path}: {error.strerror or type(error).__name__}"],
            "Give the folder that 'umbel coordinator publish' wrote.",
        ) from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise ReleaseError(
            f"{path} is not a manifest", [f"it has more than {MAX_MANIFEST_BYTES:,} bytes"], _AGAIN
        )
    return data


def _parse(path: str, data: bytes) -> dict[str, Any]:
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{path} is not JSON", [type(error).__name__], _AGAIN) from error
    if not isinstance(row, dict):
        raise ReleaseError(f"{path} is not a manifest", ["expected an object"], _AGAIN)
    if row.get("format") != FORMAT:
        raise ReleaseError(
            f"{path} is of another version",
            [f"format is {_found(row.get('format'))}, this umbel reads '{FORMAT}'"],
            "Install the umbel that the release was made for, or have it published again by this one.",
        )
    return row


def _canonical(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(row, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _is_canonical(row: Mapping[str, Any], data: bytes) -> bool:
    """Says whether the bytes are the only ones of this manifest: one manifest then has one id."""
    try:
        return _canonical(row) == data
    except (ValueError, RecursionError):  # NaN, half a surrogate pair, or nested without end
        return False


def _manifest(row: Mapping[str, Any], problems: list[str]) -> Manifest | None:
    """Builds the manifest, adding to `problems` whatever stands in the way."""
    problems += [
        f"manifest: unknown key '{shown(key)}'" for key in sorted(set(row) - {*_ALL_KEYS, *_OPTIONAL})
    ]
    problems += [f"manifest: missing key '{key}'" for key in _ALL_KEYS if key not in row]
    for key, (right, expected) in _FIELDS.items():
        if key in row and not right(row[key]):
            problems.append(f"manifest: '{key}' is not {expected} (found {_found(row[key])})")
    profile = _section(row, "profile", ProfileSpec.from_json, problems)
    recipe = _section(row, "recipe", LearningRecipe.from_json, problems)
    rebuilt = _section(row, "rebuilt", read_rebuilt, problems) or {}
    storage = _section(row, "storage", read_storage, problems) or {}
    onboarding = _section(row, "onboarding", Onboarding.from_json, problems)
    int8 = _section(row, "int8", Int8.from_json, problems)
    calibration = _section(row, "calibration", Calibration.from_json, problems)
    trainables = set(row["trainables"]) if isinstance(row.get("trainables"), dict) else set()
    problems += [
        f"manifest: '{shown(name)}' is rebuilt from a seed and a trainable"
        for name in sorted(trainables & set(rebuilt))
    ]
    problems += [
        f"manifest: '{shown(name)}' is stored as {storage[name]} and also a trainable or rebuilt"
        for name in sorted((trainables | set(rebuilt)) & set(storage))
    ]
    blobs = row["blobs"] if isinstance(row.get("blobs"), dict) else {}
    if ("onboarding" in row) != (_ONBOARDING_BLOB in blobs):
        problems.append("manifest: onboarding is there without its graph, or that without it")
    if ("int8" in row) != (set(blobs) >= INT8_BLOBS):
        problems.append("manifest: int8 is there without its graphs, or those without it")
    if any(name.startswith(PREFIX) for name in trainables) != (_TEACHING_BLOB in blobs):
        problems.append(
            "manifest: rounds train onboarding without its graph, or that is there and they do not"
        )
    if problems or profile is None or recipe is None:
        return None
    return Manifest(
        parent=row["parent"],
        task=row["task"],
        labels=tuple(row["labels"]),
        backbone=row["backbone"],
        methods=row["methods"],
        max_tokens=row["max_tokens"],
        profile=profile,
        recipe=recipe,
        trainables={name: tuple(shape) for name, shape in row["trainables"].items()},
        parity=row["parity"],
        blobs={name: Blob(blob["sha256"], blob["bytes"]) for name, blob in row["blobs"].items()},
        rebuilt=rebuilt,
        storage=storage,
        onboarding=onboarding,
        int8=int8,
        calibration=calibration,
    )


def _section(
    row: Mapping[str, Any], key: str, read: Callable[[object], _Part], problems: list[str]
) -> _Part | None:
    if key not in row:
        return None
    try:
        return read(row[key])
    except UmbelError as error:
        problems += [f"manifest: {key}: {problem}" for problem in error.problems]
        return None


def _found(value: Any) -> str:
    try:
        return shown(repr(value))
    except RecursionError:
        return "something nested without end"


def is_release_id(value: object) -> bool:
    """Says whether a value has the form of a release id.

    Example:
        >>> is_release_id("ab" * 32), is_release_id("demo")
        (True, False)
    """
    return is_sha256(value)


def _is_parent(value: Any) -> bool:
    return value is None or is_sha256(value)


def _is_task(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_length(value: Any) -> bool:
    return type(value) is int and 2 <= value <= _MAX_TOKENS


def _are_labels(value: Any) -> bool:
    named = isinstance(value, list) and all(_is_label(label) for label in value)
    return named and 2 <= len(value) == len(set(value))


def _is_label(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARACTERS and not has_controls(value)


def _is_backbone(value: Any) -> bool:
    named = isinstance(value, dict) and set(value) == {"name", "family", "sha256"}
    return named and all(isinstance(v, str) for v in value.values()) and is_sha256(value["sha256"])


def _are_methods(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(options, dict) for options in value.values())


def _are_shapes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
        for shape in value.values()
    )


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(type(number) in (int, float) for number in value.values())


def _are_blobs(value: Any) -> bool:
    if not isinstance(value, dict) or not all(map(_is_blob, value.values())):
        return False
    more = set(value) - set(_BLOBS)
    for pair in ({*_EMBEDDED_BLOBS, _CONTRIBUTING_BLOB}, _EMBEDDED_BLOBS, INT8_BLOBS):
        more = more - pair if more >= pair else more
    onboarding = ({_ONBOARDING_BLOB}, {_ONBOARDING_BLOB, _TEACHING_BLOB})
    return (not more or more in onboarding) and set(_BLOBS) <= set(value)


def _is_blob(value: Any) -> bool:
    named = isinstance(value, dict) and set(value) == {"sha256", "bytes"} and is_sha256(value["sha256"])
    return named and type(value["bytes"]) is int and value["bytes"] >= 0


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "parent": (_is_parent, "a release id or null"),
    "task": (_is_task, "a name"),
    "labels": (_are_labels, "a list of two or more different names without control characters"),
    "backbone": (_is_backbone, "an object with name, family and sha256"),
    "methods": (_are_methods, "an object of method names and their options"),
    "max_tokens": (_is_length, f"an integer from 2 to {_MAX_TOKENS}"),
    "trainables": (_are_shapes, "an object of tensor names and their shapes"),
    "parity": (_are_numbers, "an object of graph outputs and numbers"),
    "blobs": (
        _are_blobs,
        f"an object that gives sha256 and bytes of each of: {', '.join(_BLOBS)}; with onboarding also of "
        f"{_ONBOARDING_BLOB}, and of {_TEACHING_BLOB} where rounds train it; where methods act on embeddings "
        f"alone, also of {' and '.join(sorted(_EMBEDDED_BLOBS))}, and of {_CONTRIBUTING_BLOB} where rounds "
        f"work on them, too; with int8 also of "
        f"{' and '.join(sorted(INT8_BLOBS))}",
    ),
}


def _blob_problems(folder: Path, blobs: Any) -> list[str]:
    """Checks every blob that is described at all, whatever else is wrong."""
    described = blobs if isinstance(blobs, dict) else {}
    known = {*_BLOBS, *_EMBEDDED_BLOBS, _CONTRIBUTING_BLOB, *INT8_BLOBS, _ONBOARDING_BLOB, _TEACHING_BLOB}
    found = [_blob_problem(folder, n, b) for n, b in sorted(described.items()) if n in known and _is_blob(b)]
    return [problem for problem in found if problem]


def _blob_problem(folder: Path, name: str, blob: Mapping[str, Any]) -> str:
    path = folder / "blobs" / str(blob["sha256"])
    try:
        if not path.is_file():
            return f"blob '{name}' is missing: {path}"
        size = path.stat().st_size
        if size != blob["bytes"]:
            return f"blob '{name}' has {size} bytes, expected {_found(blob['bytes'])}"
        found = sha256_file(path)
    except OSError as error:
        return f"blob '{name}' cannot be read: {path}: {error.strerror or type(error).__name__}"
    if found != blob["sha256"]:
        return f"blob '{name}' is damaged: sha256 is {found[:12]}..., expected {str(blob['sha256'])[:12]}..."
    return ""
