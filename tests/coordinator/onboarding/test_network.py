"""The onboarding network: against a slow twin, and what must not matter: order, strangers, other users."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.numeric import assert_close_relative
from tests.oracles.onboarding import onboarding_oracle

from umbel.coordinator.config import OnboardingConfig
from umbel.coordinator.onboarding.network import Onboarder
from umbel.shared.profile import ProfileSpec, TensorSpec
from umbel.shared.rng import generator

CONFIG = OnboardingConfig.model_validate({"prototypes": 5, "code_size": 6, "hidden": 9})
SPEC = ProfileSpec((TensorSpec("plora.user", (4,)), TensorSpec("lopa.factor", (2, 3), "float32")))
SHAPES = {tensor.name: tensor.shape for tensor in SPEC.tensors}
WIDTH = 7
NOBODY = -1
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Texts:
    """What the network reads of some texts, and the users that it is asked for."""

    embedding: Array
    logits: Array
    labels: npt.NDArray[np.int64]
    owner: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]

    def take(self, index: Any) -> "Texts":
        """Returns the same users with some of the texts."""
        embedding, logits = self.embedding[index], self.logits[index]
        return Texts(embedding, logits, self.labels[index], self.owner[index], self.owners)

    def of_user(self, place: int) -> "Texts":
        """Returns the same texts with one of the users."""
        return replace(self, owners=self.owners[place : place + 1])


def drawn(seed: int, labels: int, own: list[tuple[int, int]], owners: list[int]) -> Texts:
    """Returns random texts, each with its (owner, label)."""
    rng = generator(seed, 0, "", "texts")
    owner, label = np.array(own, np.int64).reshape(-1, 2).T
    return Texts(
        rng.normal(0.5, 2.0, (len(own), WIDTH)),
        rng.normal(0.0, 2.0, (len(own), labels)),
        label,
        owner,
        np.array(owners, np.int64),
    )


@st.composite
def populations(draw: st.DrawFn) -> tuple[Texts, int]:
    """Users under any numbers, some without texts; texts of nobody, and without a label; 2 to 4 labels."""
    labels = draw(st.integers(2, 4))
    owners = draw(st.lists(st.integers(0, 20), min_size=1, max_size=4, unique=True))
    row = st.tuples(st.sampled_from([*owners, NOBODY]), st.integers(-1, labels - 1))
    own = draw(st.lists(row, max_size=12))
    return drawn(draw(st.integers(0, 99)), labels, own, owners), labels


def stirred(labels: int, seed: int = 0) -> Onboarder:
    """A network whose parameters are all away from where they begin, so that each of them counts."""
    network = Onboarder(CONFIG, SPEC, WIDTH, labels, seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = generator(seed, 0, "", f"stir {name}").normal(0.0, 0.3, tuple(parameter.shape))
            parameter.add_(torch.tensor(noise, dtype=torch.float32))
    return network


NETWORKS = {labels: stirred(labels) for labels in (2, 3, 4)}


def run(network: Onboarder, texts: Texts) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    read = (torch.tensor(part, dtype=torch.float32) for part in (texts.embedding, texts.logits))
    numbers = (torch.tensor(part) for part in (texts.labels, texts.owner, texts.owners))
    found: tuple[dict[str, torch.Tensor], torch.Tensor] = network(*read, *numbers)
    return found


def arrays(network: Onboarder, texts: Texts) -> dict[str, npt.NDArray[np.float32]]:
    """Returns profiles and the prototypes' weights, under one roof."""
    with torch.no_grad():
        profile, weights = run(network, texts)
    return {name: value.numpy() for name, value in {**profile, "weights": weights}.items()}


def assert_same(found: dict[str, Any], wanted: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Up to the rounding of sums in another order."""
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert_close_relative(name, value, wanted[name], tolerance)


@given(population=populations())
@settings(max_examples=150, deadline=None)
def test_network_is_its_slow_twin(population: tuple[Texts, int]) -> None:
    texts, labels = population
    network = NETWORKS[labels]
    parameters = {name: value.detach().numpy() for name, value in network.named_parameters()}
    # float32, as the network gets it: what is compared is arithmetic, not the rounding of what is read.
    read = [part.astype(np.float32).astype(np.float64) for part in (texts.embedding, texts.logits)]
    profile, weights = onboarding_oracle(
        parameters, SHAPES, read[0], read[1], texts.labels, texts.owner, texts.owners
    )
    assert_same(arrays(network, texts), {**profile, "weights": weights})


def test_by_hand() -> None:
    """One text with a label; everything is 0 or 1 but what labels say: the pull arrives halved twice."""
    spec = ProfileSpec((TensorSpec("t", (1,)),))
    config = OnboardingConfig.model_construct(prototypes=1, code_size=2, hidden=1)  # smaller than is allowed
    network = Onboarder(config, spec, 2, 2, 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.halves.zero_()  # each of them is 1
        network.skip[0, 2 + 4] = 1.0  # what label 0 has beyond the model, by 1
        network.heads["t"][0, 0] = 1.0
    texts = Texts(
        np.zeros((1, 2)), np.array([[math.log(3.0), 0.0]]), np.array([0]), np.array([4]), np.array([4])
    )
    found = arrays(network, texts)
    assert found["t"].item() == pytest.approx((1 - 3 / 4) / 2 / 2)
    assert found["weights"].tolist() == [[1.0]]


@given(population=populations())
@settings(max_examples=60, deadline=None)
def test_users_without_texts_get_zeros(population: tuple[Texts, int]) -> None:
    texts, labels = population
    found = arrays(NETWORKS[labels], texts)
    for place, user in enumerate(texts.owners):
        for name in SHAPES:
            assert found[name][place].any() == (user in texts.owner), name


@given(population=populations(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_order_of_texts_does_not_matter(population: tuple[Texts, int], seed: int) -> None:
    texts, labels = population
    order = generator(seed, 0, "", "order").permutation(len(texts.owner))
    assert_same(arrays(NETWORKS[labels], texts.take(order)), arrays(NETWORKS[labels], texts))


@given(population=populations())
@settings(max_examples=60, deadline=None)
def test_texts_of_nobody_change_nothing(population: tuple[Texts, int]) -> None:
    texts, labels = population
    without = texts.take(texts.owner != NOBODY)
    more = drawn(1, labels, [(NOBODY, label) for label in range(-1, labels)], [])
    parts = ("embedding", "logits", "labels", "owner")
    both = {part: np.concatenate([getattr(more, part), getattr(texts, part)]) for part in parts}
    wanted = arrays(NETWORKS[labels], without)
    assert_same(arrays(NETWORKS[labels], texts), wanted)
    assert_same(arrays(NETWORKS[labels], Texts(**both, owners=texts.owners)), wanted)


@given(population=populations())
@settings(max_examples=60, deadline=None)
def test_users_do_not_influence_each_other(population: tuple[Texts, int]) -> None:
    texts, labels = population
    together = arrays(NETWORKS[labels], texts)
    for place, user in enumerate(texts.owners):
        row = {name: value[place : place + 1] for name, value in together.items()}
        assert_same(arrays(NETWORKS[labels], texts.of_user(place)), row)
        assert_same(arrays(NETWORKS[labels], texts.of_user(place).take(texts.owner == user)), row)


@given(population=populations())
@settings(max_examples=60, deadline=None)
def test_prototype_weights_sum_to_1(population: tuple[Texts, int]) -> None:
    texts, labels = population
    weights = arrays(NETWORKS[labels], texts)["weights"]
    assert weights.shape == (len(texts.owners), CONFIG.prototypes)
    assert (weights >= 0).all()
    assert weights.sum(1) == pytest.approx(1.0, abs=1e-6)


def test_labels_and_their_absence_count() -> None:
    """Each of these tells the network something else of the same text."""
    found = [arrays(NETWORKS[3], drawn(0, 3, [(0, label)], [0]))["plora.user"] for label in (-1, 0, 1, 2)]
    for number, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-3 for other in found[number + 1 :])


def test_a_prototype_that_answers_as_the_user_does_gains_weight() -> None:
    network = Onboarder(CONFIG, SPEC, WIDTH, 2, 0)
    with torch.no_grad():
        network.judge.zero_()
        network.judge_bias.zero_()
        network.judge_bias[2, 1] = 2.0  # prototype 2 says label 1 more often than the model does
    shares = [
        arrays(network, drawn(0, 2, [(0, 1)] * count, [0]))["weights"][0, 2].item() for count in (0, 1, 4)
    ]
    assert shares[0] == pytest.approx(1 / CONFIG.prototypes)
    assert shares[0] + 0.01 < shares[1] < shares[2] - 0.01


def test_the_seed_and_nothing_else_says_how_it_begins() -> None:
    texts = drawn(0, 2, [(0, 1), (0, -1), (3, 0)], [0, 3])
    torch.manual_seed(1)
    one = Onboarder(CONFIG, SPEC, WIDTH, 2, 5)
    torch.manual_seed(2)
    same, other = (Onboarder(CONFIG, SPEC, WIDTH, 2, seed) for seed in (5, 6))
    for network in (one, same, other):
        network.fit_outputs(learned(), torch.Generator().manual_seed(0))
    wanted = dict(one.named_parameters())
    assert all(torch.equal(value, wanted[name]) for name, value in same.named_parameters())
    assert not torch.equal(other.first, one.first)
    found, again = arrays(one, texts), arrays(same, texts)
    assert all(np.array_equal(found[name], again[name]) for name in found)
    assert found["plora.user"].any()
    assert not np.array_equal(arrays(other, texts)["plora.user"], found["plora.user"])


def test_a_new_network_writes_zeros() -> None:
    texts = drawn(0, 2, [(0, 1), (0, -1), (3, 0)], [0, 3])
    found = arrays(Onboarder(CONFIG, SPEC, WIDTH, 2, 0), texts)
    assert not any(found[name].any() for name in SHAPES)


def learned(scale: float = 1.0) -> dict[str, torch.Tensor]:
    """What seen users have learned: the second tensor is a hundred times as large as the first one."""
    rng = generator(0, 0, "", "learned")
    sizes = {"plora.user": scale, "lopa.factor": 100 * scale}
    return {
        name: torch.tensor(rng.normal(0.0, sizes[name], (11, *shape)), dtype=torch.float32)
        for name, shape in SHAPES.items()
    }


def test_every_parameter_has_a_gradient_once_the_heads_have_their_size() -> None:
    network = Onboarder(CONFIG, SPEC, WIDTH, 3, 0)
    network.fit_outputs(learned(), torch.Generator().manual_seed(0))
    texts = drawn(0, 3, [(0, 1), (0, -1), (3, 0), (3, 2), (0, 2)], [0, 3])
    profile, _ = run(network, texts)
    rng = torch.Generator().manual_seed(0)
    total = torch.stack([(v * torch.randn(v.shape, generator=rng)).sum() for v in profile.values()]).sum()
    torch.autograd.backward(total)
    dead = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert dead == []
    assert all(torch.isfinite(value.grad).all() for value in network.parameters() if value.grad is not None)


def test_heads_begin_in_proportion_to_what_was_learned() -> None:
    """A tenth of its size, of a code of mean square 1; within 50 %, which 24 and 36 numbers hardly leave."""
    networks = [Onboarder(CONFIG, SPEC, WIDTH, 2, 0) for _ in range(2)]
    for network, scale in zip(networks, (1.0, 10.0), strict=True):
        network.fit_outputs(learned(scale), torch.Generator().manual_seed(0))
    for name, value in learned().items():
        key = name.replace(".", "__")
        small, large = (network.heads[key].detach().numpy() for network in networks)
        assert_close_relative(name, large, 10 * small)
        wanted = 0.1 * float(value.square().mean().sqrt()) / math.sqrt(CONFIG.code_size)
        assert np.sqrt((small**2).mean()) == pytest.approx(wanted, rel=0.5)


def test_the_first_layer_begins_with_inputs_of_mean_0_and_deviation_1() -> None:
    network = Onboarder(CONFIG, SPEC, WIDTH, 2, 0)
    rng = generator(0, 0, "", "inputs")
    x = rng.normal(size=(500, WIDTH)) * 10.0 ** np.arange(-3, WIDTH - 3) + rng.normal(size=WIDTH)
    mean, deviation = x.mean(0), x.std(0)
    wanted = (x - mean) / deviation @ network.first.detach().double().numpy().T
    network.fit_inputs(*(torch.tensor(part, dtype=torch.float32) for part in (mean, deviation)))
    with torch.no_grad():
        found = (torch.tensor(x) @ network.first.double().T + network.first_bias.double()).numpy()
    # One mean is a thousand times as large as its deviation: 1e-7 of float32 times that.
    assert_close_relative("first", found, wanted, 1e-3)
    assert np.abs(found.mean(0)).max() < 1e-3
