"""A release whose random bank travels as a seed: what it holds, what a device rebuilds, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save
from tests.coordinator.conftest import VOCABULARY, TinyBackbone
from tests.coordinator.personal import LABELS, random_batch, random_profile, trained_with
from tests.numeric import assert_close_relative
from tests.oracles.xpeft import TINY

from umbel.coordinator.artifacts import TrainedModel
from umbel.coordinator.backbone import Backbone
from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.graphs.joint import parameter_arrays
from umbel.coordinator.graphs.parity import TOLERANCE
from umbel.coordinator.graphs.split import weights_file
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.publish import publish_model, publish_update, trainable_names
from umbel.coordinator.server_app import release_trainables
from umbel.device_client.engine import Engine
from umbel.shared.bank import random_bank
from umbel.shared.errors import ConfigError, ReleaseError
from umbel.shared.files import sha256_bytes
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import SHARED_WEIGHTS, Blob, Release, read_release, write_release
from umbel.shared.text import TokenBatch

BANK = {f"methods.xpeft.banks.layer_{n}_feed_forward.{part}" for n in (0, 1) for part in ("down", "up")}
BANK_BYTES = 2 * 2 * 7 * 32 * 8 * 4
"""Two layers, two sides, 7 adapters of 32 x 8 float32."""


def random_model(backbone: Backbone) -> PersonalModel:
    config = validated(CoordinatorConfig, row_of(backbone), "here")
    return trained_with(backbone, config.method_configs())


def row_of(backbone: Backbone, **changes: Any) -> dict[str, Any]:
    methods = {"xpeft": {**TINY, "bank": "random", "bank_seed": 11}}
    return {"backbone": {"name": backbone.name, "max_tokens": 16}, "methods": methods, **changes}


def trained_of(backbone: Backbone, **changes: Any) -> TrainedModel:
    config = validated(CoordinatorConfig, row_of(backbone, **changes), "here")
    return TrainedModel(config, LABELS, backbone.sha256, "f" * 64, LearningRecipe(steps=3), {}, {})


@pytest.fixture(scope="module")
def model(tiny_backbone: TinyBackbone) -> PersonalModel:
    return random_model(tiny_backbone("bert"))


@pytest.fixture(scope="module")
def release(
    tiny_backbone: TinyBackbone, model: PersonalModel, tmp_path_factory: pytest.TempPathFactory
) -> Release:
    """Devices may train all that can be trained: the bank's matrices are left out of "methods.*"."""
    backbone = tiny_backbone("bert")
    trained = trained_of(backbone, trainables=["task.*", "methods.*"])
    return publish_model(model, backbone, trained, tmp_path_factory.mktemp("rebuilt") / "release")


def forged(release: Release, folder: Path, **changes: Any) -> Release:
    """Writes a release with another manifest or other shared weights, every hash right."""
    blobs = {name: release.blob_path(name).read_bytes() for name in release.manifest.blobs}
    blobs |= {SHARED_WEIGHTS: changes.pop("shared")} if "shared" in changes else {}
    described = {name: Blob(sha256_bytes(data), len(data)) for name, data in blobs.items()}
    return write_release(folder, replace(release.manifest, **changes, blobs=described), blobs)


def logits_of(release: Release, seed: int = 0) -> Any:
    batch = random_batch(seed, 4, 7, 2, len(VOCABULARY))
    profile = random_profile(seed, 2, release.manifest.profile)
    tokens = TokenBatch(batch.input_ids, batch.attention_mask)
    return Engine(release).predict(tokens, batch.owner, profile, {})


def test_a_release_is_smaller_by_the_bytes_of_its_bank(model: PersonalModel, release: Release) -> None:
    """And by what the names of the bank's tensors take in the header of the file: less than 600 bytes."""
    shared = {n: a for n, a in parameter_arrays(model).items() if not n.startswith("encoder.")}
    whole = len(weights_file(SHARED_WEIGHTS, shared).data)
    there = release.manifest.blobs[SHARED_WEIGHTS].size_bytes
    assert BANK_BYTES <= whole - there < BANK_BYTES + 600
    held = load_file(release.blob_path(SHARED_WEIGHTS))
    assert held.keys() == shared.keys() - BANK
    assert sum(shared[name].nbytes for name in BANK) == BANK_BYTES
    for name in release.manifest.blobs:  # nor is it anywhere else
        data = release.blob_path(name).read_bytes()
        assert not any(shared[tensor].tobytes()[:64] in data for tensor in BANK), name


def test_a_device_rebuilds_the_bank(model: PersonalModel, release: Release) -> None:
    assert read_release(release.folder).manifest.rebuilt.keys() == BANK
    rebuilt = {name: tensor.values() for name, tensor in release.manifest.rebuilt.items()}
    for name, values in rebuilt.items():
        np.testing.assert_array_equal(values, model.get_parameter(name).detach().numpy())
    wanted = random_bank(11, "layer 1 up", (7, 8, 32), 0.1 * 3**0.5)
    np.testing.assert_array_equal(rebuilt["methods.xpeft.banks.layer_1_feed_forward.up"], wanted)


def test_a_device_predicts_what_the_model_predicts(model: PersonalModel, release: Release) -> None:
    assert max(release.manifest.parity.values()) <= TOLERANCE
    for seed in range(3):
        batch = random_batch(seed, 4, 7, 2, len(VOCABULARY))
        profile = random_profile(seed, 2, release.manifest.profile)
        wanted = model(*batch.tensors(), {n: torch.tensor(v) for n, v in profile.items()})
        assert_close_relative("logits", logits_of(release, seed), wanted.detach().numpy())


@pytest.mark.parametrize("change", [{"seed": 12}, {"deviation": 0.2}, {"part": "layer 0 side"}])
def test_another_seed_is_refused(release: Release, tmp_path: Path, change: dict[str, Any]) -> None:
    name = min(BANK)
    tensor = release.manifest.rebuilt[name]
    other = replace(tensor, source=replace(tensor.source, **change))
    tampered = forged(release, tmp_path, rebuilt={**release.manifest.rebuilt, name: other})
    with pytest.raises(ReleaseError, match="do not fit its manifest") as caught:
        Engine(tampered)
    (problem,) = caught.value.problems
    assert problem.startswith(f"'{name}', rebuilt from its seed: sha256 is ")


def test_a_bank_of_another_shape_is_refused(release: Release, tmp_path: Path) -> None:
    """The same values in the same order, so that the hash is right; the graph says which shape it wants."""
    name = "methods.xpeft.banks.layer_0_feed_forward.down"
    tensor = release.manifest.rebuilt[name]
    other = replace(tensor, source=replace(tensor.source, shape=(7, 8, 32)))
    tampered = forged(release, tmp_path, rebuilt={**release.manifest.rebuilt, name: other})
    with pytest.raises(ReleaseError, match="graph 'predict' of the release cannot be opened"):
        logits_of(tampered)


def test_a_bank_that_is_nowhere_is_refused(release: Release, tmp_path: Path) -> None:
    rest = {n: tensor for n, tensor in release.manifest.rebuilt.items() if n != min(BANK)}
    with pytest.raises(ReleaseError, match="graph 'predict' of the release cannot be opened"):
        logits_of(forged(release, tmp_path, rebuilt=rest))


def test_a_bank_that_is_also_in_a_blob_is_refused(release: Release, tmp_path: Path) -> None:
    held = load_file(release.blob_path(SHARED_WEIGHTS))
    twice = save({**held, min(BANK): release.manifest.rebuilt[min(BANK)].values()})
    with pytest.raises(ReleaseError) as caught:
        Engine(forged(release, tmp_path, shared=twice))
    assert list(caught.value.problems) == [f"'{min(BANK)}' is in a weights file and rebuilt from a seed"]


def test_rounds_leave_the_seed_as_it_is(model: PersonalModel, release: Release, tmp_path: Path) -> None:
    assert release.manifest.trainables.keys() == set(model.shared_names()) - BANK
    values = {name: value * np.float32(1.5) for name, value in release_trainables(release).items()}
    updated = publish_update(release, values, tmp_path / "updated")
    assert updated.manifest.rebuilt == release.manifest.rebuilt
    assert not BANK & load_file(updated.blob_path(SHARED_WEIGHTS)).keys()
    assert not np.allclose(logits_of(updated), logits_of(release))


def test_rounds_never_train_what_a_seed_stands_for(model: PersonalModel) -> None:
    rest = [name for name in model.shared_names() if name not in BANK]
    assert trainable_names(model, ("*",)) == rest
    with pytest.raises(ConfigError) as caught:
        trainable_names(model, ("task.*", "methods.xpeft.banks.*.up", "methods.*.side"))
    assert list(caught.value.problems) == [
        "'methods.xpeft.banks.*.up' matches only tensors that a release holds as a seed or rounded",
        "'methods.*.side' matches nothing",
    ]


def test_a_bank_that_its_seed_did_not_make_is_not_published(
    tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    backbone = tiny_backbone("bert")
    model = random_model(backbone)
    name = max(BANK)
    with torch.no_grad():
        model.get_parameter(name)[3, 1, 4] += 1e-3
    with pytest.raises(ReleaseError, match="are not what their seeds make") as caught:
        publish_model(model, backbone, trained_of(backbone), tmp_path / "release")
    assert list(caught.value.problems) == [name]
    assert not (tmp_path / "release").exists()
