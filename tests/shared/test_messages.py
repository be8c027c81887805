"""Round messages: exact through the wire, and every way of being wrong is told, all at once."""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from umbel.shared.errors import MessageError
from umbel.shared.messages import (
    NPY,
    SCHEMA,
    Contribution,
    EvaluationReply,
    LocalSettings,
    RoundTask,
    Wire,
    clipped,
    l2_norm,
    read_contribution,
    read_evaluation,
    read_hello,
    read_task,
)
from umbel.shared.npy import npy_bytes
from umbel.shared.profile import ProfileSpec, TensorSpec
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Blob, Manifest

SHAPES = {"head.weight": (2, 3), "head.bias": (2,)}
MANIFEST = Manifest(
    parent=None,
    task="classification",
    labels=("no", "yes"),
    backbone={"name": "tiny", "family": "bert", "sha256": "0" * 64},
    methods={},
    max_tokens=8,
    profile=ProfileSpec((TensorSpec("user", (4,)),)),
    recipe=LearningRecipe(),
    trainables=SHAPES,
    parity={},
    blobs={"x": Blob("0" * 64, 0)},
)
OTHER = replace(MANIFEST, max_tokens=9)
FINITE = st.floats(-1e6, 1e6, width=32)


def values(fill: float = 0.25) -> dict[str, npt.NDArray[np.float32]]:
    return {name: np.full(shape, fill, np.float32) for name, shape in SHAPES.items()}


def task(**changes: Any) -> RoundTask:
    usual = RoundTask(MANIFEST.release_id, 3, -7, "train", LocalSettings(clip=2.0, example_cap=20), values())
    return replace(usual, **changes)


def contribution(**changes: Any) -> Contribution:
    return replace(Contribution(MANIFEST.release_id, 3, values(), 12, 0.5), **changes)


def evaluation(**changes: Any) -> EvaluationReply:
    return replace(EvaluationReply(MANIFEST.release_id, 3, 4, 9, 0.5), **changes)


def problems_of(error: pytest.ExceptionInfo[MessageError]) -> list[str]:
    return list(error.value.problems)


def same_arrays(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return set(found) == set(expected) and all(
        np.array_equal(found[name], expected[name]) for name in expected
    )


@given(
    st.fixed_dictionaries(
        {name: hnp.arrays(np.float32, shape, elements=FINITE) for name, shape in SHAPES.items()}
    ),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(["train", "evaluate"]),
    st.none() | st.builds(LearningRecipe, steps=st.integers(0, 99), learning_rate=st.floats(0.0, 9.0)),
    st.booleans(),
)
def test_a_task_comes_back_as_it_was_sent(
    arrays: dict[str, Any], seed: int, stage: str, recipe: LearningRecipe | None, tells: bool
) -> None:
    settings = LocalSettings(recipe=recipe, tell_within=tells)
    sent = task(arrays=arrays, seed=seed, stage=stage, settings=settings)
    found = read_task(sent.wire(), MANIFEST)
    assert same_arrays(found.arrays, arrays)
    assert replace(found, arrays={}) == replace(sent, arrays={})


def test_answers_come_back_as_they_were_sent() -> None:
    found = read_contribution(contribution().wire(), MANIFEST, task())
    assert same_arrays(found.change, values())
    assert replace(found, change={}) == contribution(change={})
    assert read_evaluation(evaluation().wire(), MANIFEST, task(stage="evaluate")) == evaluation()


def test_whether_it_was_within_the_clip_is_in_a_contribution_if_it_is_asked() -> None:
    asks = task(settings=LocalSettings(tell_within=True))
    sent = contribution(within=False)
    assert read_contribution(sent.wire(), MANIFEST, asks).within is False
    for wire, asked, problem in (
        (sent.wire(), task(), "unknown key 'within'"),
        (contribution().wire(), asks, "missing key 'within'"),
        (
            Wire(sent.change, {**sent.wire().config, "within": 1}),
            asks,
            "within is of type int, expected bool",
        ),
    ):
        with pytest.raises(MessageError, match=problem):
            read_contribution(wire, MANIFEST, asked)


def test_a_contribution_holds_nothing_but_the_change_and_two_numbers() -> None:
    wire = contribution().wire()
    assert set(wire.arrays) == set(SHAPES)
    assert set(wire.config) == {"schema", "release_id", "round", "examples", "seconds"}
    assert evaluation().wire().arrays == {}


def test_all_problems_of_a_task_are_listed() -> None:
    arrays: dict[str, Any] = {
        "head.weight": np.zeros((2, 3), np.float64),
        "extra": np.zeros(1, np.float32),
    }
    settings = LocalSettings(local_steps=0, local_rate=math.nan, clip=0.0, profile_dropout=2.0)
    with pytest.raises(MessageError) as error:
        task(release_id="f" * 64, round=0, stage="predict", settings=settings, arrays=arrays).check(MANIFEST)
    assert problems_of(error) == [
        f"it is for release ffffffffffff, not for {MANIFEST.release_id[:12]}",
        "round is 0, expected an integer from 1 to 1000000000",
        "stage is predict, expected train or evaluate",
        "local_steps is 0, expected an integer from 1 to 10000",
        "local_rate is nan, expected a number from 0 to 1000",
        "clip is 0.0, expected a number from 1e-09 to 1e+09",
        "profile_dropout is 2.0, expected a number from 0 to 1",
        "unknown tensor 'extra'",
        "missing tensor 'head.bias'",
        "head.weight: dtype is float64, expected float32",
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema": "umbel.round/0"}, f"schema is umbel.round/0, expected {SCHEMA}"),
        ({"user": "ann"}, "unknown key 'user'"),
        ({"round": True}, "round is of type bool, expected int"),
        ({"round": None}, "missing key 'round'"),
        ({"recipe": "{"}, "recipe is not the JSON of a recipe"),
        ({"recipe": '{"steps": 1}'}, "recipe: missing key 'beta1'"),
        ({"k" * 99: 1}, f"unknown key '{'k' * 40}...'"),
    ],
)
def test_a_task_with_another_config_is_refused(change: dict[str, Any], problem: str) -> None:
    config = {key: value for key, value in {**task().wire().config, **change}.items() if value is not None}
    with pytest.raises(MessageError) as error:
        read_task(Wire(values(), config), MANIFEST)
    assert problem in problems_of(error)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"round": 2}, "it answers round 2, not round 3"),
        ({"release_id": OTHER.release_id}, f"the task was for release {MANIFEST.release_id[:12]}"),
        ({"examples": 21}, "examples is 21, expected an integer from 1 to 20"),
        ({"examples": 0}, "examples is 0, expected an integer from 1 to 20"),
        ({"seconds": math.inf}, "seconds is inf, expected a number from 0 to 1e+09"),
        ({"change": values(math.nan)}, "head.bias: holds values that are not finite"),
        ({"change": {**values(), "user": np.zeros(4, np.float32)}}, "unknown tensor 'user'"),
        ({"change": {"head.bias": np.zeros(2, np.float32)}}, "missing tensor 'head.weight'"),
        (
            {"change": {**values(), "head.bias": np.zeros((1, 2), np.float32)}},
            "head.bias: shape is (1, 2), expected (2,)",
        ),
        # 8 values of 1.0: the norm is sqrt(8).
        ({"change": values(1.0)}, "the change has norm 2.82843, the clip is 2"),
    ],
)
def test_a_wrong_contribution_is_refused(changes: dict[str, Any], problem: str) -> None:
    wire = contribution(**changes).wire()
    with pytest.raises(MessageError) as error:
        read_contribution(wire, MANIFEST, task())
    assert problem in problems_of(error)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"total": 0}, "total is 0, expected an integer from 1 to 1000000000"),
        ({"correct": 10}, "correct is 10, expected an integer from 0 to 9"),
        ({"round": 4}, "it answers round 4, not round 3"),
    ],
)
def test_a_wrong_evaluation_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(MessageError) as error:
        read_evaluation(evaluation(**changes).wire(), MANIFEST, task())
    assert problems_of(error) == [problem]


def test_an_evaluation_that_carries_tensors_is_refused() -> None:
    wire = Wire({"user": np.zeros(4, np.float32)}, evaluation().wire().config)
    with pytest.raises(MessageError, match="unknown tensor 'user'"):
        read_evaluation(wire, MANIFEST, task())


def test_a_number_below_zero_is_no_device() -> None:
    with pytest.raises(MessageError, match="client is -1"):
        read_hello(Wire({}, {"schema": SCHEMA, "client": -1}))


@dataclass
class Sent:
    """An array as a transport holds it."""

    data: bytes
    stype: str = NPY


def test_a_damaged_array_is_a_message_error() -> None:
    damaged = Sent(npy_bytes(np.zeros(3, np.float32))[:-1])
    other = Sent(npy_bytes(np.zeros(3, np.float32)), "torch.Tensor")
    with pytest.raises(MessageError) as error:
        Wire.of({"head.bias": damaged, "head.weight": other}, {})
    assert problems_of(error) == [
        "array 'head.bias' cannot be decoded (ValueError)",
        "array 'head.weight' cannot be decoded (TypeError)",
    ]


@given(
    hnp.arrays(np.float32, st.integers(1, 20), elements=FINITE),
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=FINITE),
    st.floats(1e-3, 1e3),
)
def test_clipping_keeps_the_direction_and_bounds_the_norm(
    first: npt.NDArray[np.float32], second: npt.NDArray[np.float32], clip: float
) -> None:
    arrays = {"first": first, "second": second}
    found = clipped(arrays, clip)
    norm = l2_norm(arrays.values())
    assert l2_norm(found.values()) <= clip * (1 + 1e-5)
    if norm <= clip:
        assert same_arrays(found, arrays)
    for name, array in arrays.items():
        assert found[name].dtype == np.float32
        expected = array.astype(np.float64) * min(1.0, clip / max(norm, 1e-30))
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-12)


def test_what_is_clipped_passes_the_check() -> None:
    # Rounding to float32 may leave the norm a hair above the clip: that is allowed, and no more.
    rng = np.random.Generator(np.random.Philox(1))
    change = {name: rng.normal(0, 50, shape).astype(np.float32) for name, shape in SHAPES.items()}
    contribution(change=clipped(change, 2.0)).check(MANIFEST, task())
    with pytest.raises(MessageError, match="the change has norm"):
        contribution(change=clipped(change, 2.001)).check(MANIFEST, task())


def test_whatever_an_array_fails_by_is_a_message_error() -> None:
    """numpy's reader of its own format ends in Python's tokenizer, and may ask for any memory."""
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 3), np.float32))
    good = stream.getvalue()
    for bad in (
        good.replace(b"(2, 3)", b"(2, 3("),
        good.replace(b"(2, 3)", b"(2**9"),
        good.replace(b"(2, 3), ", b"(9" + b"9" * 6),
    ):
        with pytest.raises(MessageError, match="cannot be decoded"):
            Wire.of({"head.bias": Sent(bad)}, {})


def test_no_number_of_a_change_is_shown() -> None:
    """What shows itself may end up in a log."""
    change = {name: np.full(shape, 0.7320508, np.float32) for name, shape in SHAPES.items()}
    own = Contribution("0" * 64, 1, change, 3, 0.5)
    assert "0.73" not in repr(own) + repr(own.wire())
