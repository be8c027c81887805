"""Training the onboarding network around a tiny model that people of two opposite tastes have taught."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.coordinator.conftest import TinyBackbone
from tests.coordinator.personal import TINY_PLORA, random_batch, trained_with
from tests.coordinator.small_training import small_config
from tests.oracles.pha import TINY as TINY_PHA

from umbel.coordinator.config import CoordinatorConfig
from umbel.coordinator.methods.base import MethodConfig
from umbel.coordinator.methods.pha import PHAConfig
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.onboarding import reading, training
from umbel.coordinator.onboarding.network import Onboarder
from umbel.coordinator.onboarding.reading import read_texts
from umbel.coordinator.onboarding.training import OnboardingTrainer, onboarded, starts_of
from umbel.coordinator.train import begun, rebase
from umbel.coordinator.training.calibrate import side_by_side
from umbel.coordinator.training.checkpoint import CHECKPOINT, load_checkpoint
from umbel.coordinator.training.data import Rows, TrainingData, prepare
from umbel.shared.errors import TrainingError
from umbel.shared.examples import Example
from umbel.shared.onboarding import UNKNOWN
from umbel.shared.rng import generator
from umbel.shared.text import TextEncoder, TokenBatch

LABELS = ("no", "yes")
TEXTS = tuple(
    f"{mood} {how} {what}"
    for mood in ("good", "bad")
    for how in ("slow", "tender", "very", "not")
    for what in ("film", "book")
)
SMALL = {
    "users": 4,
    "query": 4,
    "most_labelled": 8,
    "most_texts": 4,
    "prototypes": 4,
    "code_size": 8,
    "hidden": 16,
    "warm_rate": 0.01,
    "rate": 0.003,
}
SHORT = {"warm_steps": 4, "steps": 4}


def likes(user: int, text: str) -> bool:
    """Every other person likes "good", the ones between them like "bad"."""
    return text.startswith("good") == (user % 2 == 0)


@dataclass(frozen=True, slots=True)
class Taught:
    """A finished model, what it was trained on, and what its users have learned."""

    model: PersonalModel
    data: TrainingData
    profiles: dict[str, torch.Tensor]
    config: CoordinatorConfig

    def trainer(self, folder: Path, fingerprint: str = "a fingerprint", **options: Any) -> OnboardingTrainer:
        """Returns a trainer of a small network, with some options of its own."""
        config = self.config.model_copy(
            update={"onboarding": self.config.onboarding.model_copy(update=options)}
        )
        return OnboardingTrainer(self.model, self.data, self.profiles, config, folder, fingerprint)


@pytest.fixture(scope="module")
def taught(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """30 people, each of whom has judged all of 16 texts."""
    backbone = tiny_backbone("bert")
    schedule = {
        "max_steps": 100,
        "evaluate_every": 20,
        "private_rate": 0.1,
        "shared_rate": 0.02,
        "batch_size": 32,
        "calibration_share": 0,
    }
    config = small_config(backbone.name, training=schedule, onboarding={**SMALL, **SHORT})
    examples = [
        Example(f"{user:02}", text, LABELS[likes(user, text)]) for user in range(30) for text in TEXTS
    ]
    model = build_model(backbone, "classification", LABELS, config.method_configs(), 0)
    data = prepare(examples, LABELS, TextEncoder(backbone.tokenizer_json, 16), config.training, 0)
    learning = begun(model, data, config, tmp_path_factory.mktemp("taught"), "taught", None)
    learning.run()
    profiles = rebase(learning)
    model.zero_grad()
    return Taught(model, data, profiles, config)


def weights_of(network: Onboarder) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def assert_same_weights(found: Onboarder, wanted: dict[str, torch.Tensor]) -> None:
    different = [name for name, v in found.named_parameters() if not torch.equal(v, wanted[name])]
    assert different == []


# Reading


@pytest.mark.parametrize(
    "methods",
    [{"plora": TINY_PLORA}, {"plora": TINY_PLORA, "pha": PHAConfig.model_validate(TINY_PHA)}],
    ids="-".join,
)
def test_texts_are_read_as_each_one_alone(
    tiny_backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch, methods: dict[str, MethodConfig]
) -> None:
    """In batches of 4 against one by one, without padding; 1e-5 is what float32 sums may differ by."""
    monkeypatch.setattr(reading, "_BATCH", 4)
    model = trained_with(tiny_backbone("bert"), methods)
    batch = random_batch(0, 15, 9, 1, 18)
    tokens = TokenBatch(batch.input_ids, batch.attention_mask)
    chosen = np.array([0, 2, 3, 4, 6, 7, 9, 11, 12, 14])
    found = read_texts(model, tokens, chosen)
    assert np.flatnonzero(found.place >= 0).tolist() == chosen.tolist()
    zeros = {name: torch.tensor(value) for name, value in model.profile_spec().zeros(1).items()}
    for number in chosen:
        alone = tokens.rows([number])
        ids, mask, owner = (
            torch.tensor(alone.ids),
            torch.tensor(alone.mask),
            torch.zeros(1, dtype=torch.int64),
        )
        with torch.no_grad():
            logits = model(ids, mask, owner, zeros)
            frame = model.frame(mask, owner, zeros)
            frame.users = zeros
            states = model.states(ids, mask, frame)
        embedding, read = found.rows(np.array([number]))
        assert read.numpy() == pytest.approx(logits.numpy(), abs=1e-5)
        assert embedding[0].numpy() == pytest.approx(states[0].mean(0).numpy(), abs=1e-5)
    both = found.rows(np.array([14, 2, 14]))
    assert torch.equal(both[1], torch.cat([found.rows(np.array([text]))[1] for text in (14, 2, 14)]))


def test_a_trainer_reads_every_text_that_it_trains_on(taught: Taught, tmp_path: Path) -> None:
    place = taught.trainer(tmp_path).readings.place
    assert (place[taught.data.train.text] >= 0).all()
    assert len(place) == len(taught.data.tokens) == len(TEXTS)


# Training


def test_training_runs_to_its_end_and_leaves_the_model_as_it_was(taught: Taught, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in taught.model.state_dict().items()}
    profiles = {name: value.clone() for name, value in taught.profiles.items()}
    trainer = taught.trainer(tmp_path)
    begin = weights_of(trainer.network)
    steps: list[tuple[int, int]] = []
    network = trainer.run(lambda done, total: steps.append((done, total)))
    assert steps == [(number, 8) for number in range(1, 9)]
    assert network is trainer.network
    assert not any(value.requires_grad for value in network.parameters())
    still = [name for name, value in network.named_parameters() if torch.equal(value, begin[name])]
    assert still == []
    assert all(torch.isfinite(value).all() for value in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in taught.model.state_dict().items())
    assert all(value.grad is None for value in taught.model.parameters())
    assert all(torch.equal(value, profiles[name]) for name, value in taught.profiles.items())


@pytest.fixture(scope="module")
def whole(taught: Taught, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that a training ends with which nothing stopped."""
    return weights_of(taught.trainer(tmp_path_factory.mktemp("whole")).run())


def test_the_same_seed_gives_the_same_bits(
    taught: Taught, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(77)  # of what came before, nothing counts
    assert_same_weights(taught.trainer(tmp_path).run(), whole)


@pytest.mark.parametrize("last", [2, 4, 6, 8], ids=["warm", "last warm", "episodes", "last"])
def test_ctrl_c_is_resumed_to_the_same_bits(
    taught: Taught, whole: dict[str, torch.Tensor], tmp_path: Path, last: int
) -> None:
    def stop(done: int, _total: int) -> None:
        if done == last:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = taught.trainer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stopped.run(stop)
    assert stopped.progress.step == last
    found = load_checkpoint(tmp_path, "a fingerprint")
    assert found is not None
    assert found[0].step == last
    steps: list[int] = []
    network = taught.trainer(tmp_path).run(lambda done, _: steps.append(done))
    assert steps == list(range(last + 1, 9))
    assert_same_weights(network, whole)


def test_what_is_killed_goes_on_from_the_last_checkpoint(
    taught: Taught, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_CHECKPOINT_EVERY", 3)

    def kill(done: int, _total: int) -> None:
        if done == 5:
            raise MemoryError

    with pytest.raises(MemoryError):
        taught.trainer(tmp_path).run(kill)
    steps: list[int] = []
    assert_same_weights(taught.trainer(tmp_path).run(lambda done, _: steps.append(done)), whole)
    assert steps == [4, 5, 6, 7, 8]


def test_another_training_is_refused(taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_CHECKPOINT_EVERY", 2)
    taught.trainer(tmp_path).run()
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError, match="another configuration or of other examples"):
        taught.trainer(tmp_path, "another").run()
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_loss_that_is_not_finite_is_one_error(
    taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnboardingTrainer, "_distance", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(TrainingError, match="onboarding: the loss is no longer finite at step 0"):
        taught.trainer(tmp_path).run()
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("without", [{"learning_share": 0.0}, {"learning_steps": 0}, {"learning_rate": 0.0}])
@pytest.mark.parametrize("episodes", [0, 2])
def test_few_shot_steps_are_part_of_episodes_alone(
    taught: Taught, tmp_path: Path, without: dict[str, Any], episodes: int
) -> None:
    """Where there are none, in one way or another, training is another one; its warm steps are the same."""
    options: dict[str, Any] = {"warm_steps": 2, "steps": episodes, "learning_share": 1.0}
    wanted = weights_of(taught.trainer(tmp_path, **options).run())
    found = weights_of(taught.trainer(tmp_path, **{**options, **without}).run())
    assert all(torch.equal(value, wanted[name]) for name, value in found.items()) == (episodes == 0)


def test_bfloat16_trains_too(taught: Taught, tmp_path: Path) -> None:
    config = taught.config
    trainer = OnboardingTrainer(
        taught.model, taught.data, taught.profiles, config, tmp_path, "bfloat16", bfloat16=True
    )
    assert {trainer.readings.embedding.dtype, trainer.readings.logits.dtype} == {torch.float32}
    network = trainer.run()
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in network.parameters())


# What it learns

NEW = 20
"""New users, of both tastes in turn."""


@dataclass(frozen=True, slots=True)
class Newcomers:
    """A trained network, and what it was trained around."""

    taught: Taught
    trainer: OnboardingTrainer

    def rows(self, pick: Callable[[np.random.Generator], Any]) -> Rows:
        """Returns for each new user the examples whose texts are picked; the rng is that of the user."""
        parts = []
        for user in range(NEW):
            texts = np.asarray(pick(generator(0, 0, str(user), "new user")), np.int64)
            label = np.array([likes(user, TEXTS[text]) for text in texts], np.int64)
            parts.append(Rows(texts, np.zeros(len(texts), np.int64), label))
        return side_by_side(parts)

    @torch.no_grad()
    def onboard(self, support: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the users' vectors and prototype weights."""
        profile, weights = onboarded(self.trainer.network, self.trainer.readings, support, NEW)
        return profile["plora.user"], weights

    @torch.no_grad()
    def accuracy(self, users: torch.Tensor, query: Rows) -> float:
        """Returns the share of examples that the model gets right."""
        tokens = self.taught.data.tokens.rows(query.text)
        arrays = (tokens.ids, tokens.mask, query.user)
        logits = self.taught.model(*(torch.tensor(array) for array in arrays), {"plora.user": users})
        return float((logits.argmax(1).numpy() == query.label).mean())

    def taste(self, users: torch.Tensor) -> torch.Tensor:
        """Returns how far each vector is on the side of the seen users who like "good"."""
        seen = self.taught.profiles["plora.user"]
        good = torch.tensor([int(user) % 2 == 0 for user in self.taught.data.users])
        return users @ (seen[good].mean(0) - seen[~good].mean(0))


@pytest.fixture(scope="module")
def newcomers(taught: Taught, tmp_path_factory: pytest.TempPathFactory) -> Newcomers:
    trainer = taught.trainer(tmp_path_factory.mktemp("newcomers"), warm_steps=60, steps=40)
    trainer.run()
    return Newcomers(taught, trainer)


@pytest.mark.parametrize("count", [2, 6])
def test_a_few_examples_tell_a_new_users_taste(newcomers: Newcomers, count: int) -> None:
    """To people of both tastes a generic answer is right in half of all cases."""
    query = newcomers.rows(lambda rng: rng.permutation(16)[count:])
    assert newcomers.accuracy(torch.zeros(NEW, 5), query) == pytest.approx(0.5, abs=0.1)
    users, weights = newcomers.onboard(newcomers.rows(lambda rng: rng.permutation(16)[:count]))
    good = torch.arange(NEW) % 2 == 0
    assert ((newcomers.taste(users) > 0) == good).all()
    assert newcomers.accuracy(users, query) > 0.9
    # Prototypes part them too: the mean weights of the two kinds have little in common.
    assert (weights[good].mean(0) - weights[~good].mean(0)).abs().sum() > 1


def test_warm_steps_alone_lead_towards_what_seen_users_learned(taught: Taught, tmp_path: Path) -> None:
    trainer = taught.trainer(tmp_path, warm_steps=60, steps=0)
    trainer.run()
    warm = Newcomers(taught, trainer)
    users, _ = warm.onboard(warm.rows(lambda rng: rng.permutation(16)[:6]))
    assert ((warm.taste(users) > 0) == (torch.arange(NEW) % 2 == 0)).all()


def test_more_examples_make_the_network_surer(newcomers: Newcomers) -> None:
    supports = [
        newcomers.rows(lambda rng: rng.permutation(16)[:1]),
        newcomers.rows(lambda rng: rng.permutation(16)[:4]),
        newcomers.rows(lambda rng: rng.permutation(16)[:12]),
    ]
    sizes = [float(newcomers.taste(newcomers.onboard(rows)[0]).abs().mean()) for rows in supports]
    assert sizes[0] < sizes[1] < sizes[2]


def test_texts_without_labels_that_all_have_read_tell_nobody_apart(newcomers: Newcomers) -> None:
    support = newcomers.rows(lambda _: range(8))
    users, weights = newcomers.onboard(replace(support, label=np.full(len(support), UNKNOWN)))
    assert users[0].any()
    assert users.numpy() == pytest.approx(np.tile(users[0].numpy(), (NEW, 1)), abs=1e-5)
    assert weights.numpy() == pytest.approx(np.tile(weights[0].numpy(), (NEW, 1)), abs=1e-5)


def test_who_is_not_known_is_served_as_without_a_profile(newcomers: Newcomers) -> None:
    nothing = newcomers.rows(lambda _: [])
    users, weights = newcomers.onboard(nothing)
    assert not users.any()
    assert weights.sum(1).numpy() == pytest.approx(1.0, abs=1e-6)


def test_few_shot_learning_starts_from_what_the_network_writes(newcomers: Newcomers) -> None:
    """Users are counted as in the support; one who gave nothing starts from zeros."""
    support = newcomers.rows(lambda rng: rng.permutation(16)[:3])
    later = support.take(np.flatnonzero(support.user > 0))
    model, tokens = newcomers.taught.model, newcomers.taught.data.tokens
    starts = starts_of(newcomers.trainer.network, model, tokens, [support.take(np.arange(5)), support])
    found = starts(later, NEW)["plora.user"]
    wanted, _ = newcomers.onboard(later)
    assert found == pytest.approx(wanted.numpy(), abs=1e-5)
    assert not found[0].any()
    assert found[1:].any(1).all()
    nothing = support.take(np.arange(0))
    assert not starts(nothing, 2)["plora.user"].any()
    of_nobody = starts_of(newcomers.trainer.network, model, tokens, [])(nothing, 2)
    assert of_nobody["plora.user"].shape == (2, 5)
    assert not of_nobody["plora.user"].any()


def test_prototypes_are_shown_by_examples_of_their_taste(newcomers: Newcomers) -> None:
    """A prototype that new users of one taste have much of is shown by what these users would say."""
    shown = newcomers.trainer.representatives()
    options = newcomers.trainer.options
    assert [len(set(rows)) for rows in shown] == [options.shown] * options.prototypes
    _, weights = newcomers.onboard(newcomers.rows(lambda rng: rng.permutation(16)[:6]))
    for user in (0, 1):
        favourite = int(weights[user::2].mean(0).argmax())
        assert [bool(label) for _, label in shown[favourite]] == [
            likes(user, TEXTS[text]) for text, _ in shown[favourite]
        ]


@torch.no_grad()
def test_prototypes_are_shown_by_what_they_lift_most(newcomers: Newcomers) -> None:
    network, readings = newcomers.trainer.network, newcomers.trainer.readings
    shown = newcomers.trainer.representatives()
    lifts: list[dict[tuple[int, int], float]] = [{} for _ in shown]
    for text in range(len(TEXTS)):
        embedding, logits = readings.rows(np.array([text]))
        added = network.judgements(network.retrieve(embedding))[0]
        for prototype, row in enumerate(added):
            more = torch.softmax(logits[0] + row, 0) - torch.softmax(logits[0], 0)
            for label in range(len(LABELS)):
                lifts[prototype][text, label] = float(more[label])
    for rows, lift in zip(shown, lifts, strict=True):
        wanted = sorted(lift.values(), reverse=True)[: len(rows)]
        assert [lift[row] for row in rows] == pytest.approx(wanted, abs=1e-5)
