"""A release holds what was trained, and is refused, with nothing written, where graphs and model disagree."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load, load_file
from tests.coordinator.conftest import WORDS
from tests.coordinator.personal import TINY_PLORA, Joint, off_by_a_thousandth, random_batch, random_users

from umbel.coordinator import publish as publishing
from umbel.coordinator.artifacts import DESCRIPTION, MODEL, TrainedModel, load_trained, rebuild, save_trained
from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.graphs.joint import parameter_arrays
from umbel.coordinator.graphs.split import WeightsFile, weights_file
from umbel.coordinator.publish import publish, publish_model, publish_update, trainable_names
from umbel.device_client.engine import Engine
from umbel.shared.errors import ConfigError, ReleaseError, TrainingError
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Release, read_release
from umbel.shared.text import TokenBatch

LABELS = ("awful", "fair", "great")
LOOK = {"step": 5, "loss": 0.7, "heldout_loss": 0.6, "heldout_accuracy": 0.5}
REPORT = {
    "steps": 7,
    "epochs": 1.75,
    "best_step": 5,
    "stopped": "reached max_steps",
    "train_examples": 64,
    "users": 8,
    "calibration_users": 2,
    "curve": [LOOK],
    "recipe_trials": [],
}


def trained_of(joint: Joint, **changes: Any) -> TrainedModel:
    row = {
        "backbone": {"name": joint.backbone.name, "max_tokens": 16},
        "methods": {"plora": TINY_PLORA.model_dump()},
        "trainables": ["task.*", "methods.*"],
    }
    config = validated(CoordinatorConfig, row | changes, "here")
    tensors = {name: joint.model.get_parameter(name).detach() for name in joint.model.shared_names()}
    recipe = LearningRecipe(steps=3)
    return TrainedModel(config, LABELS, joint.backbone.sha256, "f" * 64, recipe, REPORT, tensors)


@pytest.fixture
def _exported(tiny_joint: Joint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The joint graph holds no weights, so that one export serves every model of the same sizes."""
    monkeypatch.setattr(publishing, "export_joint", lambda *_: tiny_joint.proto)


@pytest.fixture
def release(tiny_joint: Joint, tmp_path: Path, _exported: None) -> Release:
    return publish(trained_of(tiny_joint), tmp_path / "release")


def test_a_release_holds_what_was_trained(tiny_joint: Joint, release: Release) -> None:
    assert read_release(release.folder) == release
    manifest = release.manifest
    assert manifest.labels == LABELS
    assert manifest.max_tokens == 16
    assert manifest.parent is None
    assert manifest.recipe == LearningRecipe(steps=3)
    assert manifest.methods == {"plora": TINY_PLORA.model_dump(mode="json")}
    assert manifest.trainables == {
        n: p.shape for n, p in tiny_joint.model.named_parameters() if "encoder." not in n
    }
    assert manifest.profile == tiny_joint.model.profile_spec()
    assert 0 < max(manifest.parity.values()) < 1e-5
    arrays = parameter_arrays(tiny_joint.model)
    written = load_file(release.blob_path("backbone.safetensors")) | load_file(
        release.blob_path("shared.safetensors")
    )
    assert written.keys() == arrays.keys()
    assert all(np.array_equal(written[name], arrays[name]) for name in arrays)
    assert release.blob_path("tokenizer.json").read_bytes() == tiny_joint.backbone.tokenizer_json


def test_a_device_predicts_what_the_model_predicts(tiny_joint: Joint, release: Release) -> None:
    import torch

    batch = random_batch(0, 4, 7, 2, 18)
    profile = {"plora.user": random_users(0, 2, 5)}
    found = Engine(release).predict(
        TokenBatch(batch.input_ids, batch.attention_mask), batch.owner, profile, {}
    )
    wanted = tiny_joint.model(*batch.tensors(), {n: torch.tensor(v) for n, v in profile.items()})
    assert found == pytest.approx(wanted.detach().numpy(), abs=1e-5)


def test_the_manifest_does_not_say_where_the_coordinator_keeps_its_files(
    tiny_joint: Joint, release: Release
) -> None:
    folder = Path(tiny_joint.backbone.name)
    assert folder.is_absolute()
    assert release.manifest.backbone == {
        "name": folder.name,
        "family": "bert",
        "sha256": tiny_joint.backbone.sha256,
    }
    assert str(folder.parent).encode() not in release.manifest.to_bytes()


def test_the_same_training_gives_the_same_release(
    tiny_joint: Joint, release: Release, tmp_path: Path
) -> None:
    again = publish(trained_of(tiny_joint), tmp_path / "again")
    assert again.release_id == release.release_id


@pytest.mark.slow
def test_a_training_gives_one_release_in_every_process(
    tiny_joint: Joint, tmp_path: Path, repository: Path
) -> None:
    """Each process exports anew, with another seed of Python's own hashes."""
    save_trained(tmp_path / "training", trained_of(tiny_joint))
    code = (
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1);"
        "from umbel.coordinator.artifacts import load_trained;"
        "from umbel.coordinator.publish import publish;"
        "print(publish(load_trained(Path(sys.argv[1])), Path(sys.argv[2])).release_id)"
    )
    ids = set()
    for seed in ("1", "2"):
        arguments = [sys.executable, "-c", code, str(tmp_path / "training"), str(tmp_path / seed)]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            arguments, env=environment, capture_output=True, text=True, cwd=repository, check=True
        )
        ids.add(done.stdout.strip())
    assert len(ids) == 1
    assert read_release(tmp_path / "1").release_id in ids


def test_graphs_name_the_encoders_blob(release: Release) -> None:
    """Given nothing of the encoder, a graph finds it: file, offset and length of every tensor are right."""
    blob = release.blob_path("backbone.safetensors")
    values = load_file(blob)
    graph = onnx.load_from_string(release.blob_path("predict.onnx").read_bytes())
    seen = set()
    for tensor in graph.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.name.startswith("encoder."):
            assert place["location"] == blob.name
            start, length = int(place["offset"]), int(place["length"])
            raw = np.frombuffer(blob.read_bytes()[start : start + length], np.float32)
            assert np.array_equal(raw.reshape(tuple(tensor.dims)), values[tensor.name])
            seen.add(tensor.name)
        elif place:
            assert place["location"] == "shared.safetensors"
    assert seen


@pytest.mark.usefixtures("_exported")
def test_another_model_changes_only_what_changed(tiny_joint: Joint, release: Release, tmp_path: Path) -> None:
    trained = trained_of(tiny_joint)
    moved = {**trained.tensors, "task.bias": trained.tensors["task.bias"] + 1}
    other = publish(replace(trained, tensors=moved), tmp_path / "other", parent=release.release_id)
    changed = {n for n, blob in other.manifest.blobs.items() if blob != release.manifest.blobs[n]}
    assert changed == {"shared.safetensors"}
    assert other.manifest.parent == release.release_id


@pytest.mark.usefixtures("_exported")
@pytest.mark.parametrize("place", ["graph", "weights"])
def test_a_release_that_does_not_agree_is_refused(
    tiny_joint: Joint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """One attention scale in the graph, or one entry of one weight, off by a thousandth."""
    if place == "graph":
        wrong = off_by_a_thousandth(tiny_joint.proto)
        monkeypatch.setattr(publishing, "export_joint", lambda *_: wrong)
    else:

        def off(location: str, arrays: Mapping[str, Any]) -> WeightsFile:
            name = next(iter(arrays))
            return weights_file(location, {**arrays, name: arrays[name] * np.float32(1.001)})

        monkeypatch.setattr(publishing, "weights_file", off)
    with pytest.raises(ReleaseError, match="so nothing was published") as caught:
        publish(trained_of(tiny_joint), tmp_path / "release")
    assert any(problem.startswith("predict/logits: relative difference") for problem in caught.value.problems)
    assert not (tmp_path / "release").exists()


@pytest.mark.usefixtures("_exported")
def test_a_refused_release_leaves_the_last_one_as_it_was(
    tiny_joint: Joint, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in release.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(publishing, "measure_parity", lambda *_: {"learn/nll": 0.5})
    with pytest.raises(ReleaseError, match=r"learn/nll: relative difference 5\.00e-01, allowed 1e-05"):
        publish(trained_of(tiny_joint), release.folder)
    assert {path: path.read_bytes() for path in release.folder.rglob("*") if path.is_file()} == before


def test_after_rounds_only_the_shared_weights_change(release: Release) -> None:
    values = {name: np.full(shape, 0.25, np.float32) for name, shape in release.manifest.trainables.items()}
    blobs = {blob.sha256 for blob in release.manifest.blobs.values()}
    updated = publish_update(release, values, release.folder)
    assert read_release(release.folder) == updated
    assert updated.manifest.parent == release.release_id
    own = updated.manifest.blobs
    assert {n for n, blob in own.items() if blob != release.manifest.blobs[n]} == {"shared.safetensors"}
    assert {path.name for path in (release.folder / "blobs").iterdir()} == blobs | {
        own["shared.safetensors"].sha256
    }
    same = replace(
        updated.manifest, parent=None, blobs=release.manifest.blobs, int8=release.manifest.int8
    )  # int8 is measured again
    assert same == release.manifest


def test_a_device_sees_the_values_of_the_rounds(release: Release, tmp_path: Path) -> None:
    engine = Engine(release)
    tokens = engine.encode([" ".join(WORDS[:5]), WORDS[2]])
    owner, profile = np.zeros(2, np.int64), release.manifest.profile.zeros()
    values = {name: value * np.float32(1.5) for name, value in engine.trainables().items()}
    fed = engine.predict(tokens, owner, profile, values)
    assert not np.allclose(fed, engine.predict(tokens, owner, profile, {}))
    updated = publish_update(release, values, tmp_path / "updated")
    assert np.array_equal(Engine(updated).predict(tokens, owner, profile, {}), fed)


def test_values_that_are_not_the_trainables_are_refused(release: Release, tmp_path: Path) -> None:
    shapes = release.manifest.trainables
    first = next(name for name in shapes if name.startswith("methods."))
    bad: dict[str, Any] = {n: np.zeros(shape) for n, shape in shapes.items() if n != "task.bias"}
    bad |= {"task.weight": np.zeros((2, 2)), "task.other": np.zeros(1), first: bad[first] + 1e39}
    with pytest.raises(ReleaseError, match="not the release's trainables") as caught:
        publish_update(release, bad, tmp_path / "updated")
    assert sorted(caught.value.problems) == sorted(
        [
            "missing: task.bias",
            f"{first}: holds values that are not finite",
            "task.weight: shape is (2, 2), expected (3, 32)",
            "unknown: task.other",
        ]
    )
    assert not (tmp_path / "updated").exists()


def test_a_pattern_that_matches_nothing(tiny_joint: Joint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'encoder\.\*' matches nothing"):
        trainable_names(tiny_joint.model, ("task.*", "encoder.*"))
    trained = trained_of(tiny_joint, trainables=["methods.*.C"])
    with pytest.raises(ConfigError, match=r"'methods\.\*\.C' matches nothing"):
        publish_model(tiny_joint.model, tiny_joint.backbone, trained, tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_a_saved_training_comes_back_to_the_same_bits(tiny_joint: Joint, tmp_path: Path) -> None:
    trained = trained_of(tiny_joint)
    save_trained(tmp_path, trained)
    loaded = load_trained(tmp_path)
    assert replace(loaded, tensors={}) == replace(trained, tensors={})
    _, model = rebuild(loaded)
    for name, parameter in tiny_joint.model.named_parameters():
        assert bool((model.get_parameter(name) == parameter).all()), name


def test_a_damaged_training_is_one_error(tiny_joint: Joint, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no finished training"):
        load_trained(tmp_path)
    save_trained(tmp_path, trained_of(tiny_joint))
    data = bytearray((tmp_path / MODEL).read_bytes())
    data[-1] ^= 1
    (tmp_path / MODEL).write_bytes(data)
    with pytest.raises(TrainingError, match="is damaged"):
        load_trained(tmp_path)
    (tmp_path / MODEL).unlink()
    with pytest.raises(TrainingError, match="is damaged"):
        load_trained(tmp_path)


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({"labels": ["fair", "fair", "great"]}, ["labels are not two or more different names"]),
        ({"labels": "fair"}, ["labels is no list of names"]),
        ({"fingerprint": 5}, ["fingerprint is no text"]),
        ({"report": 5}, ["TypeError"]),
        (
            {"report": {}},
            [
                f"report: missing: {name}"
                for name in ("steps", "best_step", "train_examples", "users", "epochs", "stopped", "curve")
            ],
        ),
        (
            {"report": REPORT | {"steps": -1, "epochs": float("inf"), "stopped": None, "curve": []}},
            [
                f"report: {problem}"
                for problem in (
                    "steps is -1, expected an integer from 0 to 9223372036854775807",
                    "epochs is inf, expected a number from 0 to 1e+09",
                    "stopped is no text",
                    "curve is empty",
                )
            ],
        ),
        (
            {"report": REPORT | {"curve": [LOOK, LOOK | {"heldout_accuracy": "high"}]}},
            ["report: look 2 of the curve: heldout_accuracy is high, expected a number from 0 to 1"],
        ),
        ({"report": REPORT | {"curve": [{}]}}, ["KeyError"]),
    ],
)
def test_a_damaged_description_is_told_when_it_is_read(
    tiny_joint: Joint, tmp_path: Path, change: dict[str, Any], problems: list[str]
) -> None:
    save_trained(tmp_path, trained_of(tiny_joint))
    row = json.loads((tmp_path / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(json.dumps(row | change))
    with pytest.raises(TrainingError, match="is damaged") as error:
        load_trained(tmp_path)
    assert list(error.value.problems) == problems


def test_a_description_that_is_nested_without_end_is_damaged(tmp_path: Path) -> None:
    (tmp_path / DESCRIPTION).write_text("[" * 100_000)
    with pytest.raises(TrainingError, match="is damaged") as error:
        load_trained(tmp_path)
    assert error.value.problems == ("NestingError",)


def test_tensors_that_do_not_fit_are_told_together(tiny_joint: Joint) -> None:
    trained = trained_of(tiny_joint)
    tensors = {
        **trained.tensors,
        "task.weight": trained.tensors["task.bias"],
        "other": trained.tensors["task.bias"],
    }
    del tensors["task.bias"]
    with pytest.raises(TrainingError, match="do not fit the model") as caught:
        rebuild(replace(trained, tensors=tensors))
    assert list(caught.value.problems) == [
        "unknown tensor: other",
        "missing tensor: task.bias",
        "task.weight: shape is (3,), expected (3, 32)",
    ]


def test_a_model_file_holds_no_private_tensor(tiny_joint: Joint, tmp_path: Path) -> None:
    save_trained(tmp_path, trained_of(tiny_joint))
    names = load((tmp_path / MODEL).read_bytes())
    assert set(names) == set(tiny_joint.model.shared_names())
