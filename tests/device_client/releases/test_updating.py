"""A device exchanges its release: what it compares, what it keeps, and what a crash leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.builders import random_examples
from tests.channels import Publisher
from tests.readings import counted_readings

from umbel import cli
from umbel.device_client.device import cross_validate, packed_learning
from umbel.device_client.engine import Engine
from umbel.device_client.own_learning import Progress
from umbel.device_client.owner import Device
from umbel.device_client.releases import updating
from umbel.device_client.releases.commands import _proof
from umbel.device_client.releases.installed import install
from umbel.device_client.releases.proving import Proof, Trial, cut
from umbel.device_client.releases.trust import Pin
from umbel.device_client.releases.updating import Updated, Wanted
from umbel.shared.errors import BusyError, ReleaseError, StoreError
from umbel.shared.examples import Example
from umbel.shared.files import sole_use
from umbel.shared.profile import unpack_profile
from umbel.shared.release import Release, write_release
from umbel.shared.rng import generator

pytestmark = pytest.mark.full  # releases are made, by torch

MINE = random_examples(3, "owner", 10)
OnlyWhen = Callable[[str], bool]


@pytest.fixture(scope="module")
def first(onboarding_release: Release) -> Release:
    """The release that devices begin with."""
    return onboarding_release


@pytest.fixture(scope="module")
def others(first: Release, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """Releases that follow the first: "same" answers alike, "worse" has a head that is sure of nonsense."""
    from safetensors.numpy import load_file

    from umbel.coordinator.publish import publish_update

    folder = tmp_path_factory.mktemp("others")
    weights = load_file(first.blob_path("shared.safetensors"))
    values = {name: weights[name] for name in first.manifest.trainables}
    wrong = {
        name: value + generator(0, 0, "", name).normal(0, 5, value.shape).astype(np.float32)
        if name.startswith("task.")
        else value
        for name, value in values.items()
    }
    return {
        "same": publish_update(first, values, folder / "same"),
        "worse": publish_update(first, wrong, folder / "worse"),
    }


@pytest.fixture
def device(first: Release, tmp_path: Path) -> Iterator[Device]:
    """A device with examples and a profile."""
    with Device.enroll(tmp_path / "home", first.folder) as device:
        device.add(MINE)
        device.learn()
        yield device


def given(release: Release, **more: Any) -> Wanted:
    return Wanted(release=release.folder, **more)


def test_a_release_that_is_as_good_takes_over(
    device: Device, first: Release, others: dict[str, Release]
) -> None:
    before = device.predict(["good film", "bad book"])
    found = device.update(given(others["same"]))
    assert (found.outcome, found.release, found.other) == (
        "adopted",
        others["same"].release_id,
        first.release_id,
    )
    assert found.proof is not None
    assert (found.proof.examples, found.proof.nll_new) == (10, found.proof.nll_old)
    status = device.status()
    assert status["release"] == device.release.release_id == others["same"].release_id
    assert (status["profile"]["how"], status["profile"]["current"]) == ("learned", True)
    # What is adopted is what was proven: a profile learned from the start, not from where the old one ended.
    assert device.predict(["good film", "bad book"]) == before
    packed, _ = packed_learning(others["same"], MINE)
    anew, own = unpack_profile(others["same"].manifest.profile, packed, found.release), device.profile()
    assert own is not None
    assert all(np.array_equal(own[name], anew[name]) for name in anew)
    assert device.log()[-1]["what"] == "updated"
    assert device.update(given(others["same"])).outcome == "current"


def tried(release: Release, rows: list[Example]) -> float | None:
    """What a release loses where its owner learns."""
    trial = Trial("learned", rows, [], quick=False)
    return trial.nll(trial.texts(Engine(release)).read())


def test_figures_are_those_of_cross_validation(first: Release, others: dict[str, Release]) -> None:
    """Folds go by text: examples of the same text are never on both sides."""
    rows = [*MINE, replace(MINE[0])]
    folds = cut(rows, 0)
    assert folds[0] == folds[-1]
    for release in (first, others["worse"]):
        side = cross_validate(release, rows, folds)
        assert side is not None
        assert tried(release, rows) == side.nll_personal.mean()


def test_a_release_that_is_worse_does_not(
    device: Device, first: Release, others: dict[str, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = device.predict(["good film"])
    found = device.update(given(others["worse"]))
    assert (found.outcome, found.release, found.tried_before) == ("kept", first.release_id, False)
    assert found.proof is not None
    assert found.proof.nll_new > found.proof.nll_old
    assert device.predict(["good film"]) == before
    with monkeypatch.context() as context:
        context.setattr(updating, "Trial", None)  # nothing is tried again
        again = device.update(given(others["worse"]))
        assert (again.outcome, again.tried_before, again.proof) == ("kept", True, found.proof)
        check = device.update(given(others["worse"], check=True))
        assert (check.outcome, check.proof) == ("available", found.proof)
    device.add([Example("owner", "a tender book", "yes")])
    changed = device.update(given(others["worse"]))
    assert (changed.outcome, changed.tried_before) == ("kept", False)
    forced = device.update(given(others["worse"], force=True))
    assert (forced.outcome, device.release.release_id) == ("adopted", others["worse"].release_id)


def test_back_and_not_forth_by_itself(device: Device, first: Release, others: dict[str, Release]) -> None:
    with pytest.raises(ReleaseError, match="no release before"):
        device.update(Wanted(back=True))
    before = device.predict(["good film"])
    device.update(given(others["same"]))
    found = device.update(Wanted(back=True))
    assert (found.outcome, found.release, found.other) == (
        "back",
        first.release_id,
        others["same"].release_id,
    )
    assert device.predict(["good film"]) == before
    assert device.update(given(others["same"])).outcome == "kept"
    assert device.update(given(others["same"], force=True)).outcome == "adopted"


def test_the_previous_release_stays_and_older_ones_go(
    device: Device, first: Release, others: dict[str, Release]
) -> None:
    device.update(given(others["same"]))
    device.update(given(others["worse"], force=True))
    here = {path.name for path in (device.home / "releases").iterdir()}
    assert here == {others["same"].release_id, others["worse"].release_id}
    assert device.profile(first) is None


def test_without_a_profile_the_generic_models_are_compared(
    first: Release, others: dict[str, Release], tmp_path: Path
) -> None:
    with Device.enroll(tmp_path / "home", first.folder) as device:
        found = device.update(given(others["worse"]))
        assert (found.outcome, found.proof) == ("adopted", None)  # there is nothing to try it on
        device.add(MINE)
        found = device.update(given(first))
        assert found.outcome == "adopted"
        assert device.profile() is None
        assert found.proof is not None
        assert found.proof.nll_new < found.proof.nll_old
        device.add([MINE[0]])


def test_one_text_alone_is_still_a_comparison(first: Release, others: dict[str, Release]) -> None:
    found = [tried(release, [MINE[0]]) for release in (first, others["same"])]
    assert found[0] is not None
    assert found[0] > 0
    assert found[0] == found[1]


def follower(release: Release, folder: Path, **changed: Any) -> Release:
    """Another release of the same blobs."""
    manifest = replace(release.manifest, parent=release.release_id, **changed)
    return write_release(folder, manifest, {n: release.blob_path(n).read_bytes() for n in manifest.blobs})


def test_an_onboarded_profile_is_onboarded_anew(first: Release, tmp_path: Path) -> None:
    with Device.enroll(tmp_path / "home", first.folder) as device:
        device.add(MINE, ["a very slow film"])
        device.onboard(explain=False)
        before = device.profile()
        found = device.update(given(follower(first, tmp_path / "follower")))
        after = device.profile()
        assert device.status()["profile"]["how"] == "onboarded"
    assert found.outcome == "adopted"
    assert found.proof is not None
    assert found.proof.nll_new == found.proof.nll_old
    assert before is not None
    assert after is not None
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("how", ["learned", "onboarded"])
def test_each_text_is_read_once(
    embedded_release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """For all folds and cuts, and what is learned then; by releases with the same encoder once for both."""
    read = counted_readings(monkeypatch)
    same = follower(embedded_release, tmp_path / "same")
    shorter = embedded_release.manifest.max_tokens - 1
    other = follower(embedded_release, tmp_path / "other", max_tokens=shorter)
    with Device.enroll(tmp_path / "home", embedded_release.folder) as device:
        device.add(MINE, ["a very slow film"])
        assert device.update(given(same)).outcome == "adopted"
        assert sum(read) == 10  # there is no profile, so the further text says nothing
        make: Callable[[], object] = device.learn if how == "learned" else device.onboard
        make()
        assert device.update(given(embedded_release)).outcome == "adopted"
        assert sum(read) == 11
        assert device.update(given(other)).outcome == "adopted"
        assert device.status()["profile"]["how"] == how
        make()
        device.learn()
        assert sum(read) == 2 * 11


def test_labels_that_a_release_lacks(device: Device, first: Release, tmp_path: Path) -> None:
    manifest = replace(first.manifest, labels=("no", "maybe"))
    blobs = {name: first.blob_path(name).read_bytes() for name in manifest.blobs}
    other = write_release(tmp_path / "other", manifest, blobs)
    count = sum(row.label == "yes" for row in MINE)
    assert 0 < count < len(MINE)
    with pytest.raises(ReleaseError, match=f"{count} of your 10 examples have another label"):
        device.update(given(other, force=True))
    assert device.release.release_id == first.release_id


def test_what_is_forgotten_meanwhile_is_not_brought_back(
    device: Device, first: Release, others: dict[str, Release]
) -> None:
    def meanwhile(_: Progress) -> None:
        if len(device.entries()) == 10:
            device.forget([device.entries()[0].number])

    with pytest.raises(StoreError, match="has been forgotten"):
        device.update(given(others["same"]), hears=updating.Hears(on_progress=meanwhile))
    status = device.status()
    assert (status["release"], status["profile"], status["examples"]) == (first.release_id, None, 9)


def test_two_at_once(device: Device, others: dict[str, Release]) -> None:
    with sole_use(device.home / "trust"), pytest.raises(BusyError):
        device.update(given(others["same"]))


def test_a_release_that_was_damaged_is_taken_again(device: Device, first: Release) -> None:
    before = device.predict(["good film"])
    device.release.blob_path("tokenizer.json").write_bytes(b"{}")
    with Device.open(device.home) as opened:
        with pytest.raises(ReleaseError, match="has 2 bytes"):
            opened.predict(["good film"])
        assert opened.update(given(first)).outcome == "current"
        assert opened.predict(["good film"]) == before


def test_another_release_in_the_folder_of_the_one_in_use(
    device: Device, first: Release, others: dict[str, Release]
) -> None:
    """It is whole in itself, so only its id tells."""
    before = device.predict(["good film"])
    place = device.home / "releases" / first.release_id
    shutil.rmtree(place)
    shutil.copytree(others["worse"].folder, place)
    with Device.open(device.home) as opened:
        with pytest.raises(ReleaseError, match=r"holds another one\n  - found "):
            opened.predict(["good film"])
        assert opened.update(given(first)).outcome == "current"
        assert opened.predict(["good film"]) == before


def test_what_is_taken_is_what_was_offered(
    device: Device, first: Release, others: dict[str, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may change after it was looked at, and before it is copied."""
    monkeypatch.setattr(updating, "install", lambda folder, to: install(others["worse"].folder, to))
    with pytest.raises(ReleaseError, match="another release than was offered"):
        device.update(given(others["same"], force=True))
    assert device.status()["release"] == first.release_id


def test_a_damaged_release_does_not_keep_others_away(
    device: Device, first: Release, others: dict[str, Release], capsys: pytest.CaptureFixture[str]
) -> None:
    """The channel has moved on, so the same one cannot be had again."""
    place = device.home / "releases" / first.release_id
    (place / "blobs" / first.manifest.blobs["tokenizer.json"].sha256).write_bytes(b"{}")
    wanted = given(others["same"])
    with pytest.raises(ReleaseError, match=r"(?s)cannot be compared.*has 2 bytes.*device update --force"):
        device.update(wanted)
    assert device.status()["release"] == first.release_id
    words = ["device", "update", "-r", str(wanted.release), "--force", "--home", str(device.home)]
    assert cli.main(words) == 0
    assert "That one was damaged or missing, so they were not compared." in capsys.readouterr().out
    status = device.status()
    assert (status["release"], status["profile"]["current"]) == (others["same"].release_id, True)
    with pytest.raises(ReleaseError, match="no release before"):
        device.update(Wanted(back=True))
    shutil.rmtree(device.home / "releases" / others["same"].release_id)
    found = device.update(given(others["worse"], force=True)).as_json()
    assert (found["outcome"], found["proof"], found["unread"]) == ("adopted", None, True)


def test_nowhere_to_look(device: Device) -> None:
    with pytest.raises(ReleaseError, match="follows no channel"):
        device.update()
    with pytest.raises(ReleaseError, match="do not go together"):
        Wanted(back=True, check=True)


def test_from_a_channel(device: Device, others: dict[str, Release], tmp_path: Path) -> None:
    """A device that began with a folder trusts a channel later on; nothing is fetched that it has."""
    publisher = Publisher(tmp_path / "channel", tmp_path / "keys")
    publisher.channel.create()
    publisher.channel.add(others["worse"])
    pin = Pin(sha256=publisher.channel.status()["pin"])
    found = device.update(Wanted(check=True, source=str(publisher.folder), pin=pin))
    assert (found.outcome, found.other) == ("available", others["worse"].release_id)
    assert found.to_fetch == others["worse"].manifest.blobs["shared.safetensors"].size_bytes
    assert device.status()["channel"] == str(publisher.folder)
    publisher.channel.add(others["same"])
    phases: list[str] = []
    found = device.update(hears=updating.Hears(on_phase=phases.append))
    assert found.outcome == "adopted"
    assert phases == ["looking", "fetching", "trying it on your examples", "learning your profile for it"]
    publisher.channel.add(others["worse"])
    moved = publisher.folder.rename(tmp_path / "mirror")
    with pytest.raises(ReleaseError):
        device.update()
    assert device.update(Wanted(source=str(moved))).outcome == "kept"
    other = Publisher(tmp_path / "other", tmp_path / "other-keys")
    other.channel.create()
    other.channel.add(others["worse"])
    with pytest.raises(ReleaseError, match="not signed by the keys"):
        device.update(Wanted(source=str(other.folder)))


def test_the_command(
    device: Device,
    others: dict[str, Release],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UMBEL_HOME", str(device.home))

    def said(*words: object) -> str:
        assert cli.main(["device", "update", *map(str, words)]) == 0
        return capsys.readouterr().out

    same, worse = others["same"].folder, others["worse"].folder
    assert "Take it over: umbel device update" in said("--check", "-r", same)
    found = json.loads(said("-r", worse, "--json"))
    assert (found["outcome"], found["proof"]["examples"]) == ("kept", 10)
    assert "goes on. On your 10 examples, each held out once, the loss is" in said("-r", worse)
    assert "has taken over from" in said("-r", same)
    assert "Nothing new" in said("-r", same)
    assert "is in use again" in said("--back")
    assert "You went back from the other one" in said("-r", same)


def test_a_tie_is_as_good_and_a_little_worse_is_not() -> None:
    assert Proof(8, 0.5, 0.5).as_good
    assert Proof(8, 0.5, 0.4).as_good
    assert not Proof(8, 0.5, 0.501).as_good
    assert not Proof(8, 0.5, float("nan")).as_good


def test_losses_that_differ_are_told_apart() -> None:
    def said(new: float, old: float) -> str:
        return _proof(Updated("adopted", "", proof=Proof(8, old, new)))

    assert "is 0.412 with the new one and 0.500 with" in said(0.41234, 0.5)
    assert "is 0.41234 with the new one and 0.41235 with" in said(0.41234, 0.41235)
    assert "is 0.412 with the new one and 0.412 with" in said(0.41234, 0.41234)


def killed(repository: Path, first: Release, newer: Release, folder: Path, every: int) -> dict[str, Any]:
    """Runs `tests.robustness.updates`, in a process without torch's threads, which must not be forked."""
    rows = folder / "rows.json"
    rows.write_text(json.dumps([[row.text, row.label] for row in MINE]))
    words = [first.folder, newer.folder, rows, folder / "work", "--every", every]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.robustness.updates", *map(str, words)],
        cwd=repository,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    if "why" in found:
        pytest.skip(found["why"])
    return found


@pytest.mark.slow  # many seconds
def test_killed_some_times(
    repository: Path, first: Release, others: dict[str, Release], tmp_path: Path
) -> None:
    found = killed(repository, first, others["same"], tmp_path, 40)
    assert (found["findings"], found["kills"] > 2) == ([], True)


@pytest.mark.slow
def test_killed_before_every_call(
    repository: Path, first: Release, others: dict[str, Release], tmp_path: Path
) -> None:
    """Each time the home is whole, of the old release or the new one, and the next update goes through."""
    found = killed(repository, first, others["same"], tmp_path, 1)
    assert found["findings"] == []
    assert found["was"] == sorted({first.release_id, others["same"].release_id})
    assert found["kills"] == found["calls"]
