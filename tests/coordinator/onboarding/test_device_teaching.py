"""Training the onboarding network on a device: against torch's own, in float64."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.builders import random_examples, tiny_training
from tests.numeric import assert_close_relative

from umbel.coordinator.artifacts import rebuild_onboarder
from umbel.device_client.engine import Engine
from umbel.device_client.learning import Encoded, encode_examples
from umbel.device_client.onboarding import onboarded, read_known
from umbel.device_client.rounds import evaluate, shared_change, train
from umbel.device_client.simulated import SimulatedHome
from umbel.device_client.teaching import taught_change
from umbel.shared.episodes import drawn_part
from umbel.shared.examples import write_examples
from umbel.shared.learning import minimise
from umbel.shared.messages import LocalSettings, RoundTask, l2_norm
from umbel.shared.onboarding import PREFIX, UNKNOWN
from umbel.shared.profile import FloatArray
from umbel.shared.release import Release
from umbel.shared.rng import generator

CLIENT = 7
SETTINGS = LocalSettings(
    local_steps=1,
    batch_size=4,
    clip=1e6,
    onboarding_steps=3,
    onboarding_rate=1.0,
    onboarding_learning_steps=2,
)


@pytest.fixture(scope="module")
def engine(taught_release: Release) -> Engine:
    return Engine(taught_release)


@pytest.fixture(scope="module")
def support(engine: Engine) -> Encoded:
    return encode_examples(engine, random_examples(0, "ann", 9))


def task_of(engine: Engine, settings: LocalSettings = SETTINGS, round_: int = 1) -> RoundTask:
    """A task whose values are not the release's: every trainable is moved a little."""
    values = {
        name: value + generator(0, 0, "", name).normal(0.0, 0.05, value.shape).astype(np.float32)
        for name, value in engine.trainables().items()
    }
    task = RoundTask(engine.release.release_id, round_, 3, "train", settings, values)
    task.check(engine.release.manifest)
    return task


class Twin:
    """The model and the network in torch, float64, with the values of a task."""

    def __init__(self, folder: Path, task: RoundTask):
        model, _, trained = tiny_training(folder, True, True)
        network = rebuild_onboarder(trained, model)
        assert network is not None
        self.model, self.network = model.double().requires_grad_(False).eval(), network.double()
        self.recipe = trained.recipe
        parameters = dict(self.model.named_parameters())
        parameters |= {PREFIX + name: value for name, value in self.network.named_parameters()}
        with torch.no_grad():
            for name, value in task.arrays.items():
                parameters[name].copy_(torch.tensor(value))
        self.network.requires_grad_(True)

    def nll(self, rows: Encoded, profile: Mapping[str, torch.Tensor]) -> torch.Tensor:
        ids, mask = torch.from_numpy(rows.tokens.ids), torch.from_numpy(rows.tokens.mask)
        logits = self.model(ids, mask, torch.zeros(len(rows), dtype=torch.int64), profile)
        found: torch.Tensor = self.model.task.nll(logits, torch.from_numpy(rows.labels))
        return found

    @torch.no_grad()
    def read(self, rows: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = torch.from_numpy(rows.tokens.ids), torch.from_numpy(rows.tokens.mask)
        zeros = {name: torch.tensor(v).double() for name, v in self.model.profile_spec().zeros(1).items()}
        frame = self.model.frame(mask, torch.zeros(len(rows), dtype=torch.int64), zeros)
        logits, embedding = self.model.read(ids, mask, frame)
        return embedding, logits

    def loss(self, support: Encoded, part: Any, learning_steps: int) -> torch.Tensor:
        """Returns the loss of one episode: what the coordinator makes small, for one person."""
        told, asked = support.rows(part.known), support.rows(part.query)
        labels = told.labels.copy()
        labels[part.labelled :] = UNKNOWN
        nobody = torch.zeros(len(told), dtype=torch.int64)
        profile, weights = self.network(
            *self.read(told), torch.from_numpy(labels), nobody, torch.zeros(1, dtype=torch.int64)
        )
        if learning_steps and part.labelled:
            moved = self.learned(told.rows(np.arange(part.labelled)), profile, learning_steps)
            profile = {name: value + (moved[name] - value.detach()) for name, value in profile.items()}
        mixture = self.network.mixture(
            weights.expand(len(asked), -1), *self.read(asked), torch.from_numpy(asked.labels)
        )
        mean: torch.Tensor = (self.nll(asked, profile) + mixture).mean()
        return mean

    def learned(
        self, rows: Encoded, profile: Mapping[str, torch.Tensor], steps: int
    ) -> dict[str, torch.Tensor]:
        def gradients_at(values: Mapping[str, FloatArray]) -> tuple[FloatArray, dict[str, FloatArray]]:
            own = {name: torch.tensor(value).double().requires_grad_() for name, value in values.items()}
            nll = self.nll(rows, own)
            found = torch.autograd.grad(nll.sum(), list(own.values()))
            named = dict(zip(own, (g.float().numpy() for g in found), strict=True))
            return nll.detach().float().numpy(), named

        start = {name: value.detach().float().numpy() for name, value in profile.items()}
        moved = minimise(gradients_at, start, replace(self.recipe, steps=steps))
        return {name: torch.tensor(value).double() for name, value in moved.items()}

    def change(self, support: Encoded, task: RoundTask, client: int) -> dict[str, FloatArray]:
        """Returns what SGD changes, one episode at a time."""
        settings = task.settings
        rng = generator(task.seed, task.round, str(client), "onboarding episode")
        parameters = dict(self.network.named_parameters())
        first = {name: value.detach().clone() for name, value in parameters.items()}
        for step in range(settings.onboarding_steps):
            part = drawn_part(rng, len(support), settings.batch_size, 64, 64)
            loss = self.loss(support, part, settings.onboarding_learning_steps if step % 2 else 0)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            with torch.no_grad():
                for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                    parameter.sub_(settings.onboarding_rate * gradient)
        return {PREFIX + name: (value.detach() - first[name]).numpy() for name, value in parameters.items()}


@pytest.mark.parametrize("learning_steps", [0, 2])
def test_a_device_teaches_as_torch_does(
    engine: Engine, support: Encoded, tmp_path: Path, learning_steps: int
) -> None:
    settings = replace(SETTINGS, onboarding_learning_steps=learning_steps)
    for round_ in range(1, 4):  # episodes of all kinds: with labels, without, with further texts
        task = task_of(engine, settings, round_)
        wanted = Twin(tmp_path, task).change(support, task, CLIENT)
        found = taught_change(engine, support, CLIENT, task)
        assert found.keys() == wanted.keys() == {n for n in task.arrays if n.startswith(PREFIX)}
        for name, value in wanted.items():
            # A change is the difference of two float32 values, each of them rounded once a step.
            rounding = 2e-7 * settings.onboarding_steps * np.linalg.norm(task.arrays[name])
            gap = np.linalg.norm(found[name] - value)
            assert gap <= 1e-4 * np.linalg.norm(value) + rounding, f"{name}: {gap}"
            assert np.linalg.norm(value) > 10 * rounding, name


def test_the_change_is_a_function_of_seed_round_and_device(engine: Engine, support: Encoded) -> None:
    task = task_of(engine)
    first = taught_change(engine, support, CLIENT, task)
    again = taught_change(engine, support, CLIENT, task)
    assert all(np.array_equal(again[name], value) for name, value in first.items())
    others = [
        taught_change(engine, support, CLIENT + 1, task),
        taught_change(engine, support, CLIENT, replace(task, round=2)),
        taught_change(engine, support, CLIENT, replace(task, seed=4)),
    ]
    assert not any(np.array_equal(other["onboarding.first"], first["onboarding.first"]) for other in others)


def test_steps_go_on_where_the_last_one_ended(engine: Engine, support: Encoded) -> None:
    """Two steps at half the rate are not one at the whole: the second sees what the first has changed."""
    small = replace(SETTINGS, onboarding_steps=1, onboarding_learning_steps=0)
    one = taught_change(engine, support, CLIENT, task_of(engine, small))
    two = taught_change(engine, support, CLIENT, task_of(engine, replace(small, onboarding_steps=2)))
    assert not np.allclose(two["onboarding.first"], one["onboarding.first"], rtol=0.01)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_examples_change_nothing(engine: Engine, support: Encoded, count: int) -> None:
    found = taught_change(engine, support.first(count), CLIENT, task_of(engine))
    assert found
    assert not any(value.any() for value in found.values())


def test_no_episodes_change_nothing(engine: Engine, support: Encoded) -> None:
    task = task_of(engine, replace(SETTINGS, onboarding_steps=0))
    assert not any(value.any() for value in taught_change(engine, support, CLIENT, task).values())


def test_a_release_that_keeps_its_network_is_not_taught(onboarding_release: Release) -> None:
    engine = Engine(onboarding_release)
    support = encode_examples(engine, random_examples(0, "ann", 6))
    assert taught_change(engine, support, CLIENT, task_of(engine)) == {}


def test_the_models_own_change_is_what_it_was(
    engine: Engine, support: Encoded, onboarding_release: Release
) -> None:
    """The two parts of a contribution have nothing to do with each other."""
    task = task_of(engine)
    profile = engine.release.manifest.profile.zeros(1)
    found = shared_change(engine, support, profile, CLIENT, task)
    plain = Engine(onboarding_release)
    names = plain.release.manifest.trainables
    own = replace(task, arrays={name: task.arrays[name] for name in names})
    wanted = shared_change(plain, support, profile, CLIENT, own)
    assert found.keys() == wanted.keys() == set(names)
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())


def home_of(folder: Path, count: int) -> SimulatedHome:
    write_examples(folder / "examples.jsonl", random_examples(0, "ann", count))
    write_examples(folder / "heldout.jsonl", random_examples(0, "ann", 4, "heldout"))
    return SimulatedHome(folder)


def test_a_contribution_holds_both_and_is_clipped_as_one(engine: Engine, tmp_path: Path) -> None:
    home = home_of(tmp_path, 9)
    task = task_of(engine)
    wide = train(engine, home, CLIENT, task)
    assert wide.change.keys() == engine.release.manifest.trainables.keys()
    norm = l2_norm(wide.change.values())
    tight = train(engine, home, CLIENT, replace(task, settings=replace(task.settings, clip=norm / 2)))
    for name, value in wide.change.items():
        assert_close_relative(name, tight.change[name], value / 2)


def test_learning_in_a_round_starts_from_the_rounds_own_network(engine: Engine, tmp_path: Path) -> None:
    """What is onboarded in a round, and evaluated, is written by the values that the round gives."""
    recipe = replace(engine.release.manifest.recipe, start=1.0, steps=0)
    task = task_of(engine, replace(SETTINGS, recipe=recipe))
    home = home_of(tmp_path, 9)
    train(engine, home, CLIENT, task)
    kept = home.load_profile(engine.release)
    support = encode_examples(engine, home.examples())
    known = read_known(engine, support, engine.encode([]), task.arrays)
    wanted, _ = onboarded(engine, [known], task.arrays)
    before, _ = onboarded(engine, [known])
    assert kept is not None
    for name, value in wanted.items():
        assert_close_relative(name, kept[name], value, 1e-2)  # as it is stored
        assert np.linalg.norm(before[name] - value) > 0.1 * np.linalg.norm(value)
    assert evaluate(engine, home, replace(task, stage="evaluate")).total == 4


def test_teaching_makes_the_loss_smaller(engine: Engine, support: Encoded, tmp_path: Path) -> None:
    """Of the same person's episodes, though of other ones than those that they were taught by."""
    steps = replace(SETTINGS, onboarding_steps=60, onboarding_rate=0.3, onboarding_learning_steps=0)
    task = task_of(engine, steps)
    change = taught_change(engine, support, CLIENT, task)
    moved = {name: value + change.get(name, np.float32(0)) for name, value in task.arrays.items()}
    rng = generator(0, 0, "", "other episodes")
    parts = [drawn_part(rng, len(support), 4, 64, 64) for _ in range(40)]
    before, after = (
        float(np.mean([twin.loss(support, part, 0).item() for part in parts]))
        for twin in (Twin(tmp_path, task), Twin(tmp_path, replace(task, arrays=moved)))
    )
    assert after < before - 0.02, (before, after)
