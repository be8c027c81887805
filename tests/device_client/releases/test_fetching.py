"""A device before hosts of every kind: what it fetches, what it believes, and what it leaves alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.channels import Publisher, plain_release
from tests.hosts import Host, serving, write_certificate
from tuf.api.metadata import TargetFile

from umbel.coordinator.channel.metadata import read_state, write_chain
from umbel.device_client.releases import fetching
from umbel.device_client.releases.fetching import fetch, missing_bytes
from umbel.device_client.releases.sources import (
    FolderSource,
    Patience,
    UnreachableError,
    WebSource,
    source_of,
)
from umbel.device_client.releases.trust import Offer, Pin, look, pinned_root
from umbel.shared.errors import BusyError, ReleaseError
from umbel.shared.files import sha256_bytes, sha256_file, sole_use
from umbel.shared.release import Release, read_release

SIZE = 300_000
IMPATIENT = Patience(gap_s=5.0, head_s=1.0, window_s=0.2, window_bytes=1000)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificate(tmp_path_factory.mktemp("tls") / "host.pem")


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    made = Publisher(tmp_path / "channel", tmp_path / "keys")
    made.channel.create()
    return made


@pytest.fixture
def one(tmp_path: Path, publisher: Publisher) -> Release:
    """The first release of the channel."""
    release = plain_release(tmp_path / "one", "one", size=SIZE)
    publisher.channel.add(release)
    return release


@pytest.fixture
def host(publisher: Publisher, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(publisher.folder, certificate) as host:
        yield host


class Visitor:
    """A device's part in this: a pinned root, what it has seen, its releases."""

    def __init__(self, folder: Path, publisher: Publisher, url: str):
        self.root = (publisher.folder / "metadata" / "1.root.json").read_bytes()
        self.trust, self.releases = folder / "trust", folder / "releases"
        self.source = WebSource(url)

    def look(self) -> Offer:
        return look(self.source, self.root, self.trust)

    def fetch(self, **options: Any) -> Release:
        return fetch(self.source, self.look(), self.releases, pause_s=0.0, **options)


@pytest.fixture
def visitor(tmp_path: Path, publisher: Publisher, host: Host) -> Visitor:
    return Visitor(tmp_path / "home", publisher, host.url)


def test_a_release_is_fetched_whole(one: Release, visitor: Visitor, host: Host) -> None:
    told: list[tuple[int, int]] = []
    found = visitor.fetch(on_bytes=lambda here, total: told.append((here, total)))
    assert found.release_id == one.release_id
    assert read_release(found.folder).manifest == one.manifest
    assert told[-1] == (6 * SIZE, 6 * SIZE)
    assert sorted(path.name for path in visitor.releases.iterdir()) == [one.release_id]
    before = len(host.asked("blobs/"))
    assert visitor.fetch().folder == found.folder
    assert len(host.asked("blobs/")) == before


def test_from_a_folder_it_is_the_same(one: Release, publisher: Publisher, tmp_path: Path) -> None:
    source = source_of(str(publisher.folder))
    offer = look(source, pinned_root(source, Pin(first_use=True)), tmp_path / "trust")
    assert fetch(source, offer, tmp_path / "releases").release_id == one.release_id


def test_only_what_changed_is_fetched(
    one: Release, visitor: Visitor, host: Host, publisher: Publisher, tmp_path: Path
) -> None:
    first = visitor.fetch()
    two = plain_release(tmp_path / "two", "two", size=SIZE)
    publisher.channel.add(two)
    host.requests.clear()
    assert missing_bytes(visitor.look(), visitor.releases) == SIZE
    second = visitor.fetch()
    assert host.asked("blobs/") == [f"targets/blobs/{two.manifest.blobs['shared.safetensors'].sha256}"]
    assert second.blob_path("learn.onnx").samefile(first.blob_path("learn.onnx"))
    assert {first.folder.name, second.folder.name} == {path.name for path in visitor.releases.iterdir()}


def test_it_goes_on_where_the_connection_was_cut(one: Release, visitor: Visitor, host: Host) -> None:
    """Every answer ends after 100,000 bytes, so three are needed for each blob, and no byte is sent twice."""

    def cut(handler: Any, name: str) -> bool:
        if "blobs/" not in name:
            return False
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        host.send(handler, name, (host.folder / name).read_bytes(), start, most=100_000)
        return True

    host.misbehave = cut
    visitor.fetch()
    assert {host.sent[name] for name in host.asked("blobs/")} == {SIZE}
    assert len(host.asked("blobs/")) == 18


def test_it_goes_on_after_it_has_given_up(one: Release, visitor: Visitor, host: Host) -> None:
    name = f"targets/blobs/{next(iter(one.manifest.blobs.values())).sha256}"
    sent = 0

    def dying(handler: Any, asked: str) -> bool:
        nonlocal sent
        if "blobs/" not in asked:
            return False
        most = 120_000 if sent == 0 else 0
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        host.send(handler, asked, (host.folder / asked).read_bytes(), start, most=most)
        sent += most
        return True

    host.misbehave = dying
    with pytest.raises(UnreachableError, match=r"120,000 of 1,800,000 bytes are here and kept"):
        visitor.fetch()
    assert not list(visitor.releases.glob("[0-9a-f]*"))
    host.misbehave = None
    visitor.fetch()
    assert host.sent[name] == SIZE
    assert (name, "bytes=120000-") in host.requests


FETCHING = """
import sys
from pathlib import Path
from umbel.device_client.releases.fetching import fetch
from umbel.device_client.releases.sources import WebSource
from umbel.device_client.releases.trust import look
url, root, trust, releases = sys.argv[1:]
source = WebSource(url)
fetch(source, look(source, Path(root).read_bytes(), Path(trust)), Path(releases))
"""


def test_it_goes_on_after_it_was_killed(
    one: Release, visitor: Visitor, host: Host, publisher: Publisher
) -> None:
    reached, over = threading.Event(), threading.Event()

    def stalling(handler: Any, name: str) -> bool:
        if "blobs/" not in name:
            return False
        host.send(handler, name, (host.folder / name).read_bytes(), 0, most=200_000)
        reached.set()
        over.wait(20)
        return True

    host.misbehave = stalling
    root = publisher.folder / "metadata" / "1.root.json"
    words = [host.url, str(root), str(visitor.trust), str(visitor.releases)]
    process = subprocess.Popen([sys.executable, "-c", FETCHING, *words])
    assert reached.wait(60)
    parts = visitor.releases / ".fetching" / "blobs"
    while not any(path.stat().st_size for path in parts.glob("*.part")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    over.set()
    here = sum(path.stat().st_size for path in parts.glob("*.part"))
    host.misbehave = None
    host.sent.clear()
    assert visitor.fetch().release_id == one.release_id
    assert sum(host.sent[name] for name in host.asked("blobs/")[1:]) == 6 * SIZE - here


def test_a_host_without_ranges_begins_anew(one: Release, visitor: Visitor, host: Host) -> None:
    blob = next(iter(one.manifest.blobs.values()))
    blobs = visitor.releases / ".fetching" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{blob.sha256}.part").write_bytes(
        one.blob_path(next(iter(one.manifest.blobs))).read_bytes()[:999]
    )
    host.ranges = False
    assert visitor.fetch().release_id == one.release_id
    assert host.sent[f"targets/blobs/{blob.sha256}"] == SIZE


def test_a_part_that_was_spoilt_is_fetched_again(one: Release, visitor: Visitor, host: Host) -> None:
    blob = next(iter(one.manifest.blobs.values()))
    blobs = visitor.releases / ".fetching" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{blob.sha256}.part").write_bytes(b"not that" * 100)
    (blobs / ("0" * 64 + ".part")).write_bytes(b"of another release")
    assert visitor.fetch().release_id == one.release_id
    assert host.sent[f"targets/blobs/{blob.sha256}"] == 2 * SIZE - 800
    assert not (visitor.releases / ".fetching").exists()


def test_a_changed_blob_is_refused(one: Release, visitor: Visitor, publisher: Publisher) -> None:
    blob = one.manifest.blobs["learn.onnx"]
    (publisher.folder / "targets" / "blobs" / blob.sha256).write_bytes(b"x" * SIZE)
    with pytest.raises(ReleaseError, match="a blob is not what the channel's manifest says"):
        visitor.fetch()
    assert not list(visitor.releases.glob("[0-9a-f]*"))


def test_a_blob_without_end_is_left(one: Release, visitor: Visitor, host: Host) -> None:
    def endless(handler: Any, name: str) -> bool:
        if "blobs/" not in name:
            return False
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        for _ in range(1000):
            handler.wfile.write(b"x" * 100_000)
        return True

    host.misbehave = endless
    with pytest.raises(ReleaseError, match="longer than the channel's manifest says"):
        visitor.fetch()


def test_metadata_without_end_is_left(one: Release, visitor: Visitor, host: Host) -> None:
    def endless(handler: Any, name: str) -> bool:
        if "timestamp" not in name:
            return False
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        for _ in range(100):
            handler.wfile.write(b" " * 100_000)
        return True

    host.misbehave = endless
    with pytest.raises(ReleaseError, match="longer than it may be"):
        visitor.look()


@pytest.mark.parametrize("where", ["head", "body"])
def test_a_host_that_is_slow_on_purpose_is_left(
    one: Release, visitor: Visitor, host: Host, where: str
) -> None:
    """A byte now and then, each well within the gap that is waited for: without a bound it takes hours."""

    sent, finished = threading.Event(), threading.Event()

    def slow(handler: Any, name: str) -> bool:
        if "timestamp" not in name:
            return False
        if where == "body":
            handler.send_response(200)
            handler.end_headers()
        handler.close_connection = True
        for _ in range(1200):
            handler.wfile.write(b"H")
            handler.wfile.flush()
            sent.set()
            time.sleep(0.05)
        finished.set()
        return True

    visitor.source = WebSource(host.url, IMPATIENT)
    host.misbehave = slow
    with pytest.raises(UnreachableError):
        visitor.look()
    assert sent.is_set()
    assert not finished.is_set()


def moved(handler: Any, target: str) -> bool:
    """Answers that what is asked for lies elsewhere."""
    handler.send_response(302)
    handler.send_header("Location", target)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


@pytest.mark.parametrize("target", ["http://127.0.0.1:9/x", "file:///etc/passwd"])
def test_no_redirect_leads_out_of_https(one: Release, visitor: Visitor, host: Host, target: str) -> None:
    host.misbehave = lambda handler, _: moved(handler, target)
    with pytest.raises(ReleaseError, match="by HTTPS alone"):
        visitor.look()


def test_redirects_within_https_are_followed_and_have_an_end(
    one: Release, visitor: Visitor, host: Host
) -> None:
    def to_and_fro(handler: Any, name: str) -> bool:
        if "?moved" in name:
            host.send(handler, name, (host.folder / name.partition("?")[0]).read_bytes(), 0)
            return True
        if not (host.folder / name).exists():
            return False
        return moved(handler, f"/{name}?moved" if ends else handler.path)

    ends, host.misbehave = True, to_and_fro
    assert visitor.look().release_id == one.release_id
    ends = False
    with pytest.raises(UnreachableError, match="redirects more than 5 times"):
        visitor.look()


def test_plain_http_is_refused() -> None:
    with pytest.raises(ReleaseError, match=r"by HTTPS alone\n  - found http://example\.org"):
        source_of("http://example.org/channel")


@pytest.mark.parametrize("url", ["https://[x", "https://[x]/channel", "https://example.org:port/channel"])
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(ReleaseError, match="is no address"):
        source_of(url)


@pytest.mark.parametrize("target", ["https://[x", "//[x]/a", "https://127.0.0.1:99999/a"])
def test_a_redirect_to_what_is_no_address(one: Release, visitor: Visitor, host: Host, target: str) -> None:
    host.misbehave = lambda handler, _: moved(handler, target)
    with pytest.raises(ReleaseError, match="is no address"):
        visitor.look()


def test_a_certificate_that_nobody_vouches_for_is_refused(
    one: Release, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(UnreachableError, match="nobody vouches for its certificate: self-signed certificate"):
        visitor.look()


def test_nobody_there(one: Release, visitor: Visitor, host: Host) -> None:
    host.server.shutdown()
    host.server.server_close()
    with pytest.raises(UnreachableError, match=r"(?s)cannot be read.*connection refused.*goes on working"):
        visitor.look()


def test_there_must_be_room(
    one: Release, visitor: Visitor, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_SPARE_BYTES", 1 << 60)
    with pytest.raises(ReleaseError, match="no room for this release\n  - 1,800,000 bytes"):
        visitor.fetch()
    assert host.asked("blobs/") == []


def test_two_at_once(one: Release, visitor: Visitor) -> None:
    offer = visitor.look()
    with sole_use(visitor.releases), pytest.raises(BusyError):
        fetch(visitor.source, offer, visitor.releases)


# What an attacker may try who has the host, or an older copy of it.


def copied(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder, folder.with_name(name)))


def test_an_older_channel_is_refused(
    one: Release, visitor: Visitor, publisher: Publisher, tmp_path: Path
) -> None:
    old = copied(publisher.folder, "old")
    publisher.channel.add(plain_release(tmp_path / "two", "two"))
    newest = visitor.look()
    shutil.rmtree(publisher.folder)
    old.rename(publisher.folder)
    with pytest.raises(ReleaseError, match="older than this device has seen"):
        visitor.look()
    assert newest.release_id != one.release_id


def test_a_channel_that_is_held_back_is_refused_once_it_expires(tmp_path: Path, certificate: Path) -> None:
    past = Publisher(tmp_path / "channel", tmp_path / "keys", datetime.now(UTC) - timedelta(days=15))
    past.channel.create()
    past.channel.add(plain_release(tmp_path / "one", "one"))
    source = FolderSource(past.folder)
    root = pinned_root(source, Pin(first_use=True))
    with pytest.raises(ReleaseError, match="not been refreshed in time, or somebody holds back"):
        look(source, root, tmp_path / "trust")
    past.now = datetime.now(UTC)
    past.channel.refresh()
    look(source, root, tmp_path / "trust")


def test_parts_of_two_states_do_not_mix(
    one: Release, visitor: Visitor, publisher: Publisher, tmp_path: Path
) -> None:
    """The newest timestamp and snapshot, with another targets file under the newest one's name."""
    publisher.channel.add(plain_release(tmp_path / "two", "two"))
    metadata = publisher.folder / "metadata"
    shutil.copy(metadata / "2.targets.json", metadata / "3.targets.json")
    with pytest.raises(ReleaseError, match="do not belong together"):
        visitor.look()


def test_a_changed_manifest_is_refused(one: Release, visitor: Visitor, publisher: Publisher) -> None:
    path = publisher.folder / "targets" / f"{one.release_id}.manifest.json"
    row = json.loads(path.read_bytes())
    row["labels"] = ["on", "yes"]
    path.write_text(json.dumps(row))
    with pytest.raises(ReleaseError, match=r"do not belong together|longer than it may be"):
        visitor.look()


def test_a_manifest_of_a_later_umbel(
    one: Release, publisher: Publisher, visitor: Visitor, tmp_path: Path
) -> None:
    """It is signed for, so that what it says and this umbel does not know is no attack."""
    row = json.loads(one.manifest.to_bytes()) | {"rhyme": True}
    data = json.dumps(row, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    state = read_state(publisher.folder)
    state.targets.signed.targets = {"manifest.json": TargetFile.from_data("manifest.json", data, ["sha256"])}
    (publisher.folder / "targets" / f"{sha256_bytes(data)}.manifest.json").write_bytes(data)
    roles = ("targets", "snapshot", "timestamp")
    signers = {role: [publisher.keys.read(role, *state.keyids(role))] for role in roles}
    write_chain(publisher.folder, state, roles, signers, publisher.now)
    with pytest.raises(ReleaseError, match=r"(?s)unknown key 'rhyme'.*It may be for a newer umbel"):
        visitor.look()


def test_somebody_elses_channel_is_refused(
    one: Release, visitor: Visitor, publisher: Publisher, tmp_path: Path
) -> None:
    other = Publisher(tmp_path / "other", tmp_path / "other-keys")
    other.channel.create()
    other.channel.add(one)
    other.channel.add(plain_release(tmp_path / "evil", "evil"))
    shutil.rmtree(publisher.folder)
    other.folder.rename(publisher.folder)
    with pytest.raises(ReleaseError, match="not signed by the keys that this device trusts"):
        visitor.look()


def test_what_is_no_metadata_is_refused(one: Release, visitor: Visitor, publisher: Publisher) -> None:
    (publisher.folder / "metadata" / "timestamp.json").write_text("<html>sold</html>")
    with pytest.raises(ReleaseError, match="holds what is no metadata"):
        visitor.look()


def test_a_missing_file_is_told(one: Release, visitor: Visitor, publisher: Publisher) -> None:
    (publisher.folder / "metadata" / "2.snapshot.json").unlink()
    with pytest.raises(ReleaseError, match="the channel is incomplete"):
        visitor.look()


def test_a_channel_without_a_release(visitor: Visitor) -> None:
    with pytest.raises(ReleaseError, match="has no release yet"):
        visitor.look()


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_keys_change_and_devices_go_on(
    one: Release, visitor: Visitor, publisher: Publisher, tmp_path: Path, role: str
) -> None:
    visitor.look()
    publisher.channel.rotate(role)
    assert visitor.look().release_id == one.release_id
    publisher.channel.rotate("root")
    two = plain_release(tmp_path / "two", "two")
    publisher.channel.add(two)
    assert visitor.look().release_id == two.release_id


def test_a_revoked_key_signs_nothing_more(one: Release, visitor: Visitor, publisher: Publisher) -> None:
    """A thief has the old timestamp key and all of the old channel."""
    thief = Publisher(copied(publisher.folder, "stolen"), publisher.keys.online.parent)
    publisher.channel.rotate("timestamp")
    visitor.look()
    for _ in range(3):
        thief.channel.refresh()
    shutil.copy(thief.folder / "metadata" / "timestamp.json", publisher.folder / "metadata")
    with pytest.raises(ReleaseError, match="not signed by the keys that this device trusts"):
        visitor.look()


def test_a_pin_says_whom_to_trust(one: Release, publisher: Publisher, tmp_path: Path) -> None:
    source = FolderSource(publisher.folder)
    first = publisher.folder / "metadata" / "1.root.json"
    publisher.channel.rotate("root")
    second = publisher.folder / "metadata" / "2.root.json"
    assert pinned_root(source, Pin(sha256=sha256_file(first))) == first.read_bytes()
    assert pinned_root(source, Pin(sha256=publisher.channel.status()["pin"])) == second.read_bytes()
    assert pinned_root(source, Pin(root=first)) == first.read_bytes()
    assert pinned_root(source, Pin(first_use=True)) == second.read_bytes()
    with pytest.raises(ReleaseError, match="not the one that you trust"):
        pinned_root(source, Pin(sha256=sha256_bytes(b"another")))
    with pytest.raises(ReleaseError, match="no root file of a channel"):
        pinned_root(source, Pin(root=publisher.folder / "metadata" / "timestamp.json"))
    wrongs: list[dict[str, Any]] = [{}, {"root": first, "first_use": True}, {"sha256": "abc"}]
    for wrong in wrongs:
        with pytest.raises(ReleaseError, match=r"whom to trust|is the sha256"):
            Pin(**wrong)


def test_what_lies_in_the_home_cannot_change_whom_to_trust(
    one: Release, visitor: Visitor, publisher: Publisher, tmp_path: Path
) -> None:
    """Root files of somebody else's channel are laid into the folder of what was seen."""
    other = Publisher(tmp_path / "other", tmp_path / "other-keys")
    other.channel.create()
    visitor.look()
    (visitor.trust / "tmp1234").write_bytes(b"half of a file, whose writer was killed")
    for path in (visitor.trust / "root_history").iterdir():
        path.write_bytes((other.folder / "metadata" / "1.root.json").read_bytes())
    (visitor.trust / "root_history" / "2.root.json").write_bytes(
        (other.folder / "metadata" / "1.root.json").read_bytes()
    )
    assert visitor.look().release_id == one.release_id
    assert not (visitor.trust / "tmp1234").exists()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_a_host_changes_is_refused_or_changes_nothing(
    one: Release, publisher: Publisher, tmp_path: Path, data: st.DataObject
) -> None:
    """A byte is another one, or a value of the JSON is; what comes is the same offer, or one typed error."""
    metadata = publisher.folder / "metadata"
    root = (metadata / "1.root.json").read_bytes()
    if not (metadata / "2.root.json").exists():
        publisher.channel.rotate("root")
    names = sorted({path.name for path in metadata.iterdir()} - {"1.root.json"})
    path = metadata / data.draw(st.sampled_from(names))
    whole = path.read_bytes()
    path.write_bytes(data.draw(st.one_of(other_bytes(whole), other_values(whole))))
    shutil.rmtree(tmp_path / "seen", ignore_errors=True)
    with suppress(ReleaseError):  # every other kind of error is a fault
        assert look(FolderSource(publisher.folder), root, tmp_path / "seen").release_id == one.release_id
    path.write_bytes(whole)


def other_bytes(whole: bytes) -> st.SearchStrategy[bytes]:
    """Files with one byte changed, cut short, or something else."""
    place = st.integers(0, len(whole) - 1)
    changed = st.builds(
        lambda at, byte: whole[:at] + bytes([byte]) + whole[at + 1 :], place, st.integers(0, 255)
    )
    return st.one_of(changed, place.map(lambda at: whole[:at]), st.sampled_from([b"", b"{}", b"[" * 99_999]))


@st.composite
def other_values(draw: st.DrawFn, whole: bytes) -> bytes:
    """Files with one value of their JSON changed."""
    row = json.loads(whole)
    inner = row
    key: Any = draw(st.sampled_from(sorted(inner)))
    while isinstance(inner[key], dict | list) and inner[key] and draw(st.integers(0, 3)):
        inner = inner[key]
        keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
        key = draw(st.sampled_from(list(keys)))
    strange: list[Any] = [
        None,
        1.5,
        float("nan"),
        10**400,
        -1,
        "",
        [],
        {},
        True,
        "9999-99-99T00:00:00Z",
        "\ud800",
    ]
    inner[key] = draw(st.sampled_from(strange))
    return json.dumps(row).encode()


def test_a_pipe_in_the_place_of_a_root_file_is_not_waited_for(publisher: Publisher, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "root")
    with pytest.raises(OSError, match="Not a plain file"):
        pinned_root(source_of(str(publisher.folder)), Pin(root=tmp_path / "root"))
