"""A release's graphs by torch: what onnxruntime gives, whatever was kept, and for each of many people."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.builders import PLORA, random_examples
from tests.builders import tiny_release as build

from umbel.device_client.engine import Engine
from umbel.device_client.learning import Encoded, encode_examples
from umbel.device_client.rounds import WantedGradient
from umbel.shared.errors import ConfigError, ReleaseError
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Release
from umbel.shared.rng import generator
from umbel.simulations.torch_graphs.gradients import gradients_of_each
from umbel.simulations.torch_graphs.opening import compute_with_torch
from umbel.simulations.torch_graphs.session import TorchSession

CPU = "torch:cpu"
_EVERY = pytest.param("every_method", marks=pytest.mark.slow)  # its release takes long to make


@pytest.fixture(scope="module", autouse=True)
def torch_there() -> None:
    compute_with_torch(CPU)


@pytest.fixture(scope="module")
def every_method(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """All methods that act inside the encoder, in one release."""
    methods: dict[str, Any] = PLORA | {
        "xpeft": {"adapters": 6, "kept": 2, "width": 4},
        "lopa": {}, "pha": {}, "loratrf": {},
    }  # fmt: skip
    return build(
        tmp_path_factory.mktemp("every-method"),
        methods=methods,
        recipe=LearningRecipe(steps=6),
        trainables=("task.*", "methods.plora.*"),
    )


@pytest.fixture(params=[_EVERY, "embedded_release", "taught_release"])
def release(request: pytest.FixtureRequest) -> Release:
    found: Release = request.getfixturevalue(request.param)
    return found


def people(engine: Engine, counts: Sequence[int], seed: int = 0) -> list[Encoded]:
    return [
        encode_examples(engine, random_examples(seed, str(number), count))
        for number, count in enumerate(counts)
    ]


def profiles(release: Release, count: int, seed: int) -> dict[str, FloatArray]:
    rng = generator(seed, 0, "", "profiles")
    zeros = release.manifest.profile.zeros(count)
    return {name: (0.3 * rng.normal(size=v.shape)).astype(np.float32) for name, v in zeros.items()}


def assert_close(found: Any, expected: Any) -> None:
    """A gradient's entries are held against its largest: sums in another order move all of them."""
    largest = max(float(np.abs(expected).max(initial=0)), 1e-3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * largest)


def same(call: Callable[[Engine], Any], release: Release) -> None:
    found, expected = call(Engine(release, compute=CPU)), call(Engine(release))
    for left, right in zip(flat(found), flat(expected), strict=True):
        assert_close(left, right)


def flat(found: Any) -> list[Any]:
    if isinstance(found, dict):
        return [found[name] for name in sorted(found)]
    if isinstance(found, tuple):
        return [value for part in found for value in flat(part)]
    return [found]


def test_logits_and_gradients_are_those_of_onnxruntime(release: Release) -> None:
    engine = Engine(release)
    examples = people(engine, [5, 3])
    known = examples[0]
    owner, own = np.array([0, 1, 0, 1, 1]), profiles(release, 2, 1)
    shared = engine.trainables()
    same(lambda e: e.predict(known.tokens, owner, own, shared), release)
    same(lambda e: e.read(known.tokens, shared), release)
    same(lambda e: e.learn(known.tokens, known.labels, owner, own, shared), release)
    same(lambda e: e.contribute(known.tokens, known.labels, owner, own, shared), release)
    if engine.embeds:
        embedding = engine.read(known.tokens, shared)[1]
        same(lambda e: e.predict_embedded(embedding, owner, own, shared), release)
        same(lambda e: e.learn_embedded(embedding, known.labels, owner, own, shared), release)
    if engine.contributes_embedded:
        same(lambda e: e.contribute_embedded(embedding, known.labels, owner, own, shared), release)
    if engine.onboards:
        logits, embedding = engine.read(known.tokens, shared)
        same(lambda e: e.onboard(logits, embedding, known.labels, owner, 2, shared), release)


def test_what_is_kept_is_used_only_where_nothing_has_changed(taught_release: Release) -> None:
    engine, plain = Engine(taught_release, compute=CPU), Engine(taught_release)
    first, second = people(plain, [4, 4])
    shared = plain.trainables()
    moved = {name: value + np.float32(0.1) for name, value in shared.items()}
    owner = np.zeros(4, np.int64)
    turns = [
        (first, shared, 0),
        (first, shared, 1),
        (second, shared, 1),
        (first, moved, 1),
        (first, shared, 2),
    ]
    for examples, values, seed in turns:
        at = examples.labels, owner, profiles(taught_release, 1, seed), values
        found, expected = engine.learn(examples.tokens, *at), plain.learn(examples.tokens, *at)
        for left, right in zip(flat(found), flat(expected), strict=True):
            assert_close(left, right)


def test_the_encoder_up_to_the_first_personal_layer_is_kept(embedded_release: Release) -> None:
    """Where nothing personal acts in the encoder, its products are computed in the first run only."""
    engine = Engine(embedded_release, compute=CPU)
    (known,) = people(engine, [4])
    owner, shared = np.zeros(4, np.int64), engine.trainables()

    def products(seed: int) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            engine.learn(known.tokens, known.labels, owner, profiles(embedded_release, 1, seed), shared)
        return sum(row.count for row in seen.key_averages() if row.key in ("aten::addmm", "aten::mm"))

    assert products(0) > 12  # two layers, six each, and what is behind them
    assert products(1) < 6


@settings(max_examples=8)
@given(
    counts=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    seed=st.integers(0, 100),
    own=st.booleans(),
)
@pytest.mark.parametrize("name", [_EVERY, "tiny_release", "embedded_release"])
def test_gradients_of_each_are_what_each_has_made(
    name: str, counts: list[int], seed: int, own: bool, request: pytest.FixtureRequest
) -> None:
    """People with different numbers of texts of different lengths, under the same values or their own."""
    release: Release = request.getfixturevalue(name)
    engine, plain = Engine(release, compute=CPU), Engine(release)
    rng, shared = generator(seed, 0, "", "owners"), plain.trainables()
    wanted = []
    for number, examples in enumerate(people(plain, counts, seed)):
        if plain.embeds:
            examples = replace(examples, embedding=plain.read(examples.tokens, shared)[1])  # noqa: PLW2901
        values = {n: v + np.float32(0.01 * number) for n, v in shared.items()} if own else shared
        owner = rng.integers(0, 2, len(examples))
        wanted.append(WantedGradient(engine, examples, owner, profiles(release, 2, number), values))
    for found, asked in zip(gradients_of_each(wanted, rows=12), wanted, strict=True):
        expected = replace(asked, engine=plain).made()
        assert set(found) == set(expected)
        for name_ in expected:
            assert_close(found[name_], expected[name_])


def test_an_operator_that_is_not_known_and_a_weight_that_is_missing_are_both_told() -> None:
    node = helper.make_node("Hardmax", ["x", "w"], ["y"])
    weight = TensorProto(name="w", dims=[2], data_type=1, data_location=TensorProto.EXTERNAL)
    value = helper.make_tensor_value_info("x", 1, [2])
    graph = helper.make_graph([node], "one", [value], [helper.make_tensor_value_info("y", 1, [2])], [weight])
    with pytest.raises(ReleaseError) as told:
        TorchSession(onnx.helper.make_model(graph), {}, torch.device("cpu"))
    assert told.value.problems == ("operator Hardmax is not known", "weight 'w' is missing")


@pytest.mark.parametrize("compute", ["torch:nowhere", "jax", "torch:cuda:99", "torch", "torch:meta"])
def test_a_place_that_is_not_there_is_told(compute: str, tiny_release: Release, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        compute_with_torch(compute)
    assert len(told.value.problems) == 1
    with pytest.raises(ConfigError):
        Engine(tiny_release, compute=compute)


def test_products_in_bfloat16_are_near(taught_release: Release) -> None:
    compute_with_torch("torch:cpu:bfloat16")
    engine, plain = Engine(taught_release, compute="torch:cpu:bfloat16"), Engine(taught_release)
    (known,) = people(plain, [6])
    at = known.tokens, np.zeros(6, np.int64), profiles(taught_release, 1, 0), plain.trainables()
    found, expected = engine.predict(*at), plain.predict(*at)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
