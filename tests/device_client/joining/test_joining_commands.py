"""`umbel device join` and `leave` where no coordinator is needed: what is refused before anything is sent."""

import json
import sqlite3
from pathlib import Path

import pytest
from tests.invitations import AUTHORITY, CODE

from umbel.cli import main
from umbel.device_client.egress.policy import Policy
from umbel.device_client.joining.membership import Membership
from umbel.device_client.owner import Device
from umbel.device_client.vault.store import Store
from umbel.shared.errors import StoreError
from umbel.shared.examples import Example
from umbel.shared.invitation import Invitation
from umbel.shared.release import Release

pytestmark = pytest.mark.full  # a release is made, by torch
INVITATION = Invitation("https://127.0.0.1:1", AUTHORITY, CODE)
JOINED = Membership.begun(INVITATION).at("2026-11-01T00:00:00+00:00")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, tiny_release: Release, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    with Device.enroll(tmp_path / "home", tiny_release.folder) as device:
        device.keep_policy(Policy("always"))
        device.add([Example("me", "A quiet story.", device.release.manifest.labels[0])])
    return tmp_path / "home"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["device", *words]) == 2
    return capsys.readouterr().err


def membership(home: Path) -> Membership | None:
    with Device.open(home) as device:
        return device.membership()


def test_where_nothing_may_leave_nothing_is_joined(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Device.open(home) as device:
        device.keep_policy(Policy("never"))
    said = refused(capsys, "join", INVITATION.as_text())
    assert "nothing may leave this device, so it cannot take part in rounds" in said
    assert "the code is still good" in said
    assert membership(home) is None


def test_without_an_example_nothing_is_joined(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Device.open(home) as device:
        device.forget([entry.number for entry in device.entries()])
    said = refused(capsys, "join", INVITATION.as_text())
    assert "your device has no examples" in said
    assert "umbel device add" in said
    assert membership(home) is None


def test_without_an_invitation_one_is_told_how(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "join")
    assert "this device has joined no coordinator" in said
    assert "umbel device join INVITATION" in said


def test_a_window_of_no_number_of_seconds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--window is nan" in refused(capsys, "join", INVITATION.as_text(), "--window", "nan")


def test_parts_of_an_invitation_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "go together" in refused(capsys, "join", "--code", CODE)
    assert "not both" in refused(capsys, "join", INVITATION.as_text(), "--code", CODE)
    (tmp_path / "ca.pem").write_text(AUTHORITY)
    parts = ["--ca", str(tmp_path / "ca.pem"), "--code", CODE]
    assert "is without TLS" in refused(capsys, "join", "--coordinator", "http://127.0.0.1:1", *parts)
    (tmp_path / "ca.pem").write_text("none")
    said = refused(capsys, "join", "--coordinator", "https://127.0.0.1:1", *parts)
    assert "the authority's certificate is damaged, or none" in said


def test_the_key_is_kept_before_it_is_sent_and_the_next_try_has_the_same(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer that is lost must not cost the code: the coordinator knows the key by then."""
    (tmp_path / "line.txt").write_text(INVITATION.as_text() + "\n")
    said = refused(capsys, "join", str(tmp_path / "line.txt"))
    assert "the coordinator https://127.0.0.1:1 cannot be reached" in said
    first = membership(home)
    assert first is not None
    assert first.joined is None
    refused(capsys, "join", INVITATION.as_text())
    refused(capsys, "join")
    assert membership(home) == first


def test_a_device_that_has_joined_does_not_lose_its_place_to_another_invitation(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Device.open(home) as device:
        device.keep_membership(JOINED)
    other = Invitation("https://127.0.0.1:2", AUTHORITY, CODE).as_text()
    assert "has joined https://127.0.0.1:1 already" in refused(capsys, "join", other)
    assert membership(home) == JOINED
    assert main(["device", "leave", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"left": "https://127.0.0.1:1"}
    assert membership(home) is None
    assert main(["device", "leave"]) == 0


def test_the_key_lies_sealed_and_is_not_shown(home: Path) -> None:
    with Device.open(home) as device:
        device.keep_membership(JOINED)
        assert [row["what"] for row in device.log()][-1] == "joined"
    assert JOINED.key not in repr(JOINED)
    body = "".join(JOINED.key.splitlines()[1:-1])
    held = b"".join(path.read_bytes() for path in home.glob("store.sqlite*"))
    assert body[:32].encode() not in held
    assert CODE.encode() not in held


def test_joining_and_leaving_are_kept_with_their_line_of_the_log_or_not_at_all(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_store: Store, _event: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    for before, after in ((None, JOINED), (JOINED, None)):
        with Device.open(home) as device, monkeypatch.context() as broke:
            broke.setattr(Store, "_put_event", broken)
            with pytest.raises(StoreError):
                device.keep_membership(after)
        assert membership(home) == before
        with Device.open(home) as device:
            device.keep_membership(after)
    assert membership(home) is None
    with Device.open(home) as device:
        assert [row["what"] for row in device.log(2)] == ["joined", "left"]


def test_who_leaves_forgets_the_number(home: Path) -> None:
    """Else the coordinator would take it for the number of the key that it had, and not ask the device."""
    with Device.open(home) as device:
        device.keep_membership(JOINED)
        assert device.client_number(5) == device.client_number(6) == 5
        device.keep_membership(None)
        assert device.client_number(6) == device.client_number(7) == 6
