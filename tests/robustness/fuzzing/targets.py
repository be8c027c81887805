"""What is fuzzed: each target reads bytes as umbel would read them from somebody else."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from tests.channels import Publisher, plain_release
from tests.robustness.fuzzing.mutations import Dice, as_text, mutated, mutated_json, text_mutated

from umbel.device_client.releases.sources import AbsentError, AbstractSource, Begun
from umbel.device_client.releases.trust import Pin, look, pinned_root
from umbel.device_client.texts import file_texts
from umbel.device_client.vault import keys
from umbel.device_client.vault.keys import KeyFile, KeyHolder, Passphrase, unwrap, wrap
from umbel.device_client.vault.portable import Exported, read_export, write_export
from umbel.device_client.vault.sealing import Sealer
from umbel.device_client.vault.store import Entry, KeptProfile, Store
from umbel.device_client.weights import load_weights
from umbel.shared.checks import NestingError, parsed_json
from umbel.shared.errors import MessageError, StoreError
from umbel.shared.examples import Example, read_examples, write_examples
from umbel.shared.files import sha256_bytes
from umbel.shared.messages import (
    NPY,
    Contribution,
    EvaluationReply,
    GainQuestion,
    GainReport,
    Hello,
    LocalSettings,
    RoundTask,
    Wire,
    read_contribution,
    read_evaluation,
    read_gain,
    read_gain_question,
    read_hello,
    read_task,
)
from umbel.shared.onboarding import Onboarding, Shown
from umbel.shared.profile import ProfileSpec, TensorSpec, pack_profile, unpack_profile
from umbel.shared.rebuilt import described, read_rebuilt
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import MANIFEST, Blob, Manifest, Release, read_release, write_release
from umbel.shared.storage import packed, read_storage
from umbel.shared.text import TextEncoder

Input = Callable[[Dice], bytes]

SPEC = ProfileSpec(
    (
        TensorSpec("half", (3, 5)),
        TensorSpec("single", (7,), "float32"),
        TensorSpec("bits", (4, 9), "top:3"),
        TensorSpec("zone", (2, 11), "top:2@0.25"),
    )
)
OWNER = "ab" * 32
TRAINABLES = {"head.weight": (2, 3), "head.bias": (2,)}
_KEY = bytes(range(32))
_WORDS = "correct horse battery"
_NOW = "2026-01-01T00:00:00+00:00"


@final
@dataclass(frozen=True, slots=True)
class Target:
    """One reader.

    Attributes:
        share: Its part of all inputs.
        make: Makes a hostile input.
        read: Reads it; raises nothing but an UmbelError.
        heavy: Whether native code reads it, so that it has a process of its own and more memory.
    """

    share: float
    make: Input
    read: Callable[[bytes], object]
    heavy: bool = False
    seeds: tuple[bytes, ...] = field(default=(), repr=False)


def targets(folder: Path) -> dict[str, Target]:
    """Returns all targets by name; files that they read lie in `folder`, best in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Target] = {}
    for add in (
        _profiles,
        _manifests,
        _sections,
        _weights,
        _examples,
        _texts,
        _messages,
        _sealed,
        _stores,
        _channels,
        _natives,
    ):
        made |= add(folder)
    return made


def _of_bytes(seeds: Sequence[bytes], change: Callable[..., bytes] = mutated) -> Input:
    def make(dice: Dice) -> bytes:
        return change(dice.pick(seeds), seeds, dice)

    return make


def _row(data: bytes) -> object:
    """Returns what a text holds; whoever parses it before these readers has found that it is JSON."""
    try:
        return parsed_json(data)
    except (ValueError, NestingError):
        raise MessageError("this is no JSON") from None


def _of_json(rows: Sequence[Any], *, canonical: bool = True) -> Input:
    """Changes values mostly, and in one of eight the text."""
    texts = [as_text(row) for row in rows]

    def make(dice: Dice) -> bytes:
        if dice.one_in(8):
            return text_mutated(dice.pick(texts), texts, dice)
        return as_text(mutated_json(dice.pick(rows), dice), dice if canonical else None)

    return make


def _profiles(folder: Path) -> dict[str, Target]:
    rng = np.random.Generator(np.random.PCG64(0))
    profile = {t.name: rng.normal(0, 1, t.shape).astype(np.float32) for t in SPEC.tensors}
    seeds = (
        pack_profile(SPEC, profile, OWNER),
        pack_profile(SPEC, SPEC.zeros(1), OWNER),
        pack_profile(SPEC, profile, "cd" * 32),
    )
    own = replace(manifest(), profile=SPEC)
    names = [SPEC.as_json(), own.profile.as_json(), [{"name": "a", "shape": [4, 9], "storage": "top:3@0.1"}]]
    return {
        "profile": Target(18, _of_bytes(seeds), lambda data: unpack_profile(SPEC, data, OWNER), seeds=seeds),
        "profile spec": Target(6, _of_json(names), lambda data: _spec(_row(data))),
    }


def _spec(rows: object) -> None:
    """Reads a spec, and a profile of zeros under it, as a device would."""
    spec = ProfileSpec.from_json(rows)
    if spec.packed_bytes < 1 << 16:
        unpack_profile(spec, pack_profile(spec, spec.zeros(1), OWNER), OWNER)


BLOBS = {
    "predict.onnx": b"graph p",
    "learn.onnx": b"graph l",
    "contribute.onnx": b"graph c",
    "backbone.safetensors": b"many numbers",
    "shared.safetensors": b"few numbers",
    "tokenizer.json": b"{}",
}


def manifest(blobs: Mapping[str, bytes] = BLOBS) -> Manifest:
    """Returns a manifest that has every section."""
    return Manifest(
        parent="ef" * 32,
        task="classification",
        labels=("no", "yes"),
        backbone={"name": "tiny", "family": "bert", "sha256": "a" * 64},
        methods={"plora": {"rank": 2}},
        max_tokens=16,
        profile=SPEC,
        recipe=LearningRecipe(steps=6, folds=3, start=0.5),
        trainables=TRAINABLES,
        parity={"predict/logits": 1e-6},
        blobs={name: Blob(sha256_bytes(data), len(data)) for name, data in blobs.items()},
    )


def _full_row() -> dict[str, Any]:
    from umbel.shared.bank import RandomTensor

    row: dict[str, Any] = json.loads(manifest().to_bytes())
    row["rebuilt"] = {"bank": described(RandomTensor(3, "layer 0", (2, 2), 0.5)).as_json()}
    row["storage"] = {"wide": "float16", "narrow": "int8"}
    row["onboarding"] = Onboarding(((Shown("good film", "yes"),), ())).as_json()
    row["blobs"]["onboard.onnx"] = {"sha256": sha256_bytes(b"graph p"), "bytes": 7}
    return row


def _manifests(folder: Path) -> dict[str, Target]:
    place = folder / "release"
    write_release(place, manifest(), BLOBS)
    rows = [json.loads(manifest().to_bytes()), _full_row()]

    def read(data: bytes) -> None:
        (place / MANIFEST).write_bytes(data)
        found = read_release(place)
        assert found.manifest.to_bytes() == data, "a manifest is read as another one"

    return {"manifest": Target(16, _of_json(rows), read)}


def _sections(folder: Path) -> dict[str, Target]:
    row = _full_row()
    readers: dict[str, Callable[[object], object]] = {
        "recipe": LearningRecipe.from_json,
        "onboarding": Onboarding.from_json,
        "rebuilt": read_rebuilt,
        "storage": read_storage,
    }
    return {
        f"manifest: {name}": Target(4, _of_json([row[name]]), lambda data, read=read: read(_row(data)))  # type: ignore[misc]
        for name, read in readers.items()
    }


def safetensors(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Returns arrays as a safetensors file."""
    from safetensors.numpy import save

    return bytes(save(dict(arrays), {"format": "umbel"}))


def _weights(folder: Path) -> dict[str, Target]:
    wide = np.arange(6, dtype=np.float32).reshape(2, 3)
    first: dict[str, Any] = {"wide": wide.astype(np.float16), "plain": wide, **packed("narrow", wide, "int8")}
    second = {name: np.ones(shape, np.float32) for name, shape in TRAINABLES.items()}
    seeds = (safetensors(first), safetensors(second), safetensors({}))
    (folder / "blobs").mkdir(exist_ok=True)
    told = replace(manifest(), storage={"wide": "float16", "narrow": "int8"})
    told = replace(
        told,
        blobs={"backbone.safetensors": Blob("0" * 64, 0), "shared.safetensors": Blob("1" * 64, 0)},
    )
    release = Release(folder, told, OWNER)
    (folder / "blobs" / ("1" * 64)).write_bytes(seeds[1])

    def read(data: bytes) -> None:
        (folder / "blobs" / ("0" * 64)).write_bytes(data)
        load_weights(release)

    def make(dice: Dice) -> bytes:
        if dice.one_in(3):
            return mutated(dice.pick(seeds), seeds, dice)
        data: bytes = dice.pick(seeds[:2])
        length = int.from_bytes(data[:8], "little")
        header = as_text(mutated_json(json.loads(data[8 : 8 + length]), dice), dice)
        return len(header).to_bytes(8, "little") + header + data[8 + length :]

    return {"weights": Target(5, make, read, heavy=True)}


def _examples(folder: Path) -> dict[str, Target]:
    rows = [
        Example("ann", "a slow, tender film", "yes", 3.0),
        Example("bob", "not\r\ngood", "no"),
        Example("ann", "€", "1"),
    ]
    made = {}
    for ending, share in ((".jsonl", 8.0), (".csv", 6.0), (".parquet", 0.4)):
        path = folder / f"mine{ending}"
        write_examples(path, rows)
        seeds = (path.read_bytes(), _one_more(path, rows))
        change = mutated if ending == ".parquet" else text_mutated

        def read(data: bytes, path: Path = path) -> None:
            path.write_bytes(data)
            read_examples(path, default_user="owner" if len(data) % 2 else None, labels=("yes", "no", "1"))

        made[f"examples{ending}"] = Target(share, _of_bytes(seeds, change), read, ending == ".parquet", seeds)
    lines = [{"user": "ann", "text": "a slow film", "label": "yes", "time": 3}, {"text": "good", "label": 1}]
    path = folder / "rows.jsonl"

    def make(dice: Dice) -> bytes:
        found = [as_text(mutated_json(dice.pick(lines), dice), dice) for _ in range(1 + dice.below(3))]
        return b"\n".join(row.replace(b"\n", b" ") for row in found)

    def read_rows(data: bytes) -> None:
        path.write_bytes(data)
        read_examples(path)

    made["examples: rows"] = Target(8, make, read_rows)
    return made


def _one_more(path: Path, rows: Sequence[Example]) -> bytes:
    write_examples(path, [*rows, Example("cy", 'he said "no"\n', "no", -1.5)])
    return path.read_bytes()


def _texts(folder: Path) -> dict[str, Target]:
    path = folder / "texts.txt"
    seeds = (b"a slow film\r\nnot good\n", "\ufeffeins\nzw\u2028ei\n\n".encode(), b"one")

    def read(data: bytes) -> None:
        path.write_bytes(data)
        file_texts(path)

    return {"texts": Target(5, _of_bytes(seeds, text_mutated), read, seeds=seeds)}


@final
class _Npy:
    """An array as Flower carries it: bytes that numpy wrote."""

    def __init__(self, data: bytes):
        self.data, self.stype = data, NPY


def _npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _messages(folder: Path) -> dict[str, Target]:
    told = manifest()
    arrays = {name: np.full(shape, 0.25, np.float32) for name, shape in TRAINABLES.items()}
    settings = LocalSettings(clip=2.0, example_cap=20, tell_within=True, recipe=LearningRecipe(steps=3))
    task = RoundTask(told.release_id, 3, -7, "train", settings, arrays)
    replies: dict[str, tuple[Any, Callable[[Wire], object]]] = {
        "task": (task, lambda wire: read_task(wire, told)),
        "contribution": (
            Contribution(told.release_id, 3, arrays, 5, 0.5, within=False),
            lambda wire: read_contribution(wire, told, task),
        ),
        "evaluation": (
            EvaluationReply(told.release_id, 3, 1, 2, 0.5),
            lambda wire: read_evaluation(wire, told, task),
        ),
        "hello": (Hello(7), read_hello),
        "gain question": (GainQuestion(told.release_id), read_gain_question),
        "gain": (
            GainReport(told.release_id, -1500),
            lambda wire: read_gain(wire, GainQuestion(told.release_id)),
        ),
    }
    shares = {"task": 8.0, "contribution": 6.0, "evaluation": 3.0}
    return {
        f"message: {name}": Target(shares.get(name, 2.0), _of_wire(own.wire()), _of(read))
        for name, (own, read) in replies.items()
    }


def _of(read: Callable[[Wire], object]) -> Callable[[bytes], object]:
    return lambda data: read(_wire(data))


def _of_wire(wire: Wire) -> Input:
    """Changes config or arrays; a message is one line of JSON here, each array the bytes that travel."""
    arrays = {name: _npy(array) for name, array in wire.arrays.items()}
    odd = [
        _npy(np.zeros(shape, kind))
        for shape, kind in (((2, 3), "f8"), ((2,), "f4"), ((), "c16"), ((0,), "S3"))
    ]
    seeds = [*arrays.values(), *odd, _npy(np.array([np.nan, np.inf], np.float32))]

    def make(dice: Dice) -> bytes:
        config: Any = dict(wire.config)
        own = dict(arrays)
        if not own or not dice.one_in(3):
            config = mutated_json(config, dice)
            config = config if isinstance(config, dict) else {"schema": config}
        if own and dice.one_in(2):
            name = dice.pick(list(own))
            action = dice.below(4)
            if action == 0:
                del own[name]
            elif action == 1:
                own[dice.pick(("extra", "\ud800", "x" * 500))] = dice.pick(seeds)
            elif action == 2:
                own[name] = dice.pick(seeds)
            else:
                own[name] = mutated(own[name], seeds, dice)
        row = {"config": config, "arrays": {n: base64.b64encode(a).decode() for n, a in own.items()}}
        return json.dumps(row).encode()

    return make


def _wire(data: bytes) -> Wire:
    row = json.loads(data)
    return Wire.of({name: _Npy(base64.b64decode(own)) for name, own in row["arrays"].items()}, row["config"])


def _sealed(folder: Path) -> dict[str, Target]:
    sealer = Sealer(_KEY)
    pieces = (sealer.seal(b"one", "log/1"), sealer.seal(b"x" * 200, "log/1"), sealer.seal(b"one", "log/2"))
    export = folder / "export"
    cheap, keys._SCRYPT = keys._SCRYPT, {"n": 2, "r": 8, "p": 1}  # a seed that opens at once
    try:
        kept = Exported("number", (Entry("one", "yes", _NOW), Entry("two", None, _NOW)), {OWNER: _profile()})
        write_export(export, kept, lambda: _WORDS)
        wrapped = wrap(_KEY, Passphrase(lambda: _WORDS), "number")
    finally:
        keys._SCRYPT = cheap
    seeds = (export.read_bytes(),)
    key = folder / "key"

    def read_file(data: bytes) -> None:
        export.write_bytes(data)
        read_export(export, lambda: _WORDS)

    def read_key(data: bytes) -> None:
        key.write_bytes(data)
        key.chmod(0o600 if len(data) % 3 else 0o644)
        assert len(KeyFile(key).read({})) == 32

    return {
        "sealed piece": Target(6, _of_bytes(pieces), lambda data: sealer.open(data, "log/1"), seeds=pieces),
        "key file": Target(2, _of_bytes((_KEY, b"", b"k" * 33)), read_key),
        "wrapped key": Target(
            0.3, _of_json([wrapped]), lambda data: _unwrapped(_row(data)), heavy=True
        ),  # scrypt
        "export": Target(0.5, _of_bytes(seeds), read_file, heavy=True, seeds=seeds),  # scrypt
        "export: contents": Target(3, *_contents(export, seeds[0])),
    }


def _profile() -> KeptProfile:
    about = {"how": "learned", "at": _NOW, "state": "", "examples": 2}
    return KeptProfile(pack_profile(SPEC, SPEC.zeros(1), OWNER), about)


def _unwrapped(kept: object) -> None:
    if isinstance(kept, dict):  # the store has looked before
        unwrap(kept, Passphrase(lambda: _WORDS), "number")


def _contents(export: Path, data: bytes) -> tuple[Input, Callable[[bytes], object]]:
    """Exports whose seal is right and whose contents are not: what another umbel might write."""
    length = int.from_bytes(data[4:8], "big")
    head = data[: 8 + length]
    key = unwrap(json.loads(head[8:])["key"], Passphrase(lambda: _WORDS), "number")
    sealer = Sealer(key)
    row: dict[str, Any] = {
        "entries": [["one", "yes", _NOW], ["two", None, _NOW]],
        "profiles": {OWNER: {"packed": "00", "about": {}}},
    }
    row["profiles"][OWNER]["about"] = dict(_profile().about)

    def read(piece: bytes) -> None:
        export.write_bytes(head + sealer.seal(piece, "export/number"))
        read_export(export, lambda: _WORDS)

    return _of_json([row]), read


def _stores(folder: Path) -> dict[str, Target]:
    home = folder / "home"
    shutil.rmtree(home, ignore_errors=True)

    def holders(kind: str, number: str) -> KeyHolder:
        if kind != "file":
            raise StoreError("nobody knows who holds the key")
        return KeyFile(home / "key")

    with Store.create(
        home / "store.sqlite", "file", holders, {"release": OWNER}, {"what": "enrolled"}
    ) as store:
        store.add([Entry(f"text {n}", ("yes", None)[n % 2], _NOW) for n in range(12)])
        store.save_profile(OWNER, _profile())
    seeds = ((home / "store.sqlite").read_bytes(),)

    def read(data: bytes) -> None:
        for ending in ("-wal", "-shm", "-journal"):
            (home / f"store.sqlite{ending}").unlink(missing_ok=True)
        (home / "store.sqlite").write_bytes(data)
        with Store.open(home / "store.sqlite", holders) as store:
            for look in (store.entries, store.profiles, store.log, store.counts, store.state, store.erasures):
                look()
            store.setting("release")
            store.add([Entry("more", "no", _NOW)], None, {"what": "added"})

    return {
        "store file": Target(0.8, _of_bytes(seeds), read, heavy=True, seeds=seeds),
        "store cells": Target(0.8, _cells(folder / "cells.sqlite", seeds[0]), read, heavy=True),
    }


_CELLS = (
    "UPDATE entries SET mark = ? WHERE id = 3", "UPDATE entries SET sealed = ? WHERE id = 3",
    "UPDATE entries SET labelled = ? WHERE id = 3", "UPDATE profiles SET sealed = ?",
    "UPDATE profiles SET release = ?",
    "UPDATE log SET sealed = ?", "UPDATE meta SET value = ? WHERE name = 'key'",
    "UPDATE meta SET value = ? WHERE name = 'store'",
    "INSERT OR REPLACE INTO meta VALUES ('erasures', ?)",
    "UPDATE meta SET value = ? WHERE name = 'own release'",
    "UPDATE entries SET id = ? WHERE id = 2", "INSERT INTO log (sealed) VALUES (?)", "UPDATE log SET id = ?",
    "INSERT OR REPLACE INTO meta VALUES (?, x'00')", "INSERT INTO profiles VALUES (?, x'00')",
)  # fmt: skip


def _cells(path: Path, data: bytes) -> Input:
    """Changes whole cells of a store that SQLite itself finds right."""
    with closing(sqlite3.connect(path)) as fresh:
        fresh.close()
    values = (
        None,
        0,
        -1,
        2**63 - 1,
        1.5,
        float("inf"),
        "",
        "text",
        "[" * 5000,
        "\x00",
        b"",
        b"\xff" * 9,
        bytes(40),
        b"{}",
        b"[]",
    )

    def make(dice: Dice) -> bytes:
        path.write_bytes(data)
        with closing(sqlite3.connect(path, isolation_level=None)) as raw:
            raw.execute("PRAGMA synchronous = OFF")
            raw.execute("PRAGMA journal_mode = DELETE").fetchall()
            for _ in range(1 + dice.below(2)):
                row = raw.execute("SELECT value FROM meta WHERE name = 'key'").fetchone()
                kept = [as_text(mutated_json(json.loads(row[0]), dice))] if row and _is_json(row[0]) else []
                with suppress(sqlite3.Error):
                    raw.execute(dice.pick(_CELLS), (dice.pick((*values, *kept, *kept)),))
        return path.read_bytes()

    return make


def _is_json(value: object) -> bool:
    try:
        return isinstance(value, bytes) and isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False


@final
class _Memory(AbstractSource):
    """A channel that lies in memory."""

    def __init__(self, files: Mapping[str, bytes]):
        self._files = files

    def open(self, name: str, start: int = 0) -> Begun:
        if name not in self._files:
            raise AbsentError(f"there is no {name}")
        return start, iter([self._files[name][start:]])


def _channels(folder: Path) -> dict[str, Target]:
    """A channel of which one file is not as its publisher wrote it; the root is pinned."""
    published, place = folder / "channel", folder / "trust"
    shutil.rmtree(published, ignore_errors=True)
    publisher = Publisher(published, folder / "keys")
    publisher.channel.create()
    publisher.channel.add(plain_release(folder / "plain", "words"))
    files = {
        str(path.relative_to(published)): path.read_bytes() for path in published.rglob("*") if path.is_file()
    }
    names = sorted(name for name in files if name.startswith("metadata/") or name.endswith(".json"))
    root = files["metadata/1.root.json"]
    rows = {name: json.loads(files[name]) for name in names}

    def make(dice: Dice) -> bytes:
        name: str = dice.pick(names)
        changed = _of_json([rows[name]])(dice)
        return name.encode() + b"\n" + changed

    def read(data: bytes) -> None:
        name, _, changed = data.partition(b"\n")
        source = _Memory({**files, name.decode(): changed})
        shutil.rmtree(place, ignore_errors=True)
        look(source, root, place)
        pinned_root(source, Pin(first_use=True))

    return {"channel": Target(1, make, read, heavy=True)}


def _natives(folder: Path) -> dict[str, Target]:
    """What other people's native code reads; a release's hashes keep changed bytes from it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, "good": 1, "film": 2}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    row = json.loads(tokenizer.to_str())
    return {
        "tokenizer": Target(
            0.3,
            _of_json([row]),
            lambda data: TextEncoder(data, 16).encode(["good film", "\u202e", ""]),
            heavy=True,
        )
    }
