"""The strategy, its journal and its settings, over a grid whose devices do as each test says."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st
from tests.linear_engine import SHAPES, linear_engine

from umbel.coordinator.federation.envelopes import wire_bytes
from umbel.coordinator.federation.journal import Begun, Journal, RoundRecord, RoundsResult
from umbel.coordinator.federation.line import Stopped
from umbel.coordinator.federation.sampling import sampled
from umbel.coordinator.federation.server_step import moved
from umbel.coordinator.federation.settings import RoundSettings
from umbel.coordinator.strategy import PersonalRounds
from umbel.shared.errors import ConfigError, TrainingError
from umbel.shared.messages import Contribution, EvaluationReply, Hello, RoundTask, Wire, clipped, read_task
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import generator
from umbel.simulations.engines.serial import SerialGrid

MANIFEST = linear_engine().release.manifest
RELEASE = MANIFEST.release_id
SETTINGS = RoundSettings(rounds=3, clients=3, seed=4, evaluate_clients=2, clip=1e3, secure=False)
Values = dict[str, npt.NDArray[np.float32]]
Work = Callable[[int, RoundTask], Wire]


def start_values() -> Values:
    return {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def change_of(client: int, round_: int) -> Values:
    rng = generator(9, round_, str(client), "change")
    return {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in SHAPES.items()}


def contribution(client: int, task: RoundTask) -> Contribution:
    # The change depends on the values too, so that a round that was lost would be seen in all later ones.
    quarter = np.float32(0.25)
    change = {name: c + quarter * task.arrays[name] for name, c in change_of(client, task.round).items()}
    return Contribution(RELEASE, task.round, clipped(change, task.settings.clip), client + 1, 0.25)


def usual(client: int, task: RoundTask) -> Wire:
    if task.stage == "train":
        return contribution(client, task).wire()
    return EvaluationReply(RELEASE, task.round, client, client + 2, 0.25).wire()


def grid_of(
    work: Work = usual, population: int = 6, numbers: Callable[[int], int] = lambda n: n
) -> SerialGrid:
    """Returns a grid whose device n answers `work(numbers(n), task)`."""

    def respond(message: Message, context: Context) -> Message:
        client = numbers(int(context.node_config["partition-id"]))
        if message.metadata.message_type == "query":
            return answered(message, Hello(client).wire())
        arrays, config = message.content["arrays"], message.content["config"]
        assert isinstance(arrays, ArrayRecord)
        assert isinstance(config, ConfigRecord)
        try:
            return answered(message, work(client, read_task(Wire.of(arrays, config), MANIFEST)))
        except OSError as error:
            return Message(Error(2, type(error).__name__), reply_to=message)

    return SerialGrid({}, population, respond)


def answered(message: Message, wire: Wire) -> Message:
    arrays = ArrayRecord({name: Array(array) for name, array in wire.arrays.items()})
    return Message(
        RecordDict({"arrays": arrays, "config": ConfigRecord(dict(wire.config))}), reply_to=message
    )


def strategy(settings: RoundSettings = SETTINGS, **changes: Any) -> PersonalRounds:
    arguments = {"reached": RoundsResult([], start_values()), "population": 6, **changes}
    return PersonalRounds(MANIFEST, settings, **arguments)


def run(settings: RoundSettings = SETTINGS, grid: Grid | None = None, **changes: Any) -> RoundsResult:
    rounds = strategy(settings, **changes)
    rounds.start(grid or grid_of())
    return rounds.reached


def assert_same(found: Values, expected: Values) -> None:
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def without_seconds(records: Iterable[RoundRecord]) -> list[RoundRecord]:
    return [replace(record, seconds=0.0) for record in records]


def test_the_values_move_by_the_mean_change_of_the_sampled_devices() -> None:
    found = run(replace(SETTINGS, server_rate=0.5))
    values = {name: np.zeros(shape, np.float64) for name, shape in SHAPES.items()}
    for round_ in (1, 2, 3):
        chosen = sampled(range(6), 3, 4, round_, "sample")
        for name in SHAPES:
            changes = [change_of(client, round_)[name] + values[name] / 4 for client in chosen]
            values[name] = values[name] + 0.5 * sum(changes) / 3
    for name in SHAPES:
        np.testing.assert_allclose(found.trainables[name], values[name], rtol=0, atol=1e-6)
    assert [(record.round, record.clients, record.failures) for record in found.rounds] == [
        (1, 3, 0), (2, 3, 0), (3, 3, 0),
    ]  # fmt: skip


def test_the_panel_is_the_same_in_every_round_and_users_count_alike() -> None:
    panel = sampled(range(6), 2, 4, 0, "evaluation panel")
    expected = sum(client / (client + 2) for client in panel) / 2
    assert [record.seen_accuracy for record in run().rounds] == [expected] * 3
    assert [record.seen_accuracy for record in run(replace(SETTINGS, evaluate_clients=0)).rounds] == [
        None
    ] * 3


def test_the_order_and_the_ids_of_the_nodes_change_nothing() -> None:
    found, expected = run(grid=grid_of(numbers=lambda n: 5 - n)), run()
    assert_same(found.trainables, expected.trainables)
    assert without_seconds(found.rounds) == without_seconds(expected.rounds)


def test_a_run_that_goes_on_equals_one_that_was_not_interrupted(tmp_path: Path) -> None:
    settings = replace(SETTINGS, server_momentum=0.5)
    whole = run(settings)
    journal = Journal(tmp_path, RELEASE, 6, settings)
    run(replace(settings, rounds=1), on_round=journal.write)
    reached = journal.read()
    assert reached is not None
    assert len(reached.rounds) == 1
    found = run(settings, reached=reached, on_round=journal.write)
    assert_same(found.trainables, whole.trainables)
    assert without_seconds(found.rounds) == without_seconds(whole.rounds)
    kept = journal.read()
    assert kept is not None
    assert_same(kept.trainables, whole.trainables)
    assert_same(kept.velocity, whole.velocity)
    assert kept.rounds == found.rounds
    assert len(list(tmp_path.glob("trainables-*"))) == 1


def test_a_finished_run_asks_no_device() -> None:
    def never(client: int, task: RoundTask) -> Wire:
        raise AssertionError

    done = run()
    again = run(grid=grid_of(never, population=0), reached=done)
    assert again is done


def test_failed_devices_are_counted_and_the_others_are_averaged() -> None:
    chosen = sampled(range(6), 3, 4, 1, "sample")

    def work(client: int, task: RoundTask) -> Wire:
        if client == chosen[0]:
            raise OSError("a disk is full")
        return usual(client, task)

    settings = replace(SETTINGS, rounds=1, evaluate_clients=0)
    found = run(settings, grid_of(work))
    assert (found.rounds[0].clients, found.rounds[0].failures) == (2, 1)
    assert found.rounds[0].notes == (f"round 1, train, device {chosen[0]:06d}: OSError",)
    mean = {name: sum(change_of(c, 1)[name].astype(float) for c in chosen[1:]) / 2 for name in SHAPES}
    for name in SHAPES:
        np.testing.assert_allclose(found.trainables[name], mean[name], rtol=0, atol=1e-6)


def test_too_few_answers_leave_the_values_and_say_so() -> None:
    def work(client: int, task: RoundTask) -> Wire:
        raise OSError

    found = run(replace(SETTINGS, rounds=1, min_replies=2), grid_of(work))
    assert_same(found.trainables, start_values())
    record = found.rounds[0]
    assert (record.clients, record.failures, record.seen_accuracy) == (0, 5, None)
    assert "round 1 changed nothing: 0 of 3 devices gave a usable answer, 2 are needed" in record.notes


@pytest.mark.parametrize(
    ("spoiled", "problem"),
    [
        (lambda c: replace(c, change={n: v * 1e6 for n, v in c.change.items()}), "the change has norm"),
        (lambda c: replace(c, round=c.round + 1), "it answers round 2, not round 1"),
        (
            lambda c: replace(c, change={**c.change, "user.bias": np.ones(2, np.float32)}),
            "unknown tensor 'user.bias'",
        ),
        (
            lambda c: replace(c, change={n: v * np.float32("nan") for n, v in c.change.items()}),
            "head.weight: holds values that are not finite",
        ),
    ],
)
def test_an_answer_that_breaks_the_contract_is_left_out(
    spoiled: Callable[[Contribution], Contribution], problem: str
) -> None:
    rogue = sampled(range(6), 3, 4, 1, "sample")[1]

    def work(client: int, task: RoundTask) -> Wire:
        if client == rogue and task.stage == "train":
            return spoiled(contribution(client, task)).wire()
        return usual(client, task)

    found = run(replace(SETTINGS, rounds=1), grid_of(work)).rounds[0]
    assert (found.clients, found.failures) == (2, 1)
    assert problem in found.notes[0]


def test_late_and_repeated_answers_change_nothing() -> None:
    """Every answer comes twice, the second time larger, and the last round's come again in the next."""
    grid = grid_of()
    kept: list[Message] = []
    answers = grid.pull_messages

    def again_and_again(message_ids: Iterable[str]) -> Iterable[Message]:
        fresh, late = list(answers(message_ids)), list(kept)
        kept.extend(fresh)
        return [*late, *fresh, *fresh, *late]

    grid.pull_messages = again_and_again  # type: ignore[method-assign]
    found, expected = run(grid=grid), run()
    assert_same(found.trainables, expected.trainables)
    assert without_seconds(found.rounds) == without_seconds(expected.rounds)


def test_a_second_answer_of_a_device_is_not_looked_at() -> None:
    """Whoever answers another task than their own is heard once, and the other task stays without answer."""
    first, second, _ = sampled(range(6), 3, 4, 1, "sample")
    grid = grid_of()
    answers = grid.pull_messages

    def two_from_one(message_ids: Iterable[str]) -> Iterable[Message]:
        found = list(answers(message_ids))
        for reply in found:
            if reply.metadata.src_node_id == second + 1000 and reply.metadata.group_id == "1":
                reply.metadata.__dict__["_src_node_id"] = first + 1000
        return found

    grid.pull_messages = two_from_one  # type: ignore[method-assign]
    found = run(replace(SETTINGS, rounds=1, evaluate_clients=0), grid)
    assert (found.rounds[0].clients, found.rounds[0].failures) == (2, 1)
    assert found.rounds[0].notes == (f"round 1, train, device {second:06d}: no answer",)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_a_robust_rule_can_be_chosen(rule: str) -> None:
    """One device of six sends the largest change that passes; the rule does not follow it, the mean does."""

    def work(client: int, task: RoundTask) -> Wire:
        size = np.float32(40.0 if client == 5 else 0.01 * client)
        change = {name: np.full(shape, size, np.float32) for name, shape in SHAPES.items()}
        return Contribution(RELEASE, task.round, change, 1, 0.25).wire()

    settings = replace(SETTINGS, rounds=1, clients=6, evaluate_clients=0)
    assert run(settings, grid_of(work)).trainables["head.bias"][0] > 6
    assert run(replace(settings, rule=rule), grid_of(work)).trainables["head.bias"][0] < 0.1


def liar(number: int) -> Work:
    """Returns the work of devices of which one sends ten times what passes."""

    def work(client: int, task: RoundTask) -> Wire:
        sent = contribution(client, task)
        if client != number or task.stage != "train":
            return usual(client, task)
        return replace(sent, change={n: v * np.float32(1e6) for n, v in sent.change.items()}).wire()

    return work


def test_a_device_that_breaks_the_contract_is_left_out_for_twice_as_long_each_time(tmp_path: Path) -> None:
    """All six are asked; device 2 lies in rounds 1, 4 and 9 and is left out of 2-3, 5-8 and 10."""
    settings = replace(SETTINGS, rounds=10, clients=6, evaluate_clients=0)
    found = run(settings, grid_of(liar(2)))
    assert [record.refused for record in found.rounds] == [
        (2,), (), (), (2,), (), (), (), (), (2,), (),
    ]  # fmt: skip
    assert [record.clients for record in found.rounds] == [5] * 10
    assert found.rounds[3].notes[1] == "round 4: device 000002 is on probation, not asked before round 9"
    # Ended after round 6 and gone on with, from what was kept: the same.
    journal = Journal(tmp_path, RELEASE, 6, settings)
    run(replace(settings, rounds=6), grid_of(liar(2)), on_round=journal.write)
    again = run(settings, grid_of(liar(2)), reached=journal.read())
    assert without_seconds(again.rounds) == without_seconds(found.rounds)
    assert_same(again.trainables, found.trainables)


def test_nobody_is_left_out_without_probation_or_for_a_crash() -> None:
    settings = replace(SETTINGS, rounds=3, clients=6, evaluate_clients=0)
    found = run(replace(settings, probation_rounds=0), grid_of(liar(2)))
    assert [record.refused for record in found.rounds] == [(2,)] * 3

    def crash(client: int, task: RoundTask) -> Wire:
        if client == 2:
            raise OSError
        return usual(client, task)

    crashed = run(settings, grid_of(crash))
    assert [(record.failures, record.refused) for record in crashed.rounds] == [(1, ())] * 3


def test_an_answer_with_one_key_more_is_left_out() -> None:
    def work(client: int, task: RoundTask) -> Wire:
        wire = usual(client, task)
        return Wire(wire.arrays, {**wire.config, "user": "ann"})

    found = run(replace(SETTINGS, rounds=1), grid_of(work)).rounds[0]
    assert (found.clients, found.failures) == (0, 5)
    assert found.notes[0].endswith("unknown key 'user'")


def test_bytes_are_those_of_the_records_that_travel() -> None:
    found = run(replace(SETTINGS, rounds=1, evaluate_clients=0)).rounds[0]
    floats = 4 * sum(int(np.prod(shape)) for shape in SHAPES.values())
    # Three devices; each tensor comes with a header of 128 bytes, and names, config and hashes are small.
    assert 3 * floats < found.bytes_up < 3 * (floats + 2000)
    assert 3 * floats < found.bytes_down < 3 * (floats + 2000)


def test_equal_objects_travel_once() -> None:
    one = RecordDict({"a": ArrayRecord({"x": Array(np.arange(50, dtype=np.float32))})})
    two = RecordDict(
        {"a": ArrayRecord({name: Array(np.arange(50, dtype=np.float32)) for name in ("x", "y")})}
    )
    assert 200 < wire_bytes(one) < wire_bytes(two) < wire_bytes(one) + 200


def test_devices_that_share_a_number_are_refused() -> None:
    with pytest.raises(TrainingError) as error:
        run(grid=grid_of(numbers=lambda n: n // 2))
    assert "1 devices: number 0 is given by more than one device" in error.value.problems


def test_missing_devices_are_waited_for_and_then_named() -> None:
    with pytest.raises(TrainingError, match="6 devices can take part, 7 are needed"):
        run(replace(SETTINGS, timeout_s=0.3), population=7)


def test_a_run_without_a_population_begins_with_those_that_are_there() -> None:
    assert_same(run(population=0).trainables, run().trainables)


def test_a_stop_ends_the_wait_and_keeps_what_was_finished() -> None:
    finished: list[RoundsResult] = []

    grid = grid_of()
    answers = grid.pull_messages

    def deaf_once_a_round_is_done(message_ids: Iterable[str]) -> Iterable[Message]:
        return [] if finished else answers(message_ids)

    grid.pull_messages = deaf_once_a_round_is_done  # type: ignore[method-assign]
    rounds = strategy(on_round=finished.append, stopped=lambda: bool(finished))
    with pytest.raises(Stopped):
        rounds.start(grid)
    assert [len(reached.rounds) for reached in finished] == [1]


def test_momentum_keeps_a_share_of_the_last_move() -> None:
    # v: 1, then 0.5 * 1 + 1 = 1.5; x: 0 + 2 * 1 = 2, then 2 + 2 * 1.5 = 5.
    one = {"x": np.ones(1, np.float32)}
    values, velocity = moved({"x": np.zeros(1, np.float32)}, {}, one, 2.0, 0.5)
    assert (values["x"][0], velocity["x"][0]) == (2.0, 1.0)
    values, velocity = moved(values, velocity, one, 2.0, 0.5)
    assert (values["x"][0], velocity["x"][0]) == (5.0, 1.5)
    assert moved(values, {}, one, 2.0, 0.0)[1] == {}


@given(st.integers(1, 40), st.integers(0, 50), st.integers(0, 9), st.integers(0, 9))
def test_a_sample_is_sorted_without_doubles_and_a_function_of_its_place(
    total: int, count: int, seed: int, round_: int
) -> None:
    clients = [7 * n for n in range(total)]
    found = sampled(clients, count, seed, round_, "sample")
    assert found == sorted(set(found))
    assert set(found) <= set(clients)
    assert len(found) == min(count, total)
    assert found == sampled(clients, count, seed, round_, "sample")


def test_samples_differ_between_rounds_and_seeds() -> None:
    samples = {tuple(sampled(range(100), 10, seed, r, "sample")) for seed in (0, 1) for r in (1, 2, 3)}
    assert len(samples) == 6


def test_settings_go_through_a_run_config() -> None:
    settings = replace(
        SETTINGS, recipe=LearningRecipe(steps=3), weighting="examples", server_rate=2, timeout_s=9
    )
    config = settings.as_run_config()
    assert all(isinstance(value, str | int | float | bool) for value in config.values())
    assert RoundSettings.from_run_config({**config, "release": "elsewhere"}) == settings
    assert RoundSettings.from_run_config({"local_rate": 1}).local_rate == 1.0
    assert RoundSettings.from_run_config({}) == RoundSettings()


def test_all_problems_of_settings_are_listed() -> None:
    config = {
        "rounds": -1,
        "clients": 0,
        "clip": True,
        "server_momentum": 1.0,
        "weighting": "best",
        "rule": "best",
        "outlier_share": 0.5,
        "seed": "x",
    }
    with pytest.raises(ConfigError) as error:
        RoundSettings.from_run_config(config)
    assert [problem.split(" is ")[0] for problem in error.value.problems] == [
        "clip", "rounds", "clients", "seed", "server_momentum", "outlier_share", "rule",
        "weighting",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="recipe: missing key 'steps'"):
        RoundSettings.from_run_config({"recipe": "{}"})
    with pytest.raises(ConfigError, match="recipe is not the JSON of a learning recipe"):
        RoundSettings.from_run_config({"recipe": "[" * 100_000})


def test_only_the_mean_weighs_and_only_weights_that_can_be_summed() -> None:
    with pytest.raises(ConfigError, match="rule 'median' does not weigh devices"):
        RoundSettings(rule="median", weighting="examples")
    with pytest.raises(ConfigError, match="clients times example_cap is 2000000000, at most 1073741824"):
        RoundSettings(weighting="examples", clients=20_000, example_cap=100_000)


def test_a_journal_of_other_settings_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path, RELEASE, 6, SETTINGS).write(RoundsResult([], start_values()))
    others = replace(SETTINGS, rounds=9, timeout_s=5.0, secure_stage_s=5.0)
    longer = Journal(tmp_path, RELEASE, 6, others).read()
    assert longer is not None
    with pytest.raises(ConfigError) as error:
        Journal(tmp_path, "f" * 64, 7, replace(SETTINGS, seed=5)).read()
    assert error.value.problems == (
        "population was 6, is now 7",
        f"release was {RELEASE!r}, is now {'f' * 64!r}",
        "seed was 4, is now 5",
    )


def test_rounds_go_on_with_what_has_computed_them_and_those_that_do_not_say_were_onnxruntimes(
    tmp_path: Path,
) -> None:
    Journal(tmp_path, RELEASE, 6, SETTINGS, compute="torch:cuda:bfloat16").write(
        RoundsResult([], start_values())
    )
    with pytest.raises(ConfigError) as error:
        Journal(tmp_path, RELEASE, 6, SETTINGS).read()
    assert error.value.problems == ("compute was 'torch:cuda:bfloat16', is now 'onnxruntime'",)
    journal = Journal(tmp_path, RELEASE, 6, SETTINGS)
    journal.write(RoundsResult([], start_values()))
    journal.begin(Begun(1, (2, 4)))
    for file in (tmp_path / "rounds.json", tmp_path / "begun.json"):
        row = json.loads(file.read_text())
        assert row["settings"].pop("compute") == "onnxruntime"
        assert row["settings"].pop("people") == ""
        row["settings"]["clients_per_round"] = row["settings"].pop("clients")
        file.write_text(json.dumps(row))
    assert journal.read() is not None
    assert journal.begun() == Begun(1, (2, 4))
    other = Journal(tmp_path, RELEASE, 6, SETTINGS, compute="torch:cpu")
    assert other.begun() is None
    with pytest.raises(ConfigError, match="compute was 'onnxruntime', is now 'torch:cpu'"):
        other.read()


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, RELEASE, 6, SETTINGS)
    assert journal.read() is None
    journal.write(RoundsResult([], start_values()))
    (tensors,) = tmp_path.glob("trainables-*")
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(ConfigError, match="is damaged"):
        journal.read()
    row = json.loads((tmp_path / "rounds.json").read_text())
    for text in ("{", json.dumps({**row, "rounds": [{}]}), "[]", "[" * 100_000):
        (tmp_path / "rounds.json").write_text(text)
        with pytest.raises(ConfigError, match="is not a journal"):
            journal.read()
    (tmp_path / "rounds.json").write_text(json.dumps({**row, "schema": "umbel.rounds/9"}))
    with pytest.raises(ConfigError, match="is of another version"):
        journal.read()


RECORD = RoundRecord(1, 3, 0, 0.5, 200, 100, 0.75, ("a note",), (7,))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"round": 2}, "round is 2, expected an integer from 1 to 1"),
        ({"clients": "x"}, "clients is x, expected an integer"),
        ({"clients": -1}, "clients is -1, expected an integer"),
        ({"failures": None}, "failures is None, expected an integer"),
        ({"seconds": float("inf")}, "seconds is inf, expected a number"),
        ({"bytes_up": 1.5}, "bytes_up is 1.5, expected an integer"),
        ({"bytes_down": True}, "bytes_down is True, expected an integer"),
        ({"seen_accuracy": 9}, "seen_accuracy is 9, expected a number from 0 to 1"),
        ({"notes": "a note"}, "notes is no list of texts"),
        ({"refused": [-1]}, "refused is no list of devices' numbers"),
        ({"more": 1}, "its keys are not those of a round"),
    ],
)
def test_a_round_that_cannot_have_been_is_refused_when_it_is_read(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    journal = Journal(tmp_path, RELEASE, 6, SETTINGS)
    journal.write(RoundsResult([RECORD], start_values()))
    found = journal.read()
    assert found is not None
    assert found.rounds == [RECORD]
    row = json.loads((tmp_path / "rounds.json").read_text())
    row["rounds"][0] |= change
    (tmp_path / "rounds.json").write_text(json.dumps(row))
    with pytest.raises(ConfigError, match=r"rounds\.json is not a journal of rounds") as error:
        journal.read()
    (found_problem,) = error.value.problems
    assert found_problem.startswith(f"round 1: {problem}")


@pytest.mark.parametrize(
    "change",
    [
        {"settings": [[1, 2]]},
        {"rounds": {}},
        {"rounds": ["one"]},
        {"trainables": {"file": "\x00", "sha256": "a" * 64}},
        {"trainables": {"file": "trainables-.safetensors", "sha256": ""}},
        {"trainables": 5},
    ],
)
def test_a_journal_of_a_wrong_shape_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    journal = Journal(tmp_path, RELEASE, 6, SETTINGS)
    journal.write(RoundsResult([RECORD], start_values()))
    row = json.loads((tmp_path / "rounds.json").read_text())
    (tmp_path / "rounds.json").write_text(json.dumps(row | change))
    with pytest.raises(ConfigError, match=r"rounds\.json is not a journal of rounds"):
        journal.read()


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="the rounds cannot be kept"):
        Journal(tmp_path / "out", RELEASE, 6, SETTINGS).write(RoundsResult([], start_values()))
