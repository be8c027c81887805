"""Owners' devices in a secure sum, through the ClientApp: gate, policy, and a node that starts again."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from tests.builders import random_examples

from umbel.coordinator.federation.secure.plan import SecureSettings
from umbel.coordinator.federation.secure.summing import SecureSum, Summing
from umbel.device_client.egress.policy import Consent, Policy
from umbel.device_client.engine import Engine
from umbel.device_client.enrolled import EnrolledHome
from umbel.device_client.flower_app import reply
from umbel.device_client.owner import Device
from umbel.device_client.rounds import train
from umbel.device_client.secure.held import unpacked
from umbel.device_client.simulated import SimulatedHome
from umbel.shared.examples import write_examples
from umbel.shared.messages import LocalSettings, RoundTask, Wire
from umbel.shared.release import Release
from umbel.shared.secure.grid import Grid, vector_size
from umbel.shared.secure.messages import COLLECT, SETUP, SHARE, STAGES, UNMASK

pytestmark = pytest.mark.full
OWNERS = 5
Homes = Mapping[int, Path]


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def homes(tmp_path: Path, tiny_release: Release) -> Homes:
    for number in range(OWNERS):
        with Device.enroll(tmp_path / str(number), tiny_release.folder) as device:
            device.add(random_examples(0, f"owner {number}", 3))
            device.keep_policy(Policy("always", least_in_a_sum=3))
    return {number: tmp_path / str(number) for number in range(OWNERS)}


@pytest.fixture(scope="module")
def task(tiny_release: Release) -> RoundTask:
    values = Engine(tiny_release).trainables()
    return RoundTask(tiny_release.release_id, 3, 0, "train", LocalSettings(local_steps=2), values)


class Nodes:
    """Each owner's node: its memory, and the way messages take."""

    def __init__(self, homes: Homes):
        self.contexts = {
            number: Context(1, 5 + number, {"home": str(home)}, RecordDict(), {})
            for number, home in homes.items()
        }
        self.failed: list[tuple[str, int, str | None]] = []

    def forget(self, number: int) -> None:
        """Starts a node again."""
        self.contexts[number].state = RecordDict()

    def ask(self, stage: str, number: int, wire: Wire) -> Wire | None:
        arrays = ArrayRecord({name: Array(array) for name, array in wire.arrays.items()})
        content = RecordDict({"arrays": arrays, "config": ConfigRecord(dict(wire.config))})
        answered = reply(Message(content, 5 + number, stage), self.contexts[number])
        if answered.has_error():
            self.failed.append((stage, number, answered.error.reason))
            return None
        arrays_back, config = answered.content["arrays"], answered.content["config"]
        assert isinstance(arrays_back, ArrayRecord)
        assert isinstance(config, ConfigRecord)
        return Wire.of(arrays_back, config)


def summed(
    nodes: Nodes, release: Release, task: RoundTask, before: Callable[[str], object] = lambda stage: None
) -> SecureSum:
    secure = Summing(release.manifest, task, sorted(nodes.contexts), SecureSettings(least=3))
    for stage in STAGES:
        before(stage)
        for number, wire in secure.tasks(stage).items():
            answer = nodes.ask(stage, number, wire)
            if answer is not None:
                secure.take(stage, number, answer)
    return secure.opened()


def plain_changes(homes: Homes, release: Release, task: RoundTask, folder: Path) -> dict[int, Any]:
    """What each device would have sent by itself."""
    found = {}
    for number, home in homes.items():
        with Device.open(home) as device:
            client = device.client_number(0)
        plain = folder / f"plain {number}"
        write_examples(plain / "examples.jsonl", random_examples(0, f"owner {number}", 3))
        found[number] = train(Engine(release), SimulatedHome(plain), client, task).change
    return found


def egress(home: Path) -> list[dict[str, Any]]:
    with Device.open(home) as device:
        return device.egress()


def test_the_sum_is_that_of_the_owners_changes_and_each_stage_is_written_down(
    homes: Homes, task: RoundTask, tiny_release: Release, tmp_path: Path
) -> None:
    found = summed(Nodes(homes), tiny_release, task)
    changes = plain_changes(homes, tiny_release, task, tmp_path)
    step = 1 / Grid(OWNERS, task.settings.clip).scale
    assert found.devices == OWNERS
    for name, total in found.total.items():
        expected = sum(change[name].astype(np.float64) for change in changes.values())
        assert np.abs(expected).max() > 100 * step
        assert np.abs(total - expected).max() < OWNERS * step
    rows = egress(homes[1])
    assert [row["kind"] for row in rows] == list(STAGES)
    assert {row["outcome"] for row in rows} == {"sent"}
    told = {(row["release"], row["round"], row["norm"]) for row in rows}
    assert told == {(tiny_release.release_id, 3, None)}
    size = 4 * vector_size(tiny_release.manifest.trainables)
    assert size < rows[2]["bytes"] < size + 400
    assert [row["tensors"] for row in rows] == [1, 3, 1, 4]


def test_a_round_that_is_run_again_after_everything_was_started_again_gives_the_same_sum_to_the_bit(
    homes: Homes, task: RoundTask, tiny_release: Release
) -> None:
    """Keys, masks and sessions are other ones; the changes and their rounding are not."""
    first = summed(Nodes(homes), tiny_release, task)
    again = summed(Nodes(homes), tiny_release, task)
    for name, total in first.total.items():
        assert np.any(total)
        np.testing.assert_array_equal(again.total[name], total)


def draws(home: Path, seed: int, round_: int) -> list[float]:
    with Device.open(home) as device:
        return [float(own) for own in EnrolledHome(device).rounding(seed, round_).random(4)]


def test_rounding_is_other_in_each_round_run_and_device_and_its_secret_lies_sealed(homes: Homes) -> None:
    first = draws(homes[0], 1, 2)
    assert draws(homes[0], 1, 2) == first
    others = [draws(homes[0], 1, 3), draws(homes[0], 2, 2), draws(homes[1], 1, 2)]
    assert all(not set(first) & set(other) for other in others)
    with Device.open(homes[0]) as device:
        secret = device.rounding_key()
        device.forget([entry.number for entry in device.entries()])
        assert device.rounding_key() == secret
    assert len(secret) == 32
    for path in homes[0].rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert secret not in data
        assert secret.hex().encode() not in data


def test_a_round_uses_one_round_of_consent_and_may_then_be_finished(
    homes: Homes, task: RoundTask, tiny_release: Release
) -> None:
    until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    with Device.open(homes[0]) as device:
        given = Consent(tiny_release.release_id, until, 1)
        device.keep_policy(Policy("ask", consent=given, least_in_a_sum=3))
    nodes = Nodes(homes)
    assert summed(nodes, tiny_release, task).devices == OWNERS
    assert nodes.failed == []
    with Device.open(homes[0]) as device:
        consent = device.policy().consent
    assert consent is not None
    assert consent.rounds == 0
    assert summed(nodes, tiny_release, task).devices == OWNERS - 1
    assert nodes.failed == [(SETUP, 0, "EgressError")]


@pytest.mark.parametrize(
    ("stage", "summed_up"),
    [
        pytest.param(SHARE, OWNERS - 1, marks=pytest.mark.slow),
        pytest.param(COLLECT, OWNERS - 1, marks=pytest.mark.slow),
        (UNMASK, OWNERS),
    ],
)
def test_an_owner_who_says_no_between_two_stages_is_heard(
    stage: str, summed_up: int, homes: Homes, task: RoundTask, tiny_release: Release
) -> None:
    """A change that has left cannot be taken back; but no share leaves any more."""

    def refuse(now: str) -> None:
        if now == stage:
            with Device.open(homes[2]) as device:
                device.keep_policy(Policy("never"))

    nodes = Nodes(homes)
    assert summed(nodes, tiny_release, task, refuse).devices == summed_up
    assert nodes.failed == [(stage, 2, "EgressError")]
    assert [row["kind"] for row in egress(homes[2]) if row["outcome"] == "refused"] == [stage]


def test_a_change_leaves_neither_by_itself_nor_in_a_sum_over_fewer_than_its_owner_wants(
    homes: Homes, task: RoundTask, tiny_release: Release
) -> None:
    with Device.open(homes[0]) as device:
        device.keep_policy(Policy("always"))  # 5 or more
    nodes = Nodes(homes)
    summed(nodes, tiny_release, task)
    assert nodes.failed == [("train.setup", 0, "EgressError")]
    for number in (0, 1):  # a coordinator that asks for the change without a sum
        assert nodes.ask("train", number, task.wire()) is None
    for number, bound in ((0, 5), (1, 3)):
        kinds = [row["kind"] for row in egress(homes[number]) if row["outcome"] == "sent"]
        assert "train" not in kinds
        why = [line for row in egress(homes[number]) for line in row["why"]]
        assert any(f"only in a secure sum over {bound} devices or more" in line for line in why)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(SHARE, marks=pytest.mark.slow),
        COLLECT,
        pytest.param(UNMASK, marks=pytest.mark.slow),
    ],
)
def test_a_node_that_starts_again_has_dropped_out_and_gives_nothing(
    stage: str, homes: Homes, task: RoundTask, tiny_release: Release
) -> None:
    nodes = Nodes(homes)
    found = summed(nodes, tiny_release, task, lambda now: nodes.forget(1) if now == stage else None)
    assert nodes.failed == [(stage, 1, "MessageError")]
    assert found.devices == (OWNERS if stage == UNMASK else OWNERS - 1)
    assert [row["kind"] for row in egress(homes[1])][-1] == "error"
    assert summed(nodes, tiny_release, task).devices == OWNERS  # it is there again in the next try


def test_nothing_is_kept_in_a_home_or_after_the_last_stage(
    homes: Homes, task: RoundTask, tiny_release: Release
) -> None:
    nodes = Nodes(homes)
    kept: list[str] = []
    place = "secure sum"

    def look(now: str) -> None:
        if now != SETUP:
            kept.append(str(nodes.contexts[0].state.config_records[place]["held"]))

    summed(nodes, tiny_release, task, look)
    assert all(kept)
    assert place not in nodes.contexts[0].state
    secret = unpacked(kept[1]).seed
    assert len(secret) == 32
    for path in homes[0].rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert secret not in data
        assert secret.hex().encode() not in data


def test_a_stage_that_a_node_has_answered_is_not_answered_again_although_the_answer_was_refused(
    homes: Homes, task: RoundTask, tiny_release: Release
) -> None:
    """Under the same masks a second change would show its difference from the first."""
    nodes = Nodes(homes)
    secure = Summing(tiny_release.manifest, task, sorted(homes), SecureSettings(least=3))
    for stage in (SETUP, SHARE):
        for number, wire in secure.tasks(stage).items():
            answer = nodes.ask(stage, number, wire)
            assert answer is not None
            secure.take(stage, number, answer)
    wire = secure.tasks(COLLECT)[3]
    assert nodes.ask(COLLECT, 3, wire) is not None
    assert nodes.ask(COLLECT, 3, wire) is None
    assert nodes.failed == [(COLLECT, 3, "MessageError")]
    assert [row["kind"] for row in egress(homes[3]) if row["outcome"] == "sent"].count(COLLECT) == 1
