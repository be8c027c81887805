"""The gate: only what is on the list leaves, everything is written down, and nothing private is quoted."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.linear_engine import SHAPES, linear_engine

from umbel.device_client.egress.allowed import (
    Allowed,
    allowed_contribution,
    allowed_error,
    allowed_evaluation,
    allowed_gain,
    allowed_hello,
    of_error,
    wire_bytes,
)
from umbel.device_client.egress.gate import Asker, Departure, admit, decline, leave
from umbel.shared.errors import EgressError, MessageError, StoreError
from umbel.shared.gain import MOST
from umbel.shared.messages import (
    EVALUATE,
    TRAIN,
    Contribution,
    EvaluationReply,
    GainQuestion,
    GainReport,
    Hello,
    LocalSettings,
    RoundTask,
    Wire,
    clipped,
    read_contribution,
    read_evaluation,
    read_gain,
    read_hello,
)
from umbel.shared.rng import generator

CANARY = "a canary sang in the mine at noon"
ENGINE = linear_engine()
MANIFEST = ENGINE.release.manifest
TASK = RoundTask(ENGINE.release.release_id, 2, 5, TRAIN, LocalSettings(clip=0.5), ENGINE.trainables())
ASKED = replace(TASK, stage=EVALUATE)
TO = Asker(1, 2, 3)


class Book:
    """An owner's side of the gate that is a list."""

    def __init__(self, against: Sequence[str] = ()):
        self.against = list(against)
        self.rows: list[tuple[Departure, list[str]]] = []

    def refusals(self) -> list[str]:
        return self.against

    def enter(self, departure: Departure, problems: Sequence[str]) -> list[str]:
        self.rows.append((departure, [*problems, *self.against]))
        return self.rows[-1][1]


def change(seed: int = 0, norm: float = 0.4) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    rng = generator(seed, 0, "", "change")
    return clipped({name: rng.normal(0, 9, shape).astype(np.float32) for name, shape in SHAPES.items()}, norm)


def contribution(seed: int = 0) -> Wire:
    return Contribution(TASK.release_id, TASK.round, change(seed), 3, 0.5).wire()


GOOD: dict[str, tuple[Wire, Allowed]] = {
    "query": (Hello(7).wire(), allowed_hello(7)),
    "query.gain": (GainReport(TASK.release_id, -1500).wire(), allowed_gain(TASK.release_id)),
    "train": (contribution(), allowed_contribution(MANIFEST, TASK)),
    "evaluate": (EvaluationReply(TASK.release_id, 2, 3, 4, 0.5).wire(), allowed_evaluation(MANIFEST, ASKED)),
    "error": (of_error(KeyError(CANARY)), allowed_error()),
}


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_on_the_list_leaves_as_it_is_and_is_written_down(kind: str) -> None:
    wire, allowed = GOOD[kind]
    book = Book()
    assert leave(wire, allowed, book, TO) is wire
    ((departure, problems),) = book.rows
    assert problems == []
    assert (departure.kind, departure.to, departure.tensors) == (kind, TO, len(wire.arrays))
    assert departure.bytes == wire_bytes(wire) <= allowed.most_bytes
    if kind == "train":
        assert departure.norm == pytest.approx(0.4, rel=1e-5)
        assert (departure.release, departure.round) == (TASK.release_id, 2)
        # 12 numbers of 4 bytes, and two names
        names = sum(map(len, SHAPES))
        rest = sum(len(key) for key in wire.config) + 3 * 8 + len("umbel.round/1") + 64
        assert departure.bytes == 12 * 4 + names + rest


def test_whether_a_change_was_within_the_clip_leaves_only_if_it_was_asked() -> None:
    asking = replace(TASK, settings=replace(TASK.settings, tell_within=True))
    silent = contribution()
    telling = Wire(silent.arrays, {**silent.config, "within": True})
    assert allowed_contribution(MANIFEST, asking).problems(telling) == []
    assert allowed_contribution(MANIFEST, asking).problems(silent) == ["within is missing"]
    assert "it has 1 values that are not on the list" in allowed_contribution(MANIFEST, TASK).problems(
        telling
    )
    number = Wire(silent.arrays, {**silent.config, "within": 1})
    assert allowed_contribution(MANIFEST, asking).problems(number) == ["within is of type int, expected bool"]


def test_nothing_leaves_that_is_not_written_down() -> None:
    class Full(Book):
        def enter(self, departure: Departure, problems: Sequence[str]) -> list[str]:
            raise StoreError("the store cannot be used")

    with pytest.raises(StoreError):
        leave(*GOOD["train"], Full(), TO)


def test_a_policy_that_says_no_is_written_down_and_told_with_the_rest() -> None:
    wire, allowed = GOOD["train"]
    book = Book(["policy never: nothing may leave"])
    with pytest.raises(EgressError) as caught:
        leave(Wire({}, wire.config), allowed, book, TO)
    assert caught.value.problems == (
        "head.weight is missing",
        "head.bias is missing",
        "policy never: nothing may leave",
    )
    with pytest.raises(EgressError, match="policy never"):
        admit("train", book, TO)
    assert [row[0].bytes for row in book.rows][1] == 0
    admit("train", Book(), TO)


def test_all_that_is_wrong_is_told_at_once_without_a_word_of_it() -> None:
    arrays = {
        "head.weight": np.full((2, 5), 9.0, np.float32),
        "head.bias": np.array([math.nan, 0.0], np.float32),
        CANARY: np.zeros(9, np.float32),
    }
    config: dict[str, Any] = {**GOOD["train"][0].config, "note": CANARY, "release_id": CANARY, "examples": 99}
    del config["seconds"]
    book = Book()
    with pytest.raises(EgressError) as caught:
        leave(Wire(arrays, config), GOOD["train"][1], book, TO)
    size = wire_bytes(Wire(arrays, config))
    assert caught.value.problems == (
        "it has 1 values that are not on the list",
        "release_id is not what the task and the release make it",
        "seconds is missing",
        "examples is out of range, expected 1 to 32",
        "it has 1 tensors that are not on the list",
        "head.bias holds values that are not finite",
        f"it has {size} bytes, at most {GOOD['train'][1].most_bytes} may leave",
    )
    assert CANARY not in str(caught.value) + json.dumps([row[0].as_json() for row in book.rows])


WAYS = ("extra", "shape", "dtype", "value", "norm", "missing", "key", "lost", "string", "number", "none")


def broken(draw: st.DrawFn) -> Wire:
    """Returns a contribution with one thing changed: mostly, but not always, something that may not leave."""
    wire = contribution(draw(st.integers(0, 9)))
    arrays, config = dict(wire.arrays), dict(wire.config)
    name, key = draw(st.sampled_from(sorted(arrays))), draw(st.sampled_from(sorted(config)))
    size = draw(st.integers(0, 4))
    what = draw(st.sampled_from(WAYS))
    if what == "extra":
        arrays[draw(st.sampled_from([CANARY, "user.bias", ""]))] = np.zeros(size, np.float32)
    elif what == "shape":
        arrays[name] = np.zeros((size, *arrays[name].shape[1:]), np.float32)
    elif what == "dtype":
        kind = draw(st.sampled_from(["<f8", "<f2", ">f4", "<i4", "U9", "O", "?", "<c8"]))
        arrays[name] = np.zeros(arrays[name].shape, kind)
    elif what == "value":
        arrays[name].flat[0] = draw(st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e30]))
    elif what == "norm":
        arrays |= change(0, draw(st.floats(0.3, 0.7)))
    elif what == "missing":
        del arrays[name]
    elif what == "key":
        config[draw(st.sampled_from(["note", CANARY]))] = CANARY
    elif what == "lost":
        del config[key]
    elif what == "string":
        config[key] = CANARY
    elif what == "number":
        numbers = st.one_of(st.integers(-3, 40), st.floats(-1, 1e10), st.booleans(), st.just(math.nan))
        config[key] = draw(numbers)
    return Wire(arrays, config)


@given(st.composite(broken)())
def test_the_gate_lets_out_what_a_coordinator_takes_and_nothing_else(wire: Wire) -> None:
    """The coordinator's reader, written apart from the gate, is the slow twin."""
    try:
        read_contribution(wire, MANIFEST, TASK)
        taken = True
    except MessageError:
        taken = False
    book = Book()
    if taken:
        assert leave(wire, GOOD["train"][1], book, TO) is wire
        assert wire_bytes(wire) <= GOOD["train"][1].most_bytes
    else:
        with pytest.raises(EgressError) as caught:
            leave(wire, GOOD["train"][1], book, TO)
        assert CANARY not in str(caught.value)
        assert list(caught.value.problems) == book.rows[0][1]
    assert CANARY not in json.dumps([row[0].as_json() for row in book.rows])
    assert len(book.rows) == 1


@given(st.integers(-2, 6), st.integers(-2, 6), st.sampled_from([0.5, 0, -1.0, math.inf, "x"]))
def test_counts_leave_as_a_coordinator_takes_them(correct: int, total: int, seconds: Any) -> None:
    config = {**GOOD["evaluate"][0].config, "correct": correct, "total": total, "seconds": seconds}
    wire = Wire({}, config)
    try:
        read_evaluation(wire, MANIFEST, ASKED)
    except MessageError:
        with pytest.raises(EgressError):
            leave(wire, GOOD["evaluate"][1], Book(), TO)
        return
    leave(wire, GOOD["evaluate"][1], Book(), TO)


@given(st.integers(-2 * MOST, 2 * MOST) | st.floats() | st.booleans(), st.sampled_from(["", "0" * 64, "x"]))
def test_a_gain_leaves_as_a_coordinator_takes_it(noised: Any, release: str) -> None:
    wire = Wire(
        {}, {**GOOD["query.gain"][0].config, "noised": noised, "release_id": release or TASK.release_id}
    )
    try:
        read_gain(wire, GainQuestion(TASK.release_id))
    except MessageError:
        with pytest.raises(EgressError):
            leave(wire, GOOD["query.gain"][1], Book(), TO)
        return
    leave(wire, GOOD["query.gain"][1], Book(), TO)


def test_what_is_declined_is_written_down_and_nothing_leaves() -> None:
    book = Book()
    with pytest.raises(EgressError, match="no gain is known"):
        decline("query.gain", book, TO, ["no gain is known"])
    ((departure, problems),) = book.rows
    assert (departure.kind, departure.bytes, problems) == ("query.gain", 0, ["no gain is known"])


@given(st.integers(-1, 9), st.booleans())
def test_no_number_leaves_but_the_devices_own(number: int, more: bool) -> None:
    wire = Wire({"x": np.zeros(1, np.float32)} if more else {}, Hello(number).wire().config)
    if number == 7 and not more:
        assert read_hello(leave(wire, allowed_hello(7), Book(), TO)) == Hello(7)
        return
    with pytest.raises(EgressError):
        leave(wire, allowed_hello(7), Book(), TO)


def test_the_owners_bound_and_the_tasks_clip_both_hold() -> None:
    wire = contribution()  # of norm 0.4
    for clip, own, leaves in [(0.5, 0.4, True), (0.5, 0.39, False), (0.39, 1.0, False)]:
        task = replace(TASK, settings=LocalSettings(clip=clip))
        problems = allowed_contribution(MANIFEST, task, own).problems(wire)
        assert problems == ([] if leaves else ["its norm is larger than 0.39"])


def test_a_type_of_error_that_is_not_on_the_list_leaves_as_an_error() -> None:
    made = type(CANARY.replace(" ", "_"), (Exception,), {})
    assert of_error(made()).config == {"reason": "Exception"}
    assert of_error(StoreError("x")).config == {"reason": "StoreError"}
    assert allowed_error().problems(Wire({}, {"reason": CANARY})) != []


def test_a_subclass_of_array_does_not_leave() -> None:
    """What such a class would do when it is sent is its own affair."""
    wire = contribution()
    masked = {name: np.ma.masked_array(array) for name, array in wire.arrays.items()}
    assert len(GOOD["train"][1].problems(Wire(masked, wire.config))) == 2
