"""A publisher's channel: what is signed by whom, what changes when, and what a crash leaves."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.channels import Publisher, plain_release
from tuf.api.metadata import Metadata, Root, Timestamp

from umbel import cli
from umbel.coordinator.channel import channel as channels
from umbel.coordinator.channel.metadata import write_chain
from umbel.shared.errors import ConfigError, ReleaseError
from umbel.shared.files import sha256_file


def root_of(folder: Path, version: int) -> Metadata[Root]:
    return Metadata[Root].from_file(str(folder / "metadata" / f"{version}.root.json"))


def vouches(root: Metadata[Root], role: str, metadata: Metadata[Any]) -> None:
    """Raises unless the keys of a root count for what is signed."""
    root.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


def test_a_release_becomes_the_current_one(publisher: Publisher, tmp_path: Path) -> None:
    release = plain_release(tmp_path / "one", "one")
    assert publisher.channel.status()["release"] is None
    assert publisher.channel.add(release)
    assert not publisher.channel.add(release)
    found = publisher.channel.status()
    assert found["release"] == release.release_id
    assert found["pin"] == sha256_file(publisher.folder / "metadata" / "1.root.json")
    assert {role: own["version"] for role, own in found["roles"].items()} == {
        "root": 1,
        "targets": 2,
        "snapshot": 2,
        "timestamp": 2,
    }
    for blob in release.manifest.blobs.values():
        assert sha256_file(publisher.folder / "targets" / "blobs" / blob.sha256) == blob.sha256


def test_keys_are_their_owners_alone_and_lie_where_they_should(publisher: Publisher) -> None:
    files = {path.name.partition("-")[0]: path for path in publisher.keys.online.parent.rglob("*.pem")}
    assert {role: path.parent.name for role, path in files.items()} == {
        "root": "offline",
        "targets": "offline",
        "snapshot": "online",
        "timestamp": "online",
    }
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}


def test_refresh_needs_no_offline_key_until_half_of_a_year_is_over(publisher: Publisher) -> None:
    offline = publisher.keys.offline
    shutil.move(offline, offline.with_name("away"))
    assert publisher.channel.refresh() == ["timestamp"]
    publisher.later(days=50)
    assert publisher.channel.refresh() == ["snapshot", "timestamp"]
    publisher.later(days=200)
    assert publisher.channel.refresh() == ["snapshot", "timestamp"]
    assert publisher.channel.status()["roles"]["root"]["due"]
    shutil.move(offline.with_name("away"), offline)
    assert publisher.channel.refresh() == ["root", "targets", "snapshot", "timestamp"]
    assert not any(own["due"] for own in publisher.channel.status()["roles"].values())


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_a_new_key_counts_and_the_old_one_does_not(publisher: Publisher, role: str) -> None:
    before = publisher.channel.status()["roles"][role]["keys"]
    place = publisher.channel.rotate(role)
    after = publisher.channel.status()["roles"][role]["keys"]
    assert len(after) == 1
    assert after != before
    assert place.is_file()
    root = root_of(publisher.folder, 2)
    vouches(root_of(publisher.folder, 1), "root", root)  # the old root key vouches for it
    vouches(root, "root", root)
    for path in publisher.keys.online.parent.rglob(f"{role}-{before[0][:12]}.pem"):
        path.unlink()
    publisher.later(days=300)
    assert publisher.channel.refresh() == ["root", "targets", "snapshot", "timestamp"]


def test_a_lost_key_is_replaced_without_it(publisher: Publisher) -> None:
    for path in publisher.keys.online.glob("timestamp-*.pem"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"keys of the channel are missing\n  - timestamp: .*pem"):
        publisher.channel.refresh()
    publisher.channel.rotate("timestamp")
    assert publisher.channel.refresh() == ["timestamp"]


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
@pytest.mark.parametrize("again", ["refresh", "rotate"])
def test_a_rotation_without_the_old_key_that_is_stopped_before_its_root(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, role: str, again: str
) -> None:
    """Metadata is signed by a key that no root names yet; the next command finishes it."""
    for path in publisher.keys.online.parent.rglob(f"{role}-*.pem"):
        path.unlink()

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(channels, "take_next_root", stopped)
        with pytest.raises(KeyboardInterrupt):
            publisher.channel.rotate(role)
    with pytest.raises(ReleaseError, match=r"(?s)cannot be used.*interrupted.*channel rotate"):
        publisher.channel.status()
    if again == "refresh":
        assert publisher.channel.refresh() == ["timestamp"]
    else:
        publisher.channel.rotate(role)
    root = root_of(publisher.folder, 2)
    vouches(root_of(publisher.folder, 1), "root", root)
    assert publisher.channel.status()["roles"]["root"]["version"] == (2 if again == "refresh" else 3)


def test_a_root_that_is_kept_beside_is_not_taken_before_the_rest_is_signed_for_it(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    before = publisher.channel.status()
    with monkeypatch.context() as context:
        context.setattr(channels, "write_chain", stopped)
        with pytest.raises(KeyboardInterrupt):
            publisher.channel.rotate("timestamp")
    assert publisher.channel.status() == before
    assert publisher.channel.refresh() == ["timestamp"]
    assert publisher.channel.status()["roles"]["root"]["version"] == 1
    path = publisher.folder / "metadata" / "timestamp.json"
    path.write_bytes(path.read_bytes().replace(b'"version": ', b'"version": 9'))
    with pytest.raises(ReleaseError, match="cannot be used"):
        publisher.channel.refresh()
    assert not (publisher.folder / "metadata" / "2.root.json").exists()


def test_devices_with_the_old_root_still_believe_the_timestamp_of_a_rotation(publisher: Publisher) -> None:
    publisher.channel.rotate("timestamp")
    timestamp = Metadata[Timestamp].from_file(str(publisher.folder / "metadata" / "timestamp.json"))
    vouches(root_of(publisher.folder, 1), "timestamp", timestamp)
    vouches(root_of(publisher.folder, 2), "timestamp", timestamp)


def test_what_stops_before_the_timestamp_changes_nothing(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = plain_release(tmp_path / "one", "one")

    def stopped(folder: Path, state: Any, roles: Any, signers: Any, now: datetime) -> None:
        monkeypatch.undo()
        write_chain(folder, state, roles[:2], signers, now)
        raise KeyboardInterrupt

    monkeypatch.setattr(channels, "write_chain", stopped)
    with pytest.raises(KeyboardInterrupt):
        publisher.channel.add(release)
    assert publisher.channel.status()["release"] is None
    assert publisher.channel.add(release)
    assert publisher.channel.status()["release"] == release.release_id


def test_changed_metadata_is_not_signed_again(publisher: Publisher) -> None:
    path = publisher.folder / "metadata" / "timestamp.json"
    row = json.loads(path.read_bytes())
    row["signed"]["version"] = 7
    path.write_text(json.dumps(row))
    with pytest.raises(ReleaseError, match="cannot be used\n  - UnsignedMetadataError"):
        publisher.channel.refresh()


def test_nothing_is_begun_where_something_is(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a channel"):
        publisher.channel.create()
    release = plain_release(tmp_path / "one", "one")
    with pytest.raises(ConfigError, match="holds a release"):
        Publisher(release.folder, tmp_path / "keys").channel.create()


def test_a_beginning_that_was_interrupted_is_made_again(publisher: Publisher) -> None:
    (publisher.folder / "metadata" / "timestamp.json").unlink()
    publisher.channel.create()
    publisher.channel.rotate("snapshot")
    (publisher.folder / "metadata" / "timestamp.json").unlink()
    with pytest.raises(ConfigError, match="parts of a channel"):
        publisher.channel.create()


def test_private_keys_are_not_served(publisher: Publisher, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with pytest.raises(ConfigError, match="among the files that are served"):
        Publisher(folder, folder / "keys").channel.create()
    assert not folder.exists()
    publisher.channel.keys = replace(publisher.keys, online=publisher.folder / "metadata")
    with pytest.raises(ConfigError, match="among the files that are served"):
        publisher.channel.rotate("timestamp")


def test_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UMBEL_CHANNEL_PASSPHRASE", "correct horse battery")
    folder, keys = tmp_path / "channel", tmp_path / "keys"
    release = plain_release(tmp_path / "one", "one")

    def told(*words: object) -> Any:
        status = cli.main(["coordinator", "channel", *map(str, words), "--json"])
        shown = capsys.readouterr()
        assert (status, shown.err) == (0, "")
        return json.loads(shown.out)

    pin = told("init", folder, "--keys", keys)["pin"]
    assert all(b"ENCRYPTED" in path.read_bytes() for path in keys.iterdir())
    assert told("add", folder, release.folder, "--keys", keys)["new"] is True
    assert told("refresh", folder, "--keys", keys)["renewed"] == ["timestamp"]
    assert told("rotate", folder, "--role", "root", "--keys", keys)["pin"] != pin
    assert told("status", folder)["release"] == release.release_id
    assert cli.main(["coordinator", "channel", "status", str(folder)]) == 0
    assert "believed until" in capsys.readouterr().out
    monkeypatch.setenv("UMBEL_CHANNEL_PASSPHRASE", "wrong horse battery")
    assert cli.main(["coordinator", "channel", "refresh", str(folder), "--keys", str(keys)]) == 2
    assert "does not open" in capsys.readouterr().err
    monkeypatch.delenv("UMBEL_CHANNEL_PASSPHRASE")
    assert cli.main(["coordinator", "channel", "refresh", str(folder), "--keys", str(keys)]) == 2
    assert "UMBEL_CHANNEL_PASSPHRASE" in capsys.readouterr().err


def test_what_is_believed_ends_when_it_should(tmp_path: Path) -> None:
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    publisher = Publisher(tmp_path / "channel", tmp_path / "keys", begun)
    publisher.channel.create()
    roles = publisher.channel.status()["roles"]
    assert {role: own["expires"] for role, own in roles.items()} == {
        role: (begun + timedelta(days=days)).isoformat()
        for role, days in {"root": 365, "targets": 365, "snapshot": 90, "timestamp": 14}.items()
    }
