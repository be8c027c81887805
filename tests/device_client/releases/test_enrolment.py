"""A device that begins with a channel, as its owner types it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.channels import Publisher, plain_release
from tests.terminal import umbel

from umbel.device_client.owner import Device
from umbel.shared.errors import ReleaseError
from umbel.shared.files import sha256_file


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    made = Publisher(tmp_path / "channel", tmp_path / "keys")
    made.channel.create()
    made.channel.add(plain_release(tmp_path / "one", "one"))
    return made


def enrolled(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    status, out, err = umbel(capsys, "enroll", "--release", "channel", *words, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


@pytest.mark.parametrize("how", ["root", "pin", "first"])
def test_a_device_begins_with_a_channel(
    publisher: Publisher, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    root = publisher.folder / "metadata" / "1.root.json"
    words: dict[str, list[object]] = {
        "root": ["--root", root],
        "pin": ["--pin", sha256_file(root)],
        "first": ["--trust-on-first-use"],
    }
    found = enrolled(capsys, *words[how])
    assert found["release"] == publisher.channel.status()["release"]
    assert found["channel"] == str(publisher.folder)
    assert found["pin"] == sha256_file(root) == publisher.channel.status()["pin"]
    status, out, _ = umbel(capsys, "log", "--json")
    assert (status, json.loads(out)[0]["pin"]) == (0, found["pin"])


def test_first_use_is_told(publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = umbel(capsys, "enroll", "-r", "channel", "--trust-on-first-use")
    assert status == 0
    assert publisher.channel.status()["pin"] in out
    assert "Nobody has vouched for that pin yet" in out


def test_a_channel_is_not_trusted_unasked(publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = umbel(capsys, "enroll", "-r", "channel")
    assert (status, "say whom to trust" in err) == (2, True)
    status, _, err = umbel(capsys, "enroll", "-r", "channel", "--pin", "0" * 64)
    assert (status, "not the one that you trust" in err) == (2, True)
    Path("wrong", "metadata").mkdir(parents=True)
    status, _, err = umbel(capsys, "enroll", "-r", "wrong", "--pin", "0" * 64)
    assert (status, "there is no channel there" in err) == (2, True)
    status, _, err = umbel(capsys, "enroll", "-r", "channel", "--pin", "0" * 64, "--trust-on-first-use")
    assert (status, "in one way" in err) == (2, True)
    status, _, err = umbel(capsys, "enroll", "-r", "one", "--pin", "0" * 64)
    assert (status, "is no channel" in err) == (2, True)
    assert not Path("home", "store.sqlite").exists()


def test_plain_folders_are_taken_as_before(publisher: Publisher, tmp_path: Path) -> None:
    with Device.enroll(tmp_path / "home", tmp_path / "one") as device:
        found = device.status()
    assert (found["channel"], found["pin"]) == (None, None)
    with pytest.raises(ReleaseError, match="no release at"):
        Device.enroll(tmp_path / "other", tmp_path / "nowhere")
