"""The graphs that carry a loss on to the onboarding network, and what a release with them promises."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.builders import tiny_training
from tests.oracles.onboarding import mixture_oracle, onboarding_oracle

from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.graphs.onboard import measure_onboarding, onboarding_graphs, parameter_arrays
from umbel.coordinator.graphs.parity import TOLERANCE, open_session
from umbel.coordinator.graphs.split import weights_file
from umbel.coordinator.onboarding.network import Onboarder
from umbel.coordinator.publish import publish_model, publish_update, trainable_names
from umbel.coordinator.train import _fingerprint
from umbel.shared.errors import ConfigError, ReleaseError
from umbel.shared.onboarding import INPUTS, PREFIX, QUERY, TEACH, TOTAL, WANTED
from umbel.shared.profile import ProfileSpec, TensorSpec
from umbel.shared.release import MANIFEST, Release, read_release
from umbel.shared.rng import generator

SPEC = ProfileSpec((TensorSpec("plora.user", (4,)), TensorSpec("lopa.factor", (2, 3))))
SHAPES = {tensor.name: tensor.shape for tensor in SPEC.tensors}
WIDTH, SIZES = 8, {"prototypes": 3, "code_size": 5, "hidden": 6}

Array = np.ndarray[Any, Any]


def network_of(labels: int, seed: int = 0) -> Onboarder:
    config = validated(CoordinatorConfig, {"onboarding": SIZES}, "here").onboarding
    network = Onboarder(config, SPEC, WIDTH, labels, seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = generator(seed, 0, "", f"stir {name}").normal(0.0, 0.3, tuple(parameter.shape))
            parameter.add_(torch.tensor(noise, dtype=torch.float32))
    return network


def case_of(labels: int, texts: int, users: int, asked: int, seed: int) -> dict[str, Array]:
    rng = generator(seed, 0, "", "case")
    known: tuple[Array, ...] = (
        rng.normal(size=(texts, WIDTH)).astype(np.float32),
        rng.normal(size=(texts, labels)).astype(np.float32),
        rng.integers(-1, labels, texts),
        rng.integers(-1, users, texts),
        np.arange(users),
    )
    query: tuple[Array, ...] = (
        rng.normal(size=(asked, WIDTH)).astype(np.float32),
        rng.normal(size=(asked, labels)).astype(np.float32),
        rng.integers(labels, size=asked),
        rng.integers(users, size=asked),
    )
    wanted = {
        WANTED + name: rng.normal(size=(users, *shape)).astype(np.float32) for name, shape in SHAPES.items()
    }
    return dict(zip((*INPUTS, *QUERY), (*known, *query), strict=True)) | wanted


def total(parameters: dict[str, Array], feed: dict[str, Array]) -> float:
    """The slow twin of `teach`: <wanted, profile> and the mixture's nll, in float64."""
    embedding, logits = (feed[name].astype(np.float64) for name in INPUTS[:2])
    labels, owner, owners = (feed[name] for name in INPUTS[2:])
    profile, weights = onboarding_oracle(parameters, SHAPES, embedding, logits, labels, owner, owners)
    pulled = sum(float((feed[WANTED + name] * values).sum()) for name, values in profile.items())
    embedding, logits = (feed[name].astype(np.float64) for name in QUERY[:2])
    rows = zip(embedding, logits, feed[QUERY[2]], feed[QUERY[3]], strict=True)
    return pulled + sum(mixture_oracle(parameters, weights[user], e, own, y) for e, own, y, user in rows)


@pytest.mark.parametrize(("labels", "texts", "users", "asked"), [(2, 1, 1, 1), (3, 6, 2, 5), (4, 5, 4, 3)])
def test_gradients_are_those_of_the_slow_twin(labels: int, texts: int, users: int, asked: int) -> None:
    """Along a random direction of each parameter, by differences of the twin."""
    network = network_of(labels)
    arrays = parameter_arrays(network)
    graphs = onboarding_graphs(network, weights_file("shared.safetensors", arrays), list(arrays))
    feed = case_of(labels, texts, users, asked, 3)
    session = open_session(TEACH, graphs[TEACH], arrays)
    names = [value.name for value in session.get_outputs()]
    found = dict(zip(names, session.run(names, feed), strict=True))
    own = {name.removeprefix(PREFIX): value.astype(np.float64) for name, value in arrays.items()}
    assert found[TOTAL] == pytest.approx(total(own, feed), rel=1e-5, abs=1e-5)
    for name, value in own.items():
        direction = generator(0, 0, "", name).normal(size=value.shape)
        step = 1e-6
        up, down = (total({**own, name: value + sign * step * direction}, feed) for sign in (1, -1))
        slope = float((found[f"grad.{PREFIX}{name}"] * direction).sum())
        assert slope == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-4), name


def test_a_graph_that_is_wrong_is_found_out() -> None:
    network, other = network_of(2), network_of(2, seed=1)
    arrays = parameter_arrays(network)
    file = weights_file("shared.safetensors", arrays)
    graphs = onboarding_graphs(network, file, list(arrays))
    right = measure_onboarding(network, graphs, arrays)
    assert max(right.values()) < TOLERANCE
    assert {name for name in right if name.startswith("teach/grad.")} == {f"teach/grad.{n}" for n in arrays}
    wrong = measure_onboarding(other, graphs, arrays)
    assert min(wrong.values()) > TOLERANCE


def test_some_parameters_alone_can_be_taught() -> None:
    network = network_of(2)
    arrays = parameter_arrays(network)
    names = [f"{PREFIX}heads.plora__user"]
    graphs = onboarding_graphs(network, weights_file("shared.safetensors", arrays), names)
    session = open_session(TEACH, graphs[TEACH], arrays)
    assert [value.name for value in session.get_outputs()] == [TOTAL, f"grad.{names[0]}"]
    assert [value.name for value in session.get_overridable_initializers()] == names
    assert max(measure_onboarding(network, graphs, arrays).values()) < TOLERANCE


def test_a_release_says_what_rounds_train(taught_release: Release, onboarding_release: Release) -> None:
    manifest = taught_release.manifest
    lessons = {name for name in manifest.trainables if name.startswith(PREFIX)}
    assert len(lessons) == 15 + len(manifest.profile.tensors)
    assert set(manifest.blobs) - set(onboarding_release.manifest.blobs) == {"teach.onnx"}
    assert {n.removeprefix("teach/grad.") for n in manifest.parity if n.startswith("teach/grad.")} == lessons
    assert not any(name.startswith(PREFIX) for name in onboarding_release.manifest.trainables)


def test_a_release_that_contradicts_itself_is_refused(taught_release: Release, tmp_path: Path) -> None:
    row = json.loads(taught_release.manifest.to_bytes())
    (tmp_path / "blobs").symlink_to(taught_release.folder / "blobs")
    plain = {name: shape for name, shape in row["trainables"].items() if not name.startswith(PREFIX)}
    without = {name: blob for name, blob in row["blobs"].items() if name != "teach.onnx"}
    for other in ({**row, "trainables": plain}, {**row, "blobs": without}):
        data = json.dumps(other, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (tmp_path / MANIFEST).write_text(data, encoding="utf-8")
        with pytest.raises(ReleaseError) as found:
            read_release(tmp_path)
        assert any("rounds train onboarding" in problem for problem in found.value.problems)


def test_what_is_shown_follows_the_prototypes(taught_release: Release, tmp_path: Path) -> None:
    """After rounds each prototype is shown by the texts that it tells apart now, of those that were shown."""
    manifest = taught_release.manifest
    assert manifest.onboarding is not None
    values = {name: np.zeros(shape, np.float32) for name, shape in manifest.trainables.items()}
    bias = np.zeros(manifest.trainables[f"{PREFIX}judge_bias"], np.float32)
    bias[:, 0], bias[2] = 1.0, [0.0, 3.0]  # prototype 2 says "yes", all others say "no"
    values[f"{PREFIX}judge_bias"] = bias
    after = publish_update(taught_release, values, tmp_path).manifest.onboarding
    assert after is not None
    texts = {example.text for row in manifest.onboarding.prototypes for example in row}
    for number, row in enumerate(after.prototypes):
        assert {example.label for example in row} == {"yes" if number == 2 else "no"}
        assert {example.text for example in row} == texts == {"good film", "bad book"}


def test_rounds_that_leave_onboarding_alone_leave_what_is_shown(
    onboarding_release: Release, tmp_path: Path
) -> None:
    manifest = onboarding_release.manifest
    values = {name: np.zeros(shape, np.float32) for name, shape in manifest.trainables.items()}
    assert publish_update(onboarding_release, values, tmp_path).manifest.onboarding == manifest.onboarding


def test_what_shows_nothing_goes_on_showing_nothing(tmp_path: Path) -> None:
    model, backbone, trained = tiny_training(tmp_path, True, True)
    bare = replace(trained, report={})
    release = publish_model(model, backbone, bare, tmp_path / "release")
    values = {name: np.ones(shape, np.float32) for name, shape in release.manifest.trainables.items()}
    after = publish_update(release, values, tmp_path / "after").manifest.onboarding
    assert after is not None
    assert after.prototypes == ((),) * 5


def test_the_configuration_says_whether_rounds_train_it() -> None:
    def config(**onboarding: Any) -> CoordinatorConfig:
        return validated(CoordinatorConfig, {"onboarding": onboarding}, "here")

    assert "onboarding.*" in config(steps=3, rounds=True).trainables
    assert "onboarding.*" not in config(steps=3).trainables
    with pytest.raises(ConfigError, match="steps = 0"):
        config(rounds=True)


def test_patterns_reach_the_network_only_if_there_is_one(tmp_path: Path) -> None:
    model, _, _ = tiny_training(tmp_path, False, False)
    names = [f"{PREFIX}first", f"{PREFIX}heads.plora__user"]
    assert trainable_names(model, ("onboarding.heads.*",), names) == names[1:]
    assert not set(trainable_names(model, ("*",), names)) & set(names)  # only by their own prefix
    with pytest.raises(ConfigError):
        trainable_names(model, ("onboarding.*",))


def test_a_training_is_the_same_whether_rounds_go_on_with_it(tmp_path: Path) -> None:
    _, backbone, trained = tiny_training(tmp_path, True, False)
    taught = trained.config.model_copy(
        update={"onboarding": trained.config.onboarding.model_copy(update={"rounds": True})}
    )
    longer = trained.config.model_copy(
        update={"onboarding": trained.config.onboarding.model_copy(update={"steps": 9})}
    )
    prints = [_fingerprint(config, [], backbone) for config in (trained.config, taught, longer)]
    assert prints[0] == prints[1] != prints[2]
