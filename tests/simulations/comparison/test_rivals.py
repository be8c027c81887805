"""Every rival: leaves the generic model alone, treats each person alone, learns; some against slow twins."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.oracles.rivals import bias_oracle, neighbours_oracle, softmax_oracle
from tests.simulations.comparison.small_world import LABELS, QUERY, K, small_world

from umbel.coordinator.backbone import Backbone
from umbel.shared.profile import FloatArray
from umbel.shared.text import IntArray
from umbel.simulations.comparison.cohort import Person
from umbel.simulations.comparison.contestant import Contestant, World, label_mask
from umbel.simulations.comparison.rivals import REGISTRY
from umbel.simulations.comparison.rivals.adapter import WIDTH
from umbel.simulations.comparison.rivals.common import first, pooled_and_logits, predict
from umbel.simulations.comparison.rivals.prompt import ROWS
from umbel.simulations.comparison.rivals.retrieval import Retrieval, nearest

GRADIENT = ("lora", "adapter", "prompt", "fedavg")
LEARNING = ("headbias", "knn", *GRADIENT)
D, LAYERS, BLOCK = 32, 2, 48  # of the tiny encoder


@pytest.fixture(scope="module")
def tasks(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(backbone, tmp_path_factory.mktemp("tasks"), tasks=True)


@pytest.fixture(scope="module", params=tuple(REGISTRY))
def rival(request: pytest.FixtureRequest, world: World) -> Iterator[Contestant]:
    """Each rival, prepared; afterwards the generic model still has all its bits."""
    before = {name: value.clone() for name, value in world.generic.state_dict().items()}
    yield prepared(request.param, world)
    after = world.generic.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert not world.generic.training
    assert all(parameter.grad is None for parameter in world.generic.parameters())


def prepared(name: str, world: World) -> Contestant:
    made = REGISTRY[name](world)
    heard: list[tuple[int, int]] = []
    made.prepare(lambda done, of: heard.append((done, of)))
    assert [done for done, _ in heard] == list(range(1, len(heard) + 1))
    assert all(of == len(heard) for _, of in heard)
    return made


def nll(logits: FloatArray, person: Person, labels: IntArray) -> float:
    masked = logits + label_mask(person, logits.shape[1])
    return -float(np.mean([np.log(softmax_oracle(list(r))[y]) for r, y in zip(masked, labels, strict=True)]))


def on_support(person: Person) -> Person:
    """Returns the person, asked about the very examples that they give."""
    return replace(person, query=person.support)


def generic_states(world: World, person: Person) -> tuple[FloatArray, FloatArray, FloatArray]:
    with torch.no_grad():
        found = [
            pooled_and_logits(world, world.generic, *world.batch(r)[:2])
            for r in (person.query, person.support)
        ]
    return found[0][0].numpy(), found[1][0].numpy(), found[0][1].numpy()


def test_logits_are_finite_and_nobody_else_matters(rival: Contestant, world: World) -> None:
    people = world.cohort.people
    options = rival.options()[-1]
    k = K[-1] if rival.learns else 0
    together = rival.logits(people, k, options)
    backwards = rival.logits(people[::-1], k, options)[::-1]
    for person, found, again in zip(people, together, backwards, strict=True):
        assert found.shape == (QUERY, len(LABELS))
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(again, found)
        np.testing.assert_array_equal(rival.logits([person], k, options)[0], found)


def test_same_seed_gives_the_same_bits(rival: Contestant, world: World) -> None:
    torch.rand(7)  # what others drew before does not matter
    again = prepared(rival.name, world)
    k = K[-1] if rival.learns else 0
    for left, right in zip(
        rival.logits(world.cohort.people, k, rival.options()[0]),
        again.logits(world.cohort.people, k, again.options()[0]),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", LEARNING)
def test_learning_lowers_the_loss_on_own_examples(name: str, world: World) -> None:
    made = prepared(name, world)
    people = [on_support(person) for person in world.cohort.people]
    least = made.logits(people, 0, made.options()[0])
    best = min(
        np.mean([nll(z, p, p.query.label) for z, p in zip(found, people, strict=True)])
        for found in (made.logits(people, K[-1], options) for options in made.options())
    )
    assert best < np.mean([nll(z, p, p.query.label) for z, p in zip(least, people, strict=True)]) - 0.02


@pytest.mark.parametrize("name", ["headbias", "knn", "lora", "adapter"])
def test_without_examples_it_is_the_generic_model(name: str, world: World) -> None:
    made = REGISTRY[name](world)
    for person, found in zip(
        world.cohort.people, made.logits(world.cohort.people, 0, made.options()[0]), strict=True
    ):
        np.testing.assert_array_equal(found, predict(world, world.generic, person.query))


@pytest.mark.parametrize("name", ["lora", "adapter"])
def test_at_rate_zero_it_is_the_generic_model(name: str, world: World) -> None:
    for person, found in zip(
        world.cohort.people,
        REGISTRY[name](world).logits(world.cohort.people, K[-1], {"rate": 0.0}),
        strict=True,
    ):
        np.testing.assert_array_equal(found, predict(world, world.generic, person.query))


@pytest.mark.parametrize("name", GRADIENT)
def test_learning_sees_only_the_labels_that_can_occur(name: str, tasks: World) -> None:
    """A head whose other labels are far more likely learns just the same; a large loss would drown it."""
    loud = small_world(tasks.backbone, tasks.folder, tasks=True)
    with torch.no_grad():
        loud.generic.task.bias[2:] += 50.0  # type: ignore[index, operator]
    ann = [p for p in tasks.cohort.people if p.user == "ann"]
    rate = {"rate": 1e-2}
    quiet_found = REGISTRY[name](tasks).logits(ann, K[-1], rate)[0]
    loud_found = REGISTRY[name](loud).logits(ann, K[-1], rate)[0]
    np.testing.assert_allclose(loud_found[:, :2], quiet_found[:, :2], atol=1e-4)


@pytest.mark.parametrize("name", ["lora", "adapter", "prompt"])
def test_where_profiles_are_tasks_the_head_rows_are_learned_too(name: str, tasks: World) -> None:
    made = REGISTRY[name](tasks)
    assert made.costs().private_numbers == own_numbers(name) + 2 * (D + 1)
    people = [on_support(person) for person in tasks.cohort.people]
    before = made.logits(people, 0, {"rate": 1e-2})
    found = made.logits(people, K[-1], {"rate": 1e-2})
    for person, left, right in zip(people, before, found, strict=True):
        assert nll(right, person, person.query.label) < nll(left, person, person.query.label)


def own_numbers(name: str) -> int:
    return {
        "lora": LAYERS * 2 * 8 * 2 * D,
        "adapter": LAYERS * (2 * D * WIDTH + WIDTH + D),
        "prompt": ROWS * D,
    }[name]


@pytest.mark.parametrize("name", ["lora", "adapter", "prompt"])
def test_costs_count_what_is_learned(name: str, world: World) -> None:
    costs = REGISTRY[name](world).costs()
    assert (costs.private_numbers, costs.private_bytes) == (own_numbers(name), 2 * own_numbers(name))
    # A prompt starts from one that seen people share.
    assert costs.shared_numbers == (own_numbers(name) if name == "prompt" else 0)


def test_costs_of_the_others(world: World, tasks: World) -> None:
    names = world.generic.named_parameters()
    weights = sum(p.numel() for name, p in names if not name.startswith("encoder.embeddings."))
    texts = [
        sum(len(world.cohort.texts[t].encode()) + 1 for t in person.support.text)
        for person in world.cohort.people
    ]
    assert REGISTRY["generic"](world).costs().private_bytes == 0
    assert REGISTRY["headbias"](world).costs().private_numbers == len(LABELS)
    assert REGISTRY["headbias"](tasks).costs().private_numbers == 2
    assert REGISTRY["knn"](world).costs().private_bytes == round(sum(texts) / len(texts))
    assert REGISTRY["retrieval"](world).costs().private_bytes == round(sum(texts) / len(texts))
    fedavg = REGISTRY["fedavg"](world).costs()
    assert (fedavg.private_numbers, fedavg.private_bytes) == (weights, 2 * weights)


@pytest.mark.parametrize("options", REGISTRY["knn"](None).options())  # type: ignore[arg-type]
def test_neighbours_against_the_slow_twin(options: dict[str, float], world: World, tasks: World) -> None:
    for place in (world, tasks):
        made = REGISTRY["knn"](place)
        for person in place.cohort.people:
            query, support, generic = generic_states(place, person)
            found = made.logits([person], K[-1], options)[0]
            for row, state in enumerate(query):
                wanted = neighbours_oracle(
                    list(map(float, state)),
                    support.astype(float).tolist(),
                    person.support.label.tolist(),
                    softmax_oracle(list(map(float, generic[row] + label_mask(person, len(LABELS))))),
                    options["temperature"],
                    options["share"],
                )
                np.testing.assert_allclose(np.exp(found[row]), np.maximum(wanted, 1e-6), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("prior", [0.3, 3.0])
def test_bias_against_the_slow_twin(prior: float, tasks: World) -> None:
    for person in tasks.cohort.people:
        able = person.labels
        assert able is not None
        support = predict(tasks, tasks.generic, person.support)[:, able]
        wanted = bias_oracle(
            support.astype(float).tolist(), np.searchsorted(able, person.support.label).tolist(), prior
        )
        found = REGISTRY["headbias"](tasks).logits([person], K[-1], {"prior": prior})[0]
        change = found - predict(tasks, tasks.generic, person.query)
        np.testing.assert_allclose(change[:, able], np.tile(wanted, (QUERY, 1)), atol=1e-4)
        others = np.setdiff1d(np.arange(len(LABELS)), able)
        np.testing.assert_array_equal(change[:, others], 0.0)


def test_retrieval_puts_the_nearest_own_examples_before_the_text(world: World) -> None:
    made = Retrieval(world)
    person = world.cohort.people[0]
    pieces = [first(person.support, 2)] + [first(person.support, 0)] * (QUERY - 1)
    ids, mask = made._reader.read(person.query, pieces)
    encoder = made._reader._encoder
    alone = world.cohort.data.tokens
    told = encoder.encode(
        [
            f"{LABELS[label]}: {world.cohort.texts[t]}"
            for t, label in zip(pieces[0].text, pieces[0].label, strict=True)
        ]
    )
    own = [alone.ids[t, : alone.mask[t].sum()].tolist() for t in person.query.text]
    before = [token for n in range(2) for token in told.ids[n, 1 : told.mask[n].sum()]]
    assert ids[0, : int(mask[0].sum())].tolist() == [own[0][0], *before, *own[0][1:]]
    for n in range(1, QUERY):
        assert ids[n, : int(mask[n].sum())].tolist() == own[n]


def test_retrieval_cuts_the_examples_never_the_text(world: World) -> None:
    long = replace(world, config=world.config.model_copy(update={"max_tokens": 5}))
    person = world.cohort.people[0]
    ids, mask = Retrieval(long)._reader.read(person.query, [first(person.support, 3)] * QUERY)
    for n, text in enumerate(person.query.text):
        own = world.cohort.data.tokens.rows([int(text)]).ids[0].tolist()
        assert int(mask[n].sum()) <= 15
        assert ids[n, : int(mask[n].sum())].tolist()[-len(own) + 1 :] == own[1:]


def test_nearest_are_three_in_order_of_similarity() -> None:
    pool = np.array([[0.0, 1.0], [1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]], np.float32)
    assert nearest(np.array([1.0, 0.0], np.float32), pool).tolist() == [1, 2, 3]
    assert nearest(np.array([1.0, 0.0], np.float32), pool[:2]).tolist() == [1, 0]


def test_retrieval_before_training_and_without_examples_is_the_generic_model(world: World) -> None:
    person = world.cohort.people[0]
    found = Retrieval(world).logits([person], 0, {})[0]
    np.testing.assert_array_equal(found, predict(world, world.generic, person.query))


def test_shared_loratrf_needs_a_third_less_than_shared_lora(world: World) -> None:
    lora = REGISTRY["shared-lora"](world).costs().shared_numbers
    loratrf = REGISTRY["shared-loratrf"](world).costs().shared_numbers
    assert lora == LAYERS * 2 * 16 * 2 * D
    assert 1.0 - loratrf / lora >= 0.33


@pytest.mark.parametrize("name", ["shared-lora", "shared-loratrf", "retrieval"])
def test_training_on_seen_people_fits_them(name: str, world: World) -> None:
    """Seen people's mean answers are learned; compared on their own examples with what it was at first."""
    rows = first(world.cohort.data.train, 60)
    seen = Person("seen", first(rows, 0), rows)
    before = nll(REGISTRY[name](world).logits([seen], 0, {})[0], seen, rows.label)
    assert nll(prepared(name, world).logits([seen], 0, {})[0], seen, rows.label) < before


@pytest.mark.parametrize("name", GRADIENT)
def test_learning_goes_on_under_bfloat16(name: str, backbone: Backbone, tmp_path: Path) -> None:
    """Autocast keeps copies of weights: stale ones would make every step the first."""
    half = small_world(backbone, tmp_path, bfloat16=True)
    made = REGISTRY[name](half)
    person = on_support(half.cohort.people[0])
    start, found = (made.logits([person], k, {"rate": 1e-2})[0] for k in (0, K[-1]))
    with half.precision():  # a caller's own context changes nothing
        nested = made.logits([person], K[-1], {"rate": 1e-2})[0]
    assert nll(found, person, person.query.label) < nll(start, person, person.query.label)
    np.testing.assert_array_equal(nested, found)


def test_counts_are_those_of_seen_people(world: World) -> None:
    """For each text: the share of a label among the seen people's judgements, pulled to the mean by two."""
    made = prepared("counts", world)
    data = world.cohort.data
    said = [
        (int(text), int(label))
        for rows in (data.train, data.validation)
        for text, label in zip(rows.text, rows.label, strict=True)
    ]
    every = [label for _, label in said]
    mean = [(every.count(label) + 1) / (len(every) + len(data.labels)) for label in range(len(data.labels))]
    person = world.cohort.people[0]
    for text, row in zip(person.query.text, made.logits([person], 0, {})[0], strict=True):
        own = [label for judged, label in said if judged == text]
        wanted = [(own.count(label) + 2 * mean[label]) / (len(own) + 2) for label in range(len(data.labels))]
        assert softmax_oracle(list(row)) == pytest.approx(wanted, abs=1e-6)
