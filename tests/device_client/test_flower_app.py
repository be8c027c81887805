"""The ClientApp as a real device starts it: home and release in its node config, and a quiet egress."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# A device without the `flower` extra takes part in no rounds.
pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from tests.builders import write_devices
from tests.linear_engine import LinearEngine, linear_engine

from umbel.device_client import flower_app
from umbel.device_client.flower_app import answer, reply
from umbel.shared.errors import ConfigError, ExampleError, MessageError
from umbel.shared.examples import Example, write_examples
from umbel.shared.messages import LocalSettings, RoundTask, Wire, read_contribution, read_hello

pytestmark = pytest.mark.full
ENGINE = linear_engine()


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> LinearEngine:
    monkeypatch.setattr(flower_app, "_engine", lambda context: ENGINE)
    return LinearEngine()


def context(node: dict[str, Any], run: dict[str, Any] | None = None) -> Context:
    return Context(run_id=1, node_id=5, node_config=node, state=RecordDict(), run_config=run or {})


def message(stage: str = "train", *, sent_as: str = "") -> Message:
    task = RoundTask(ENGINE.release.release_id, 1, 0, stage, LocalSettings(), ENGINE.trainables())
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in task.wire().arrays.items()}),
            "config": ConfigRecord(dict(task.wire().config)),
        }
    )
    return Message(content, 5, sent_as or stage)


def wire_of(answered: Message) -> Wire:
    arrays, config = answered.content["arrays"], answered.content["config"]
    assert isinstance(arrays, ArrayRecord)
    assert isinstance(config, ConfigRecord)
    return Wire.of(arrays, config)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    examples = [Example("ann", "good film", "yes"), Example("ann", "bad slow book", "no")]
    write_examples(tmp_path / "home" / "examples.jsonl", examples)
    return tmp_path / "home"


def test_a_real_device_is_known_by_its_home(home: Path, engine: LinearEngine) -> None:
    node = {"home": str(home)}
    hello = read_hello(wire_of(answer(message(sent_as="query"), context(node))))
    assert str(hello.client) == (home / "client").read_text().strip()
    answered = answer(message(), context(node))
    task = RoundTask(ENGINE.release.release_id, 1, 0, "train", LocalSettings(), ENGINE.trainables())
    contribution = read_contribution(wire_of(answered), ENGINE.release.manifest, task)
    assert any(np.abs(change).max() > 0 for change in contribution.change.values())
    assert len(list(home.glob("profile-*.umbel"))) == 1


def test_a_simulated_device_is_known_by_its_partition(tmp_path: Path) -> None:
    write_devices(tmp_path, [2, 2])
    found = answer(message(sent_as="query"), context({"partition-id": 1}, {"devices": str(tmp_path)}))
    assert read_hello(wire_of(found)).client == 1


def test_a_device_without_a_home_says_what_is_missing() -> None:
    with pytest.raises(ConfigError) as error:
        answer(message(), context({}))
    assert error.value.problems == (
        "node config has no 'home'",
        "node config has no 'partition-id'",
        "run config has no 'devices'",
    )


def test_a_device_without_a_release_says_so(home: Path) -> None:
    with pytest.raises(ConfigError, match="no release"):
        answer(message(), context({"home": str(home)}))


def test_a_task_that_came_under_another_name_is_refused(home: Path, engine: LinearEngine) -> None:
    with pytest.raises(MessageError, match="it is for evaluate, but came as train"):
        answer(message("evaluate", sent_as="train"), context({"home": str(home)}))


def test_another_record_is_refused(home: Path, engine: LinearEngine) -> None:
    asked = message()
    asked.content["more"] = ConfigRecord({"code": "print()"})
    with pytest.raises(MessageError, match="records are"):
        answer(asked, context({"home": str(home)}))


@pytest.mark.parametrize("error", [ValueError("a secret text"), ExampleError("line 1: no label")])
def test_of_an_error_only_its_type_leaves_and_no_text_is_logged(
    error: Exception, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(context: Context) -> None:
        raise error

    monkeypatch.setattr(flower_app, "_engine", broken)
    with caplog.at_level(logging.WARNING):
        answered = reply(message(), context({"home": str(home), "partition-id": 3}))
    assert answered.error.reason == type(error).__name__
    assert "train failed on device 000003" in caplog.text
    assert "secret" not in caplog.text


def test_a_process_keeps_one_engine_per_release(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[str] = []

    def make(release: str, threads: int) -> object:
        made.append(release)
        return object()

    monkeypatch.setattr(flower_app, "read_release", lambda folder: folder.name)
    monkeypatch.setattr(flower_app, "Engine", make)
    flower_app._engine_of.cache_clear()
    try:
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "manifest.json").write_text("1")
        at = context({"home": str(home)}, {"release": str(tmp_path / "r")})
        assert flower_app._engine(at) is flower_app._engine(at)
        (tmp_path / "r" / "manifest.json").write_text("2")
        flower_app._engine(at)
    finally:
        flower_app._engine_of.cache_clear()
    assert made == ["r", "r"]
