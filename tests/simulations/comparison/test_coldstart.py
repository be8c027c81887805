"""A first minute: starts that nobody else and no unknown label touches, and what is kept of training."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.simulations.comparison.small_world import K, small_world

from umbel.coordinator.backbone import Backbone
from umbel.shared.bias import softmax
from umbel.shared.strength import STRENGTHS, expected_strength
from umbel.simulations.comparison.coldstart import ColdStart
from umbel.simulations.comparison.config import ContestantConfig
from umbel.simulations.comparison.contestant import World

NETWORK = {"steps": 4, "warm_steps": 30, "prototypes": 4, "code_size": 6, "hidden": 8, "users": 4}
OPTIONS = {"rate": 0.5, "prior": 0.1, "share": 1.0, "trust": 2.0}


def cold(world: World, **options: Any) -> ColdStart:
    config = {
        "methods": {"plora": {"rank": 2, "user_size": 3}, "headbias": {}},
        "learning_rate": [0.5],
        "prior_strength": [0.1],
        "cold_start": {"network": NETWORK, **options},
    }
    made = ColdStart(world, "cold", ContestantConfig.model_validate(config))
    made.prepare(lambda done, of: None)
    return made


@pytest.mark.parametrize("learn", [True, False])
def test_nobody_else_and_no_unknown_label_matters(world: World, learn: bool) -> None:
    made = cold(world, learn=learn, texts=3, folds=2)
    people = world.cohort.people
    for k in (0, K[0]):
        together = made.logits(people, k, OPTIONS)
        other = [
            replace(p, support=replace(p.support, label=np.where(np.arange(K[-1]) < k, p.support.label, 0)))
            for p in people
        ]
        for one, alone in zip(together, (made.logits([p], k, OPTIONS)[0] for p in other), strict=True):
            np.testing.assert_allclose(one, alone, rtol=1e-4, atol=1e-5)


def test_what_is_known_changes_answers(world: World) -> None:
    made, without = cold(world, texts=3), cold(world)
    people = world.cohort.people
    generic, by_texts = without.logits(people, 0, OPTIONS), made.logits(people, 0, OPTIONS)
    by_labels = without.logits(people, K[0], OPTIONS)
    for some, others in product((by_texts, by_labels), (generic,)):
        assert all(np.abs(one - other).max() > 1e-5 for one, other in zip(some, others, strict=True))
    zeros = cold(world, onboard=False)
    unshared = without.logits(people, K[0], OPTIONS | {"share": 0.0})
    for one, other in zip(zeros.logits(people, K[0], OPTIONS), unshared, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_examples_say_how_much_of_a_profile_is_used(world: World) -> None:
    made, whole = cold(world, folds=3, texts=2), cold(world, texts=2)
    people, k = world.cohort.people, K[-1]

    def gap(trust: float, others: list[Any]) -> float:
        found = made.logits(people, k, OPTIONS | {"trust": trust})
        return max(float(np.abs(one - other).max()) for one, other in zip(found, others, strict=True))

    assert gap(1000.0, whole.logits(people, k, OPTIONS)) < 1e-5
    assert gap(-1000.0, cold(world).logits(people, 0, OPTIONS)) < 1e-5
    assert gap(2.0, whole.logits(people, k, OPTIONS)) > 1e-4


def test_strengths_are_found_fold_by_fold(world: World) -> None:
    made = cold(world, folds=3, texts=2)
    people, k = world.cohort.people[:2], 5
    nothing = [person.support.take(np.arange(0)) for person in people]
    supports = [person.support.take(np.arange(k)) for person in people]
    found = made._strengths(supports, nothing, OPTIONS, ())
    for person, support, strength in zip(people, supports, found, strict=True):
        total = np.zeros(len(STRENGTHS), np.float32)
        for fold in range(3):
            held = np.argsort(np.argsort(support.text)) % 3 == fold
            rest = support.take(np.flatnonzero(~held))
            profile = made._profiles([rest], [nothing[0]], OPTIONS)
            for place, share in enumerate(STRENGTHS):
                scaled = {name: values * np.float32(share) for name, values in profile.items()}
                logits = made._predicted([person.support.take(np.flatnonzero(held))], scaled)[0]
                chance = softmax(logits)[np.arange(held.sum()), support.label[held]]
                total[place] -= np.log(chance).sum()
        assert strength == pytest.approx(expected_strength(total, OPTIONS["trust"]), abs=1e-4)
    assert 0 < found.min() < 1


def test_training_is_shared_and_kept(backbone: Backbone, tmp_path: Path) -> None:
    world = small_world(backbone, tmp_path)
    first = cold(world)
    names = {path.name for path in tmp_path.iterdir()}
    assert {name.split("-")[0] for name in names} == {"methods", "onboarding"}
    assert all(name.endswith(".safetensors") for name in names)
    heard: list[int] = []
    config = first.config.model_copy(update={"learning_rate": (0.3,)})
    again = ColdStart(world, "another name", config)
    again.prepare(lambda done, of: heard.append(done))
    assert heard == []
    assert {path.name for path in tmp_path.iterdir()} == names
    for one, other in zip(
        first.logits(world.cohort.people, 2, OPTIONS),
        again.logits(world.cohort.people, 2, OPTIONS),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    # What cannot be read is trained again.
    for name in names:
        (tmp_path / name).write_bytes(b"damaged")
    again.prepare(lambda done, of: heard.append(done))
    assert heard
    right, asked = again.seen()
    assert asked == len(world.cohort.table.validation)
    assert (right, asked) == first.seen()
    assert again.costs().shared_numbers > cold(world, onboard=False).costs().shared_numbers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"onboard": False, "learn": False}, "that is the generic model"),
        ({"onboard": False, "texts": 4}, "tell the onboarding network alone"),
        ({"network": {"steps": 0}}, "the network needs steps"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ContestantConfig.model_validate({"methods": {"headbias": {}}, "cold_start": options})


def test_options_are_those_that_do_something(world: World) -> None:
    assert cold(world, onboard=False).options() == [{"rate": 0.5, "prior": 0.1}]
    assert cold(world, learn=False, share=[1.0]).options() == [{"share": 1.0}]
    both = cold(world, folds=2, trust=[0.0, 2.0]).options()
    assert len(both) == 4
    assert all(set(row) == set(OPTIONS) for row in both)
