"""`umbel device policy`, `consent` and `egress` as an owner types them."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.terminal import told, umbel

from umbel.device_client.egress.allowed import allowed_contribution, allowed_hello
from umbel.device_client.egress.gate import Asker, Departure, leave
from umbel.device_client.egress.policy import Policy, Surroundings
from umbel.device_client.enrolled import EnrolledHome
from umbel.device_client.owner import Device
from umbel.device_client.vault.store import Store
from umbel.shared.errors import EgressError, StoreError
from umbel.shared.messages import Hello, LocalSettings, RoundTask, Wire
from umbel.shared.release import Release

pytestmark = pytest.mark.full  # a release is made, by torch
CHANGE = Departure("train", Asker(1, 2, 3, "library"), "0" * 64, 4, 1234, 2, 0.25)


@pytest.fixture(autouse=True)
def home(tiny_release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    Device.enroll(tmp_path / "home", tiny_release.folder).close()
    return tmp_path / "home"


def entered(home: Path, departure: Departure, *problems: str, found: Surroundings | None = None) -> list[str]:
    with Device.open(home) as device:
        look = (lambda: found) if found is not None else (lambda: Surroundings(None, None))
        return EnrolledHome(device, look).enter(departure, problems)


def test_a_policy_is_shown_set_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    first = told(capsys, "policy")
    assert (first["rule"], first["network"], first["most_norm"]) == ("never", "system", 1.0)
    assert first["against"] == ["policy never: nothing may leave"]
    assert "nothing would leave" in umbel(capsys, "policy", "show")[1]
    assert told(capsys, "policy", "always", "--norm", "0.5")["against"] == []
    assert told(capsys, "policy", "--network", "metered")["rule"] == "always"
    found = told(capsys, "policy", "plugged-in")
    assert (found["most_norm"], found["network"]) == (0.5, "metered")
    assert "policy plugged-in: the network is metered" in found["against"]
    assert told(capsys, "policy") == found
    assert not found["report_gain"]
    assert told(capsys, "policy", "--report-gain") == {**found, "report_gain": True}
    assert "Gain:    is told, noised" in umbel(capsys, "policy")[1]
    assert told(capsys, "policy", "--no-report-gain") == found
    assert "only in a secure sum over 5 devices or more" in umbel(capsys, "policy")[1]
    assert told(capsys, "policy", "--sum-over", "1") == {**found, "least_in_a_sum": 1}
    assert "a change may leave by itself" in umbel(capsys, "policy")[1]
    found = told(capsys, "policy", "--sum-over", "5")
    assert told(capsys, "status")["egress"] == {
        "policy": "plugged-in",
        "messages": 0,
        "bytes": 0,
        "last": None,
    }
    assert "Leaves:   policy plugged-in; 0 bytes in 0 messages so far" in umbel(capsys, "status")[1]
    assert [row["what"] for row in told(capsys, "log")] == ["enrolled", *["policy"] * 7]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["policy", "sometimes", "--norm", "-1"], "never, ask, plugged-in, always"),
        (["policy", "--network", "fast"], "system, unmetered, metered"),
        (["consent", "--rounds", "2"], "umbel device policy ask"),
        (["consent", "--none", "--rounds", "2"], "stands alone"),
        (["consent", "--days", "2"], "--rounds"),
        (["consent", "--rounds", "0"], "--rounds"),
        (["consent", "--rounds", "2", "--days", "nan"], "--days is nan"),
        (["policy", "--sum-over", "0"], "--sum-over"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = umbel(capsys, *words)
    assert (status, out) == (2, "")
    assert said in err
    assert told(capsys, "policy")["rule"] == "never"


def test_consent_is_for_so_many_rounds_of_this_release(
    home: Path, capsys: pytest.CaptureFixture[str], tiny_release: Release
) -> None:
    told(capsys, "policy", "ask")
    mine = Departure("train", Asker(), tiny_release.release_id)
    shown = umbel(capsys, "consent")[1]  # asking gives none
    assert "Give it for some rounds: umbel device consent --rounds" in shown
    assert entered(home, mine) == ["policy ask: no consent was given"]
    given = told(capsys, "consent", "--rounds", "2")["consent"]
    assert (given["rounds"], given["release"]) == (2, tiny_release.release_id)
    assert "2 rounds" in umbel(capsys, "policy")[1]
    assert entered(home, CHANGE) == ["policy ask: consent was given for another release"]
    assert entered(home, Departure("query", Asker())) == []  # a number is no round
    assert entered(home, mine, "x is missing") == ["x is missing"]  # nor is what did not leave
    assert entered(home, mine) == []
    assert told(capsys, "policy")["consent"]["rounds"] == 1
    assert entered(home, mine) == []
    assert entered(home, mine) == ["policy ask: the rounds that consent was given for are over"]
    told(capsys, "consent", "--rounds", "1")
    assert "Consent: 1 round, until" in umbel(capsys, "consent")[1]
    assert told(capsys, "consent", "--none")["against"] == ["policy ask: no consent was given"]


def test_power_and_network_are_looked_at_when_something_would_leave(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, "policy", "plugged-in")
    assert entered(home, CHANGE, found=Surroundings(True, False)) == []
    assert entered(home, CHANGE, found=Surroundings(False, False)) == ["policy plugged-in: it is on battery"]
    assert len(entered(home, CHANGE)) == 2


def test_what_left_and_what_did_not_is_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert umbel(capsys, "egress") == (0, "0 bytes left in 0 messages.\n", "")
    entered(home, CHANGE)
    told(capsys, "policy", "always")
    entered(home, CHANGE)
    rows = told(capsys, "egress")
    assert [row["outcome"] for row in rows] == ["refused", "sent"]
    assert {**rows[1], "at": ""} == {"at": "", **CHANGE.as_json(), "outcome": "sent", "why": []}
    out = umbel(capsys, "egress")[1]
    assert "round 4  norm 0.25  to library, run 1\n    policy never: nothing may leave" in out
    assert out.endswith("\n1,234 bytes left in 1 message.\n")
    assert told(capsys, "status")["egress"]["bytes"] == 1234


def test_what_is_refused_is_in_the_log_without_a_word_of_it(home: Path, tiny_release: Release) -> None:
    canary = "a canary sang in the mine at noon"
    manifest = tiny_release.manifest
    values = {name: np.zeros(shape, np.float32) for name, shape in manifest.trainables.items()}
    ask = RoundTask(tiny_release.release_id, 4, 0, "train", LocalSettings(), values)
    wire = Wire({canary: np.ones(2, np.float32)}, {"schema": canary, canary: canary, "examples": canary})
    with Device.open(home) as device:
        device.keep_policy(Policy("always"))
        with pytest.raises(EgressError) as caught:
            leave(wire, allowed_contribution(manifest, ask), EnrolledHome(device), Asker())
        (row,) = device.egress()
    assert row["why"] == list(caught.value.problems)
    # More of both, five scalars, a norm of 1.4, and no tensor of the list.
    assert len(row["why"]) == 2 + 5 + 1 + len(manifest.trainables)
    assert canary not in json.dumps(row) + str(caught.value)


def test_the_log_of_what_left_lies_sealed(home: Path) -> None:
    entered(home, CHANGE)
    for file in home.glob("store.sqlite*"):
        assert b"library" not in file.read_bytes()


def test_what_left_in_all_is_not_counted_by_opening_the_log(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told(capsys, "policy", "always")
    for problem in ([], ["x is missing"], []):
        entered(home, CHANGE, *problem)
    with Device.open(home) as device:
        rows, left = device.egress(), device.left()
        assert left == {"messages": 2, "bytes": 2 * 1234, "last": rows[-1]["at"]}
        assert device.egress(2) == rows[1:]
        # A store of an umbel that did not keep it: it is counted once, and kept with the next entry.
        device._store._connection.execute("DELETE FROM meta WHERE name = 'own egress total'")
        assert device.left() == left
    entered(home, CHANGE)
    monkeypatch.setattr(Store, "egress", None)
    monkeypatch.setattr(Store, "_rows", lambda store, table, last=-1: [] if table == "log" else None)
    assert told(capsys, "status")["egress"]["bytes"] == 3 * 1234


def test_forgetting_erases_no_entry_of_what_left(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "policy", "always")
    told(capsys, "add", "--text", "a film", "--label", "yes")
    entered(home, CHANGE)
    told(capsys, "forget", "--number", "1", "--yes")
    assert len(told(capsys, "egress")) == 1


def test_two_processes_do_not_use_one_consent_twice(
    home: Path, capsys: pytest.CaptureFixture[str], tiny_release: Release
) -> None:
    """The last round of a consent is judged and used in one transaction of the store."""
    told(capsys, "policy", "ask")
    told(capsys, "consent", "--rounds", "1")
    mine = Departure("train", Asker(), tiny_release.release_id)
    with Device.open(home) as one, Device.open(home) as other:
        first, second = EnrolledHome(one), EnrolledHome(other)
        assert (first.refusals(), second.refusals()) == ([], [])
        assert first.enter(mine, []) == []
        assert second.enter(mine, []) != []
    assert [row["outcome"] for row in told(capsys, "egress")] == ["sent", "refused"]


def test_an_entry_that_cannot_be_written_lets_nothing_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Device.open(home) as device:
        device.keep_policy(Policy("always"))
        enrolled = EnrolledHome(device)
        store = device._store
        store._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreError):
            leave(Hello(7).wire(), allowed_hello(7), enrolled, Asker())
        store._connection.execute("PRAGMA query_only = OFF")
        assert device.egress() == []


def test_a_bound_that_was_lowered_during_a_round_holds(home: Path) -> None:
    def changed(norm: float) -> Departure:
        return Departure("train", Asker(), "", 1, 100, 1, norm)

    with Device.open(home) as device:
        device.keep_policy(Policy("always"))
        enrolled = EnrolledHome(device)
        device.keep_policy(Policy("always", most_norm=0.1))
        assert enrolled.enter(changed(0.5), []) == ["its norm is larger than 0.1, which the owner allows"]
        assert enrolled.enter(changed(0.1), []) == []


def test_who_says_never_takes_consent_back(capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "policy", "ask")
    assert told(capsys, "consent", "--rounds", "3")["consent"]["rounds"] == 3
    told(capsys, "policy", "never")
    assert told(capsys, "policy", "ask")["consent"] is None
