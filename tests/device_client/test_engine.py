"""The engine on a real small release, and on releases whose hashes are right and whose content is not."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load, save

from umbel.device_client.engine import Engine
from umbel.shared.errors import ReleaseError
from umbel.shared.files import sha256_bytes
from umbel.shared.profile import FloatArray, ProfileSpec, TensorSpec
from umbel.shared.release import Blob, Manifest, Release, read_release, write_release
from umbel.shared.rng import generator
from umbel.shared.text import IntArray, TokenBatch

pytestmark = pytest.mark.full  # the small release is made with torch

TEXTS = ("a slow tender film", "good book", "they like the very bad film", "not good")
OWNER = np.array([0, 1, 1, 0])
Change = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def engine(tiny_release: Release) -> Engine:
    return Engine(tiny_release)


def profiles(engine: Engine, users: int) -> dict[str, FloatArray]:
    rng = generator(0, 0, "", "test profiles")
    zeros = engine.release.manifest.profile.zeros(users)
    return {name: rng.normal(0, 1, value.shape).astype(np.float32) for name, value in zeros.items()}


def labels_of(count: int) -> IntArray:
    return np.arange(count) % 2


def forged(
    release: Release, folder: Path, changes: dict[str, Change], manifest: dict[str, Any] | None = None
) -> Release:
    """Writes a release whose every hash is right although its content is not."""
    blobs = {name: release.blob_path(name).read_bytes() for name in release.manifest.blobs}
    blobs |= {name: change(blobs[name]) for name, change in changes.items()}
    described = {name: Blob(sha256_bytes(data), len(data)) for name, data in blobs.items()}
    made: Manifest = replace(release.manifest, **(manifest or {}), blobs=described)
    return write_release(folder, made, blobs)


def refusal(release: Release) -> ReleaseError:
    """Opens a release and uses all of it; the error that this ends in."""

    def use() -> None:
        engine = Engine(release)
        tokens, zeros = engine.encode(TEXTS), engine.release.manifest.profile.zeros(2)
        engine.predict(tokens, OWNER, zeros, {})
        engine.learn(tokens, labels_of(4), OWNER, zeros, {})
        engine.contribute(tokens, labels_of(4), OWNER, zeros, {})

    with pytest.raises(ReleaseError) as caught:
        use()
    return caught.value


def test_the_encoder_is_mapped_and_nothing_else_is_looked_for(
    tiny_release: Release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Graphs find the encoder's blob from whatever folder; a device gives them the other weights, no more."""
    given: list[str] = []
    add = onnxruntime.SessionOptions.add_external_initializers

    def noted(self: Any, names: list[str], values: list[Any]) -> None:
        given.extend(names)
        add(self, names, values)

    monkeypatch.setattr(onnxruntime.SessionOptions, "add_external_initializers", noted)
    monkeypatch.chdir(tmp_path)
    engine = Engine(tiny_release)
    engine.predict(engine.encode(TEXTS), OWNER, profiles(engine, 2), {})
    assert given
    assert not [name for name in given if name.startswith("encoder.")]


def test_an_encoder_of_another_layout_is_refused(tiny_release: Release, tmp_path: Path) -> None:
    """The graph names a blob that is not there: it must never read another one in its place."""

    def longer(data: bytes) -> bytes:
        tensors = load(data)
        return save({"encoder.another": np.zeros(3, np.float32), **tensors})

    found = refusal(forged(tiny_release, tmp_path, {"backbone.safetensors": longer}))
    assert "does not name the encoder's blob" in str(found)
    assert "publish it again" in str(found)


@pytest.mark.parametrize("same_name", [True, False])
def test_blobs_may_be_links(tiny_release: Release, tmp_path: Path, same_name: bool) -> None:
    """As in a store that keeps every file once, whatever it calls them there."""
    linked, store = tmp_path / "release", tmp_path / "store"
    (linked / "blobs").mkdir(parents=True)
    store.mkdir()
    shutil.copy(tiny_release.folder / "manifest.json", linked)
    for number, blob in enumerate(sorted((tiny_release.folder / "blobs").iterdir())):
        target = store / (blob.name if same_name else f"object-{number}")
        shutil.copy(blob, target)
        (linked / "blobs" / blob.name).symlink_to(target)
    one, other = Engine(tiny_release), Engine(read_release(linked))
    profile = profiles(one, 2)
    found = [each.predict(each.encode(TEXTS), OWNER, profile, {}) for each in (one, other)]
    np.testing.assert_array_equal(found[0], found[1])


def test_logits_nll_and_gradients_agree_with_each_other(engine: Engine) -> None:
    tokens, profile = engine.encode(TEXTS), profiles(engine, 2)
    logits = engine.predict(tokens, OWNER, profile, {})
    nll, private = engine.learn(tokens, labels_of(4), OWNER, profile, {})
    again, shared = engine.contribute(tokens, labels_of(4), OWNER, profile, {})
    assert logits.shape == (4, 2)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert nll == pytest.approx(-np.log(chances[np.arange(4), labels_of(4)]), rel=1e-5)
    assert np.array_equal(nll, again)
    assert {name: g.shape for name, g in private.items()} == {"plora.user": (2, 8)}
    assert {name: g.shape for name, g in shared.items()} == dict(engine.release.manifest.trainables)
    wanted = (chances - np.eye(2)[labels_of(4)]).sum(0)  # d nll / d bias of the head
    assert shared["task.bias"] == pytest.approx(wanted, abs=1e-5)


def test_the_private_gradient_is_the_slope_of_the_nll(engine: Engine) -> None:
    """Central differences: h^2 and float32 rounding / h are both about 1e-3 of the slope at h = 0.02."""
    tokens, profile = engine.encode(TEXTS), profiles(engine, 2)
    _, gradient = engine.learn(tokens, labels_of(4), OWNER, profile, {})
    direction = gradient["plora.user"] / np.linalg.norm(gradient["plora.user"])
    step = np.float32(0.02) * direction
    high, low = (
        engine.learn(tokens, labels_of(4), OWNER, {"plora.user": profile["plora.user"] + s}, {})[0].sum()
        for s in (step, -step)
    )
    assert (high - low) / 0.04 == pytest.approx(np.linalg.norm(gradient["plora.user"]), rel=5e-3)


def test_users_in_one_batch_have_the_numbers_that_they_have_alone(engine: Engine) -> None:
    tokens, profile = engine.encode(TEXTS), profiles(engine, 2)
    logits = engine.predict(tokens, OWNER, profile, {})
    for user in range(2):
        own = np.flatnonzero(user == OWNER)
        alone = {name: values[user : user + 1] for name, values in profile.items()}
        assert engine.predict(tokens.rows(own), np.zeros(len(own), np.int64), alone, {}) == pytest.approx(
            logits[own], abs=1e-5
        )


def test_other_values_of_trainables_count_for_one_call_only(engine: Engine) -> None:
    tokens, zeros = engine.encode(TEXTS), engine.release.manifest.profile.zeros()
    owner = np.zeros(4, np.int64)
    before = engine.predict(tokens, owner, zeros, {})
    moved = {"task.bias": engine.trainables()["task.bias"] + np.array([1, 0], np.float32)}
    one = np.array([1, 0], np.float32)
    assert engine.predict(tokens, owner, zeros, moved) == pytest.approx(before + one, abs=1e-5)
    assert np.array_equal(engine.predict(tokens, owner, zeros, {}), before)
    assert np.array_equal(engine.predict(tokens, owner, zeros, engine.trainables()), before)


@pytest.mark.parametrize("seq", [1, 2, 3, 60])
def test_any_length_that_positions_allow(engine: Engine, seq: int) -> None:
    ids = np.full((1, seq), 4, np.int64)
    zeros, owner = engine.release.manifest.profile.zeros(), np.zeros(1, np.int64)
    tokens = TokenBatch(ids, np.ones_like(ids))
    assert np.isfinite(engine.predict(tokens, owner, zeros, {})).all()
    nll, gradient = engine.learn(tokens, labels_of(1), owner, zeros, {})
    assert nll.shape == (1,)
    assert np.isfinite(gradient["plora.user"]).all()


def test_padding_changes_nothing(engine: Engine) -> None:
    tokens, profile = engine.encode(TEXTS[1:2]), profiles(engine, 1)
    wide = [np.pad(array, ((0, 0), (0, 5))) for array in (tokens.ids, tokens.mask)]
    owner = np.zeros(1, np.int64)
    assert engine.predict(TokenBatch(*wide), owner, profile, {}) == pytest.approx(
        engine.predict(tokens, owner, profile, {}), abs=1e-5
    )


def without(name: str) -> Change:
    return lambda data: save({n: v for n, v in load(data).items() if n != name})


def with_tensor(name: str, value: Any) -> Change:
    return lambda data: save({**load(data), name: value})


WORD_EMBEDDINGS = "encoder.embeddings.word_embeddings.weight"


@pytest.mark.parametrize("name", ["predict.onnx", "learn.onnx", "contribute.onnx"])
@pytest.mark.parametrize("data", [b"", b"no graph", b"\x08\x0a"])
def test_a_graph_that_is_none(tiny_release: Release, tmp_path: Path, name: str, data: bytes) -> None:
    error = refusal(forged(tiny_release, tmp_path, {name: lambda _: data}))
    assert error.headline.startswith(f"graph '{name.removesuffix('.onnx')}' of the release ")


@pytest.mark.parametrize("name", ["backbone.safetensors", "shared.safetensors"])
def test_weights_that_are_none(tiny_release: Release, tmp_path: Path, name: str) -> None:
    error = refusal(forged(tiny_release, tmp_path, {name: lambda _: b"not weights"}))
    assert list(error.problems) == [f"{name} cannot be read (SafetensorError)"]


def test_a_tokenizer_that_is_none(tiny_release: Release, tmp_path: Path) -> None:
    error = refusal(forged(tiny_release, tmp_path, {"tokenizer.json": lambda _: b"{}"}))
    assert error.headline == "the tokenizer cannot be read"


def test_a_missing_weight_is_never_looked_for_elsewhere(
    tiny_release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs name files; those of these names where the process runs are none of the release's."""
    encoder, shared = (
        tiny_release.blob_path(name) for name in ("backbone.safetensors", "shared.safetensors")
    )
    (tmp_path / encoder.name).write_bytes(encoder.read_bytes())
    (tmp_path / "shared.safetensors").write_bytes(shared.read_bytes())
    monkeypatch.chdir(tmp_path)
    release = forged(tiny_release, tmp_path / "a", {"backbone.safetensors": without(WORD_EMBEDDINGS)})
    assert refusal(release).headline == "graph 'predict' of the release does not name the encoder's blob"
    fixed = sorted(set(load(shared.read_bytes())) - set(tiny_release.manifest.trainables))[0]
    error = refusal(forged(tiny_release, tmp_path / "b", {"shared.safetensors": without(fixed)}))
    assert error.headline == "graph 'predict' of the release cannot be opened"
    assert fixed in str(error)


def test_weights_of_another_kind(tiny_release: Release, tmp_path: Path) -> None:
    changes = {
        "backbone.safetensors": with_tensor(WORD_EMBEDDINGS, np.zeros((18, 32), np.float64)),
        "shared.safetensors": with_tensor(WORD_EMBEDDINGS, np.zeros((18, 32), np.float32)),
    }
    assert list(refusal(forged(tiny_release, tmp_path, changes)).problems) == [
        f"backbone.safetensors: '{WORD_EMBEDDINGS}' is float64, not float32",
        f"shared.safetensors: '{WORD_EMBEDDINGS}' is in both weights files",
    ]


def test_trainables_that_the_weights_have_not(tiny_release: Release, tmp_path: Path) -> None:
    shapes = dict(tiny_release.manifest.trainables) | {"task.bias": (3,), "task.other": (1,)}
    assert list(refusal(forged(tiny_release, tmp_path, {}, {"trainables": shapes})).problems) == [
        "trainable 'task.bias' is of shape (2,) in the weights, expected shape (3,)",
        "trainable 'task.other' is nowhere in the weights, expected shape (1,)",
    ]


def test_a_frozen_weight_that_the_manifest_calls_trainable(tiny_release: Release, tmp_path: Path) -> None:
    """What a device works on in a round must be an input of the graphs."""
    shapes = dict(tiny_release.manifest.trainables) | {WORD_EMBEDDINGS: (18, 32)}
    error = refusal(forged(tiny_release, tmp_path, {}, {"trainables": shapes}))
    assert list(error.problems) == [f"missing trainable: {WORD_EMBEDDINGS}"]


def test_a_trainable_that_the_manifest_does_not_name(tiny_release: Release, tmp_path: Path) -> None:
    shapes = {n: s for n, s in tiny_release.manifest.trainables.items() if n != "task.bias"}
    error = refusal(forged(tiny_release, tmp_path, {}, {"trainables": shapes}))
    assert list(error.problems) == ["unknown trainable: task.bias"]


@pytest.mark.parametrize(
    ("spec", "problems"),
    [
        (
            [TensorSpec("plora.user", (9,))],
            ["input plora.user is tensor(float) ['users', 8], expected tensor(float) [None, 9]"],
        ),
        ([TensorSpec("other", (8,))], ["unknown input: plora.user", "missing input: other"]),
        ([TensorSpec("plora.user", (8,)), TensorSpec("more", ())], ["missing input: more"]),
        ([], ["unknown input: plora.user"]),
    ],
)
def test_a_profile_that_is_not_the_graphs(
    tiny_release: Release, tmp_path: Path, spec: list[TensorSpec], problems: list[str]
) -> None:
    error = refusal(forged(tiny_release, tmp_path, {}, {"profile": ProfileSpec(tuple(spec))}))
    assert error.headline == "graph 'predict' of the release is not what its manifest says"
    assert list(error.problems) == problems


def test_more_labels_than_logits(tiny_release: Release, tmp_path: Path) -> None:
    error = refusal(forged(tiny_release, tmp_path, {}, {"labels": ("no", "yes", "both")}))
    assert list(error.problems) == [
        "output logits is tensor(float) ['batch', 2], expected tensor(float) [None, 3]"
    ]


def test_graphs_in_each_others_place(tiny_release: Release, tmp_path: Path) -> None:
    predict = tiny_release.blob_path("predict.onnx").read_bytes()
    error = refusal(forged(tiny_release, tmp_path, {"learn.onnx": lambda _: predict}))
    assert error.headline == "graph 'learn' of the release is not what its manifest says"
    assert "missing input: labels" in error.problems
    assert "missing output: grad.plora.user" in error.problems


def test_what_breaks_while_running_says_nothing_of_the_text(
    engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    """onnxruntime's own message holds the token; it must reach neither the error nor the terminal."""
    token = 987_654
    tokens = TokenBatch(np.full((1, 2), token, np.int64), np.ones((1, 2), np.int64))
    with pytest.raises(ReleaseError, match="graph 'predict' of the release cannot be run") as caught:
        engine.predict(tokens, np.zeros(1, np.int64), engine.release.manifest.profile.zeros(), {})
    shown = capfd.readouterr()
    assert str(token) not in str(caught.value) + shown.out + shown.err
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_texts_longer_than_the_release_takes_are_cut(engine: Engine) -> None:
    tokens = engine.encode(["good " * 1000])
    assert tokens.ids.shape == (1, engine.release.manifest.max_tokens)
