"""The ClientApp as an owner's device starts it: its home in its node config, its gate, and a quiet egress."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# A device without the `flower` extra takes part in no rounds.
pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from tests.builders import write_devices
from tests.linear_engine import linear_engine

from umbel.device_client import enrolled, flower_app, rounds
from umbel.device_client.egress.policy import Policy
from umbel.device_client.engine import Engine
from umbel.device_client.flower_app import answer, reply
from umbel.device_client.owner import Device
from umbel.device_client.rounds import train
from umbel.device_client.simulated import SimulatedHome
from umbel.shared.errors import ConfigError, EgressError, ExampleError, MessageError, ReleaseError, StoreError
from umbel.shared.examples import Example, write_examples
from umbel.shared.messages import LocalSettings, RoundTask, Wire, l2_norm, read_contribution, read_hello
from umbel.shared.release import Release, write_release

pytestmark = pytest.mark.full
CANARY = "a canary sang in the mine at noon"
MINE = [
    Example("owner", "good film", "yes"),
    Example("owner", "bad slow book", "no"),
    Example("owner", CANARY, "no"),
]


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    monkeypatch.delenv("UMBEL_PASSPHRASE", raising=False)


def context(node: dict[str, Any], run: dict[str, Any] | None = None) -> Context:
    return Context(run_id=1, node_id=5, node_config=node, state=RecordDict(), run_config=run or {})


@pytest.fixture(scope="module")
def task(tiny_release: Release) -> RoundTask:
    values = Engine(tiny_release).trainables()
    return RoundTask(tiny_release.release_id, 3, 0, "train", LocalSettings(), values)


def message(task: RoundTask, sent_as: str = "") -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in task.wire().arrays.items()}),
            "config": ConfigRecord(dict(task.wire().config)),
        }
    )
    return Message(content, 5, sent_as or task.stage)


def wire_of(answered: Message) -> Wire:
    arrays, config = answered.content["arrays"], answered.content["config"]
    assert isinstance(arrays, ArrayRecord)
    assert isinstance(config, ConfigRecord)
    return Wire.of(arrays, config)


@pytest.fixture
def home(tmp_path: Path, tiny_release: Release) -> Path:
    with Device.enroll(tmp_path / "home", tiny_release.folder) as device:
        device.add(MINE)
        device.keep_policy(Policy("always", least_in_a_sum=1))
    return tmp_path / "home"


def changed(home: Path, change: Callable[[Device], object]) -> None:
    with Device.open(home) as device:
        change(device)


def egress(home: Path) -> list[dict[str, Any]]:
    with Device.open(home) as device:
        return device.egress()


def told(row: dict[str, Any]) -> tuple[str, str]:
    return row["kind"], row["outcome"]


def test_an_owners_device_is_known_by_a_number_of_its_home(home: Path, task: RoundTask) -> None:
    node = {"home": str(home)}
    first = read_hello(wire_of(answer(message(task, "query"), context(node))))
    again = read_hello(wire_of(answer(message(task, "query"), context(node, {"partition-id": 3}))))
    assert first == again
    assert 2**32 < first.client < 2**63  # 63 random bits: smaller once in 2^31
    assert first.client not in [row["to"]["node"] for row in egress(home)]


def test_a_change_leaves_and_is_written_down(home: Path, task: RoundTask, tiny_release: Release) -> None:
    node = {"home": str(home), "coordinator": "the library's"}
    answered = wire_of(answer(message(task), context(node)))
    contribution = read_contribution(answered, tiny_release.manifest, task)
    assert any(np.abs(change).max() > 0 for change in contribution.change.values())
    (row,) = egress(home)
    assert told(row) == ("train", "sent")
    assert (row["release"], row["round"], row["why"]) == (tiny_release.release_id, 3, [])
    assert row["to"] == {"run": 1, "node": 5, "sender": 1, "coordinator": "the library's"}
    assert row["tensors"] == len(tiny_release.manifest.trainables)
    assert row["norm"] == pytest.approx(l2_norm(contribution.change.values()))
    numbers = sum(4 * change.size for change in contribution.change.values())
    assert numbers < row["bytes"] < numbers + 400
    with Device.open(home) as device:
        own = device.status()
        assert own["profile"]["how"] == "learned in a round"
        assert (own["egress"]["messages"], own["egress"]["bytes"]) == (1, row["bytes"])


def test_an_owners_device_gives_what_a_simulated_one_with_its_number_gives(
    home: Path, task: RoundTask, tiny_release: Release, tmp_path: Path
) -> None:
    with Device.open(home) as device:
        number = device.client_number(0)
    answered = wire_of(answer(message(task), context({"home": str(home)})))
    write_examples(tmp_path / "plain" / "examples.jsonl", MINE)
    plain = train(Engine(tiny_release), SimulatedHome(tmp_path / "plain"), number, task)
    assert answered.arrays.keys() == plain.change.keys()
    for name, change in plain.change.items():
        np.testing.assert_array_equal(answered.arrays[name], change)


def test_the_owners_bound_holds_whatever_clip_is_asked_for(home: Path, task: RoundTask) -> None:
    changed(home, lambda device: device.keep_policy(Policy("always", most_norm=0.01, least_in_a_sum=1)))
    rough = replace(task, settings=replace(task.settings, local_rate=5.0, clip=100.0))
    answered = wire_of(answer(message(rough), context({"home": str(home)})))
    assert l2_norm(answered.arrays.values()) == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("sent_as", ["query", "train"])
def test_without_a_policy_nothing_leaves_but_that_something_was_refused(
    sent_as: str, task: RoundTask, tiny_release: Release, tmp_path: Path
) -> None:
    with Device.enroll(tmp_path / "home", tiny_release.folder) as device:
        device.add(MINE)
    answered = reply(message(task, sent_as), context({"home": str(tmp_path / "home")}))
    assert answered.error.reason == "EgressError"
    refused, error = egress(tmp_path / "home")
    assert (told(refused), refused["bytes"]) == ((sent_as, "refused"), 0)
    assert "policy never: nothing may leave" in refused["why"]
    assert (told(error), error["bytes"]) == (("error", "sent"), len("reasonEgressError"))
    with Device.open(tmp_path / "home") as device:
        assert device.profile() is None  # no work is done for what may not leave


def test_what_its_owner_has_learned_is_not_replaced_by_a_rounds(home: Path, task: RoundTask) -> None:
    changed(home, lambda device: device.learn())
    with Device.open(home) as device:
        own = device.profile()
    answer(message(task), context({"home": str(home)}))
    with Device.open(home) as device:
        assert device.status()["profile"]["how"] == "learned"
        kept = device.profile()
        assert [row["what"] for row in device.log()][-1] == "took part"
    assert own is not None
    assert kept is not None
    assert all(np.array_equal(kept[name], value) for name, value in own.items())


@pytest.mark.parametrize(("module", "place"), [(enrolled, "encode_examples"), (rounds, "shared_steps")])
def test_what_rests_on_something_forgotten_meanwhile_does_not_leave(
    module: Any, place: str, home: Path, task: RoundTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the profile is kept the store refuses it, after that the gate does."""
    real = getattr(module, place)

    def meanwhile(*words: Any) -> Any:
        with Device.open(home) as other:
            other.forget([1])
        return real(*words)

    monkeypatch.setattr(module, place, meanwhile)
    with pytest.raises((StoreError, EgressError), match="forgotten"):
        answer(message(task), context({"home": str(home)}))
    assert [row for row in egress(home) if row["outcome"] == "sent"] == []
    with Device.open(home) as device:
        assert device.profile() is None


def test_a_device_without_held_out_examples_says_only_that_it_could_not(home: Path, task: RoundTask) -> None:
    answered = reply(message(replace(task, stage="evaluate")), context({"home": str(home)}))
    assert answered.error.reason == "ExampleError"
    assert [told(row) for row in egress(home)] == [("error", "sent")]


def test_a_run_cannot_make_an_owners_device_a_simulated_one(
    home: Path, task: RoundTask, tmp_path: Path
) -> None:
    changed(home, lambda device: device.keep_policy(Policy("never")))
    write_devices(tmp_path / "devices", [2, 2])
    run = {"devices": str(tmp_path / "devices"), "release": str(tmp_path), "threads": 4096}
    node = {"home": str(home), "partition-id": 1}
    with pytest.raises(EgressError, match="policy never"):
        answer(message(task, "query"), context(node, run))
    changed(home, lambda device: device.keep_policy(Policy("always", least_in_a_sum=1)))
    answer(message(task), context(node, run))  # with the release of its home


def test_a_home_whose_folder_holds_another_release_takes_no_part(
    home: Path, task: RoundTask, tiny_release: Release, tmp_path: Path
) -> None:
    """Another release is whole in itself, too: only the id that the sealed store keeps tells it apart."""
    manifest = replace(tiny_release.manifest, parent=tiny_release.release_id)
    blobs = {name: tiny_release.blob_path(name).read_bytes() for name in manifest.blobs}
    other = write_release(tmp_path / "other", manifest, blobs)
    asked = message(replace(task, release_id=other.release_id))
    place = home / "releases" / tiny_release.release_id
    shutil.rmtree(place)
    shutil.copytree(other.folder, place)
    with pytest.raises(ReleaseError, match="holds another one"):
        answer(asked, context({"home": str(home)}))
    assert flower_app._engine(context({"release": str(other.folder)}), SimulatedHome(tmp_path)) is not None


def test_a_passphrase_comes_from_the_environment(
    home: Path, task: RoundTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(home, lambda device: device.rekey("passphrase", lambda: "correct horse battery"))
    with pytest.raises(StoreError, match="UMBEL_PASSPHRASE"):
        answer(message(task, "query"), context({"home": str(home)}))
    monkeypatch.setenv("UMBEL_PASSPHRASE", "correct horse battery")
    read_hello(wire_of(answer(message(task, "query"), context({"home": str(home)}))))


def test_a_simulated_device_is_known_by_its_partition(tmp_path: Path, task: RoundTask) -> None:
    write_devices(tmp_path, [2, 2])
    at = context({"partition-id": 1}, {"devices": str(tmp_path)})
    assert read_hello(wire_of(answer(message(task, "query"), at))).client == 1


def test_a_device_without_a_home_says_what_is_missing(task: RoundTask) -> None:
    with pytest.raises(ConfigError) as error:
        answer(message(task), context({}))
    assert error.value.problems == (
        "node config has no 'home'",
        "node config has no 'partition-id'",
        "run config has no 'devices'",
    )


def test_a_home_that_is_none_says_how_to_begin(tmp_path: Path, task: RoundTask) -> None:
    with pytest.raises(StoreError, match="umbel device enroll"):
        answer(message(task), context({"home": str(tmp_path)}))
    assert reply(message(task), context({"home": str(tmp_path)})).error.reason == "StoreError"


def test_a_simulated_device_without_a_release_says_so(tmp_path: Path, task: RoundTask) -> None:
    write_devices(tmp_path, [2])
    with pytest.raises(ConfigError, match="no release"):
        answer(message(task), context({"partition-id": 0}, {"devices": str(tmp_path)}))


def test_a_task_that_came_under_another_name_is_refused(home: Path, task: RoundTask) -> None:
    with pytest.raises(MessageError, match="it is for evaluate, but came as train"):
        answer(message(replace(task, stage="evaluate"), "train"), context({"home": str(home)}))


def test_another_record_is_refused(home: Path, task: RoundTask) -> None:
    asked = message(task)
    asked.content["more"] = ConfigRecord({"code": "print()"})
    with pytest.raises(MessageError, match="records are"):
        answer(asked, context({"home": str(home)}))


class CanaryError(Exception):
    """An error of a library, whose type's name is not on the list."""


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError(CANARY), "ValueError"),
        (ExampleError("line 1: no label"), "ExampleError"),
        (CanaryError(CANARY), "Exception"),
    ],
)
def test_of_an_error_only_its_type_leaves_and_no_text_is_logged(
    error: Exception,
    name: str,
    home: Path,
    task: RoundTask,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(context: Context, home: object) -> None:
        raise error

    monkeypatch.setattr(flower_app, "_engine", broken)
    with caplog.at_level(logging.WARNING):
        answered = reply(message(task), context({"home": str(home), "partition-id": 3}))
    assert answered.error.reason == name
    assert "train failed on device 000003" in caplog.text
    assert CANARY not in caplog.text + json.dumps(egress(home))


def test_a_process_keeps_one_engine_per_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[str] = []

    def make(release: str, threads: int, compute: str) -> object:
        made.append(release)
        return object()

    monkeypatch.setattr(flower_app, "read_release", lambda folder: folder.name)
    monkeypatch.setattr(flower_app, "Engine", make)
    flower_app._engine_of.cache_clear()
    home = SimulatedHome(tmp_path)
    try:
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "manifest.json").write_text("1")
        at = context({}, {"release": str(tmp_path / "r")})
        assert flower_app._engine(at, home) is flower_app._engine(at, home)
        (tmp_path / "r" / "manifest.json").write_text("2")
        flower_app._engine(at, home)
    finally:
        flower_app._engine_of.cache_clear()
    assert made == ["r", "r"]


def test_what_a_gate_refuses_is_an_error_without_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the work itself, here a change that is no number, is stopped in a simulation, too."""
    engine = linear_engine()
    ask = RoundTask(engine.release.release_id, 1, 0, "train", LocalSettings(), engine.trainables())
    write_examples(tmp_path / "000000" / "examples.jsonl", MINE[:2])
    monkeypatch.setattr(flower_app, "_engine", lambda context, home: engine)
    broken = {"head.weight": np.full((2, 5), np.nan, np.float32), "head.bias": np.zeros(2, np.float32)}

    def steps(*words: Any) -> Any:
        yield from ()  # as the steps of a device's work are
        return broken

    monkeypatch.setattr(rounds, "shared_steps", steps)
    with pytest.raises(EgressError, match=r"head\.weight holds values that are not finite"):
        answer(message(ask), context({"partition-id": 0}, {"devices": str(tmp_path)}))
