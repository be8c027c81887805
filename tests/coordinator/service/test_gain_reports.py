"""From rounds to a release, to devices, and back as one number: real processes, and owners who say no."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.federation import Federation

from umbel.coordinator.federation.gains import FILE
from umbel.device_client.egress.policy import Policy
from umbel.device_client.owner import Device
from umbel.shared.examples import Example
from umbel.shared.gain import STEPS
from umbel.shared.release import Release, read_release

pytestmark = pytest.mark.slow
DEVICES, SILENT = 6, 5  # the last one's owner does not report
MORE = [
    Example("owner", f"{word} {thing}", label)
    for word, label in [("good", "yes"), ("tender", "yes"), ("bad", "no"), ("slow", "no")]
    for thing in ("film", "book", "the film", "the book")
]


@pytest.fixture
def own(tmp_path: Path, embedded_release: Release) -> Iterator[Federation]:
    federation = Federation(tmp_path / "own", embedded_release, DEVICES)
    for number in range(DEVICES):
        with Device.open(federation.home(number)) as device:
            device.keep_policy(Policy("always", report_gain=number != SILENT))
            device.add(MORE)
            device.learn()
    yield federation
    federation.close()


def served(own: Federation, rounds: int, invitations: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Serves a release's rounds with all devices, and returns what the coordinator told."""
    serving = own.serve(f"rounds={rounds}", f"clients={DEVICES}", "local_rate=0.1", "local_steps=20")
    own.until(serving, lambda: own.events(serving, "listening"))
    devices = [own.join(number, *invitations[number : number + 1]) for number in range(DEVICES)]
    assert own.ended(serving) == 0, own.said(serving)
    for device in devices:
        own.kill(device)
    return own.events(serving)


def asked(own: Federation, number: int) -> list[str]:
    """Returns what became of each question for a device's gain."""
    with Device.open(own.home(number)) as device:
        return [row["outcome"] for row in device.egress() if row["kind"] == "query.gain"]


def command(own: Federation, *words: str) -> Any:
    """Runs a command and returns what it told."""
    done = own.run(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def published(own: Federation, tmp_path: Path) -> Release:
    """Makes the release that follows, gives it to all devices by a channel, and returns it."""
    fed, channel, keys = str(own.folder.path), str(tmp_path / "channel"), str(tmp_path / "keys")
    following = str(tmp_path / "next")
    command(own, "coordinator", "publish-rounds", fed, "-r", str(own.release.folder), "--out", following)
    pin = command(own, "coordinator", "channel", "init", channel, "--keys", keys)["pin"]
    command(own, "coordinator", "channel", "add", channel, following, "--keys", keys)
    for number in range(DEVICES):
        home = str(own.home(number))
        found = command(own, "device", "update", "--source", channel, "--pin", pin, "--home", home)
        assert found["outcome"] == "adopted"
    return read_release(Path(following))


def test_owners_who_allow_it_tell_their_gain_once_for_each_release(own: Federation, tmp_path: Path) -> None:
    first = served(own, 1, own.invite(DEVICES))
    (gain,) = [row for row in first if row["event"] == "gain"]
    assert gain["reports"] == SILENT
    own.release = published(own, tmp_path)
    (again,) = [row for row in served(own, 1) if row["event"] == "gain"]
    assert again["reports"] == SILENT
    assert [row for row in served(own, 2) if row["event"] == "gain"] == []  # nobody is counted twice
    assert [asked(own, number) for number in range(SILENT)] == [["sent", "sent"]] * SILENT
    assert asked(own, SILENT) == ["refused"] * 3

    runs = command(own, "coordinator", "status", str(own.folder.path))["runs"]
    assert [run["rounds"] for run in runs] == [1, 2]
    told = [{name: row[name] for name in ("reports", "mean", "error")} for row in (gain, again)]
    assert [run["gain"] for run in runs] == told
    words = own.run("coordinator", "status", str(own.folder.path)).stdout
    assert f"  Gain: {again['mean']:+.3f}, give or take {again['error']:.3f}" in words

    kept = (own.folder.rounds(own.release.release_id) / FILE).read_text()
    for number in range(SILENT):
        with Device.open(own.home(number)) as device:
            noised = device.noised_gain(own.release.release_id, 0)
        assert str(abs(noised)) not in kept
    assert again["mean"] == pytest.approx(_mean(own))


def _mean(own: Federation) -> float:
    """Returns the mean of what the devices keep for this release."""
    found = []
    for number in range(SILENT):
        with Device.open(own.home(number)) as device:
            found.append(device.noised_gain(own.release.release_id, 0) / STEPS)
    return sum(found) / len(found)
