"""A second method in three files goes the whole way, alone and with PLoRA, and nothing else knows of it.

The files are tests/methods/steer.py, its oracle, and one line of `REGISTRY`, for which `registered` stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.builders import LABELS, random_examples, write_devices
from tests.coordinator.conftest import FAMILIES, TinyBackbone, tiny_config, write_backbone
from tests.coordinator.personal import random_batch, trained_with
from tests.coordinator.test_every_method import assert_torch_is_the_oracle, small
from tests.methods.steer import Steer, SteerConfig

from umbel.coordinator.artifacts import TrainedModel, rebuild
from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.graphs.parity import TOLERANCE
from umbel.coordinator.methods import REGISTRY
from umbel.coordinator.model import build_model
from umbel.coordinator.publish import publish, publish_update
from umbel.coordinator.sites import find_sites
from umbel.coordinator.train import train
from umbel.device_client.device import learn_profile
from umbel.device_client.engine import Engine
from umbel.device_client.prediction import predict_texts
from umbel.device_client.profile_file import read_profile
from umbel.shared.errors import ConfigError
from umbel.shared.release import Release
from umbel.simulations.data.splits import UserExamples
from umbel.simulations.engines import RoundSettings, run_rounds
from umbel.simulations.evaluation import evaluate_users

STEER: Mapping[str, Mapping[str, object]] = {"steer": {"spread": 0.5}}
BOTH = {"plora": {"rank": 2, "alpha": 4.0, "user_size": 3}, **STEER}
TENSORS = {"steer": ["steer.gains"], "plora+steer": ["plora.user", "steer.gains"]}
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module", autouse=True)
def registered() -> object:
    """The one line of registration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, "steer", "tests.methods.steer:Steer")
        yield


@dataclass(frozen=True, slots=True)
class Journey:
    """What is left of a training and a release."""

    trained: TrainedModel
    release: Release


@pytest.fixture(scope="module", params=list(TENSORS))
def journey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Journey:
    """Trains a few steps from a configuration as people write it, and publishes."""
    folder = tmp_path_factory.mktemp(request.param.replace("+", "-"))
    backbone = write_backbone(folder / "backbone", tiny_config("bert"))
    methods = STEER if request.param == "steer" else BOTH
    row = {
        "backbone": {"name": str(backbone), "max_tokens": 16},
        "methods": methods,
        "training": {"max_steps": 60, "batch_size": 16, "evaluate_every": 30, "shared_rate": 0.01},
        "recipe": {"steps": [8], "prior_strength": [0.1, 1.0], "k": [4]},
    }
    config = validated(CoordinatorConfig, row, "config")
    examples = [example for n in range(8) for example in random_examples(0, f"user {n}", 24)]
    trained = train(config, examples, folder / "training", threads=1)
    return Journey(trained, publish(trained, folder / "release"))


def test_the_documents_code_is_this_very_method(repository: Path) -> None:
    text = (repository / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    method = (repository / "tests" / "methods" / "steer.py").read_text(encoding="utf-8")
    assert method in blocks


@families
def test_a_new_steer_adds_nothing_without_a_profile(tiny_backbone: TinyBackbone, family: str) -> None:
    backbone = tiny_backbone(family)
    model = build_model(backbone, "classification", LABELS, {"steer": SteerConfig()}, 0).eval()
    batch = random_batch(0, 3, 5, 1, backbone.shape.vocabulary)
    ids, mask, owner = batch.tensors()
    nobody = {"steer.gains": torch.zeros(1, backbone.shape.layers)}
    plain = backbone.module(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(model(ids, mask, owner, nobody), model.task(plain, mask), rtol=0, atol=0)


@families
def test_steer_folds_into_a_plain_model(tiny_backbone: TinyBackbone, family: str) -> None:
    """1e-4: the same sums in another order, through two or three layers in float32."""
    backbone = tiny_backbone(family)
    model = build_model(backbone, "classification", LABELS, {"steer": SteerConfig(spread=1.0)}, 0).eval()
    batch = random_batch(0, 3, 5, 1, backbone.shape.vocabulary)
    gains = torch.linspace(-1.0, 1.0, backbone.shape.layers)
    personal = model(*batch.tensors(), {"steer.gains": gains.unsqueeze(0)})
    generic = model(*batch.tensors(), {"steer.gains": torch.zeros_like(gains).unsqueeze(0)})
    folded = model.folded({"steer.gains": gains})(*batch.tensors(), {})
    torch.testing.assert_close(folded, personal, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(personal, generic, rtol=1e-2, atol=1e-2)


def test_its_equation_in_numpy(tiny_backbone: TinyBackbone) -> None:
    backbone = tiny_backbone("bert")
    model = build_model(backbone, "classification", LABELS, {"steer": SteerConfig()}, 0)
    method = model.methods["steer"]
    assert isinstance(method, Steer)
    gains = np.array([[1.0, 2.0], [-3.0, 0.5]], np.float32)  # (users, L)
    frame = model.frame(torch.ones(3, 4), torch.tensor([1, 0, 1]), {"steer.gains": torch.tensor(gains)})
    for site in find_sites(backbone.module):
        found = method.at_site(site, torch.zeros(3, 4, site.d_in), torch.zeros(3, 4, site.d_out), frame)
        assert (found is not None) == (site.role == "feed_forward")
        if found is not None:
            direction = method.directions[site.name].detach().numpy()  # (d,)
            expected = gains[[1, 0, 1], site.layer, None] * direction
            np.testing.assert_allclose(found.detach().numpy()[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("methods", [("steer",), ("plora", "steer"), ("steer", "plora")], ids="+".join)
def test_its_oracle_agrees(tiny_backbone: TinyBackbone, methods: tuple[str, ...]) -> None:
    configs = {name: small(name) for name in methods}
    model = trained_with(tiny_backbone("bert"), configs)
    for seed, (rows, seq, users) in enumerate([(1, 2, 1), (4, 7, 3)]):
        assert_torch_is_the_oracle(model, rows, seq, users, seed)


def test_training_moves_it_and_building_again_gives_it_back(journey: Journey) -> None:
    config = journey.trained.config
    backbone, model = rebuild(journey.trained)
    new = build_model(backbone, "classification", LABELS, config.method_configs(), config.seed)
    names = [name for name in model.shared_names() if name.startswith("methods.steer.")]
    assert len(names) == backbone.shape.layers
    for name in names:
        assert torch.equal(model.get_parameter(name), journey.trained.tensors[name])
        assert not torch.equal(model.get_parameter(name), new.get_parameter(name))


def test_the_release_knows_it(journey: Journey) -> None:
    manifest = journey.release.manifest
    assert [tensor.name for tensor in manifest.profile.tensors] in list(TENSORS.values())
    assert manifest.methods["steer"]["spread"] == 0.5
    assert manifest.parity["learn/grad.steer.gains"] <= TOLERANCE
    assert max(manifest.parity.values()) <= TOLERANCE


def test_devices_train_none_of_it_in_rounds_unless_asked(journey: Journey) -> None:
    trainables = set(journey.release.manifest.trainables)
    assert {"task.weight", "task.bias"} <= trainables
    assert not [name for name in trainables if name.startswith("methods.steer.")]
    assert any(name.endswith(".A") for name in trainables) == ("plora" in journey.release.manifest.methods)


def test_a_device_learns_and_predicts_with_it(journey: Journey, tmp_path: Path) -> None:
    release, own = journey.release, random_examples(0, "somebody new", 8)
    learned = learn_profile(release, own, tmp_path / "profile.umbel")
    assert learned.nll_personal < learned.nll_generic
    assert learned.file_bytes == release.manifest.profile.file_bytes
    profile = read_profile(release, tmp_path / "profile.umbel")
    assert np.abs(profile["steer.gains"]).max() > 0
    texts = [example.text for example in own]
    mine, plain = (predict_texts(release, texts, path) for path in (tmp_path / "profile.umbel", None))
    assert [row.probability for row in mine] != [row.probability for row in plain]


def test_rounds_and_evaluation_work_with_it(journey: Journey, tmp_path: Path) -> None:
    release = journey.release
    settings = RoundSettings(rounds=1, clients=2, evaluate_clients=2, local_rate=0.5, secure=False)
    reached = run_rounds(
        "serial", release_folder=release.folder, devices_folder=write_devices(tmp_path / "devices", [5, 6]),
        clients_total=2, settings=settings, out=tmp_path / "rounds",
    )  # fmt: skip
    assert [(record.clients, record.failures) for record in reached.rounds] == [(2, 0)]
    updated = publish_update(release, reached.trainables, tmp_path / "next")
    assert updated.manifest.parent == release.release_id
    people = [UserExamples(u, tuple(random_examples(1, u, 4)), tuple(random_examples(2, u, 4))) for u in "ab"]
    found = evaluate_users(Engine(updated), people, [0, 4], query=4, batch_users=2)
    np.testing.assert_array_equal(found[0].personal, found[0].generic)
    assert len(found[4].personal) == 2


def test_its_options_are_checked_under_its_own_name() -> None:
    with pytest.raises(ConfigError) as error:
        validated(CoordinatorConfig, {"methods": {"steer": {"spread": 0, "speed": 1}}}, "config.toml")
    assert error.value.problems == (
        "methods.steer.spread: must be greater than 0 (found 0)",
        "methods.steer.speed: unknown key (found 1)",
    )


def test_private_tensors_of_two_methods_stand_side_by_side(tiny_backbone: TinyBackbone) -> None:
    configs = validated(CoordinatorConfig, {"methods": BOTH}, "config").method_configs()
    model = build_model(tiny_backbone("bert"), "classification", LABELS, configs, 0)
    shapes = {tensor.name: tensor.shape for tensor in model.profile_spec().tensors}
    assert shapes == {"plora.user": (3,), "steer.gains": (2,)}
