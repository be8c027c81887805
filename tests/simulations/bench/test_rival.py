"""The rival gives umbel's answers: plain torch is an oracle of the device's graphs, and they of it.

It runs in this process: the environment of the tests has torch, transformers and PEFT as well.
"""

from pathlib import Path
from typing import Any

import pytest

from umbel.simulations.bench import device_bench
from umbel.simulations.bench import worker as ours
from umbel.simulations.bench.releases import MAX_TOKENS
from umbel.simulations.bench.rival import adapters, worker
from umbel.simulations.bench.rival.learning import Support, learned, nll_of, strength_of
from umbel.simulations.bench.rival.model import PersonalBert, encoded
from umbel.simulations.bench.rows import BenchError
from umbel.simulations.bench.sides import Sides, check_same
from umbel.simulations.bench.staging import PROFILES
from umbel.simulations.bench.texts import labels_of, texts_of

# PEFT 0.21 asks transformers 5.23 by a name that goes in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PEOPLE = 5


def given(staged: Path, texts: list[str]) -> dict[str, Any]:
    return {
        "folder": str(staged),
        "texts": texts,
        "max_tokens": MAX_TOKENS,
        "profiles": str(staged / PROFILES),
    }


def our_logits(sides: Sides, texts: list[str], people: int, precision: str = "float32") -> Any:
    return ours.predicting(1)(str(sides.release("tiny").folder), texts, people, precision)[1]


def test_texts_have_exactly_so_many_tokens(sides: Sides, staged: Path) -> None:
    texts = texts_of(sides.release("tiny"), 7, 19)
    ids, mask = encoded(staged, texts, MAX_TOKENS)
    assert tuple(ids.shape) == (7, 19)
    assert bool(mask.all())
    assert len(set(texts)) == 7


@pytest.mark.parametrize("count", [1, 2, 16])
def test_labels_are_shared_out_evenly(count: int) -> None:
    labels = labels_of(count, 2)
    assert sorted(labels) == sorted(number % 2 for number in range(count))


def test_one_person_has_the_same_logits(sides: Sides, staged: Path) -> None:
    texts = texts_of(sides.release("tiny"), 3, 12)
    found = worker.predict(**given(staged, texts))[1]
    check_same("logits", our_logits(sides, texts, 1), found)
    with pytest.raises(BenchError):  # another person's profile gives other answers
        check_same("logits", our_logits(sides, texts, 2), found)


def test_answers_in_8_bits_are_near_and_others(sides: Sides) -> None:
    texts = texts_of(sides.release("tiny"), 3, 12)
    exact, small = our_logits(sides, texts, 1), our_logits(sides, texts, 1, "int8")
    assert small != exact
    check_same("logits", small, exact, 0.2)


@pytest.mark.parametrize("way", [worker.mixed, adapters.switched, adapters.adapter_names])
def test_many_people_have_the_same_logits_by_every_way(sides: Sides, staged: Path, way: Any) -> None:
    texts = texts_of(sides.release("tiny"), PEOPLE, 9)
    check_same("logits", our_logits(sides, texts, PEOPLE), way(**given(staged, texts))[1])


def test_a_step_has_the_same_loss_and_gradient(sides: Sides, staged: Path) -> None:
    release = sides.release("tiny")
    texts, labels = texts_of(release, 6, 10), labels_of(6, 2)
    mine = ours.stepping(1)(str(release.folder), texts, labels, "float32")[1]
    asked: dict[str, Any] = {
        "folder": str(staged),
        "texts": texts,
        "max_tokens": MAX_TOKENS,
        "labels": labels,
    }
    theirs = worker.step(**asked, recipe=dict(release.manifest.recipe.as_json()))[1]
    check_same("nll", mine[0], theirs[0])
    check_same("gradient", mine[1], theirs[1])
    assert max(abs(value) for value in theirs[1]) > 1e-6


def test_learning_ends_in_the_same_profile_and_strength(sides: Sides, staged: Path, tmp_path: Path) -> None:
    """Within 5e-3: AdamW divides by a root, so 16 steps enlarge what float32 differs by."""
    import torch

    from umbel.device_client.device import learn_profile
    from umbel.shared.examples import Example
    from umbel.shared.profile import unpack_profile

    release = sides.release("tiny")
    texts, labels = texts_of(release, 6, 10), labels_of(6, 2)
    rows = [Example("owner", t, release.manifest.labels[n]) for t, n in zip(texts, labels, strict=True)]
    mine = learn_profile(release, rows, tmp_path / "profile.umbel", precision="float32")
    model = PersonalBert(staged)
    people = model.personalise()
    ids, mask = encoded(staged, texts, MAX_TOKENS)
    support = Support(ids, mask, torch.tensor(labels), torch.zeros(6, dtype=torch.int64))
    recipe = dict(release.manifest.recipe.as_json())
    vectors, generic = learned(model, people, support, 1, recipe)
    strength = strength_of(model, people, support, recipe)
    assert 0.0 < strength < 1.0
    assert mine.strength == pytest.approx(strength, abs=5e-3)
    assert mine.nll_generic == pytest.approx(generic, abs=1e-4)
    kept = (vectors * strength).half().float()
    assert mine.nll_personal == pytest.approx(float(nll_of(model, people, kept, support).mean()), abs=1e-3)
    data = (tmp_path / "profile.umbel").read_bytes()
    found = unpack_profile(release.manifest.profile, data, release.release_id)["plora.user"]
    check_same("profile", found.ravel().tolist(), kept.ravel().tolist(), 5e-3)


@pytest.mark.slow
def test_whole_processes_of_both_sides_agree(sides: Sides) -> None:
    """The rival runs as it does in its own environment: as scripts, told by files."""
    import sys

    both = Sides(sides.folder, sides.settings, Path(sys.executable), lambda _: None)
    rows = [
        *device_bench.start(both, "tiny"),
        *device_bench.learn(both, "tiny"),
        *device_bench.step(both, "tiny"),
    ]
    assert all(row.ratio is not None and row.ratio > 0 for row in rows)
