"""Learning at home: stopped anywhere and gone on with, it comes to the same bytes as in one go."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.builders import random_examples
from tests.readings import counted_readings
from tests.terminal import told, umbel

from umbel.device_client.engine import Engine
from umbel.device_client.own_learning import OwnLearning, Progress
from umbel.device_client.owner import Device
from umbel.device_client.runs import Pace
from umbel.device_client.states import packed, unpacked
from umbel.shared.errors import StoreError
from umbel.shared.examples import Example
from umbel.shared.release import Release

pytestmark = pytest.mark.full  # a release is made, by torch

MINE = random_examples(0, "me", 9)
TEXTS = [example.text for example in random_examples(1, "me", 5, "texts")]


@pytest.fixture(scope="module", params=["tiny_release", "embedded_release", "onboarding_release"])
def release(request: pytest.FixtureRequest) -> Release:
    """One that reads texts each time, one that reads them once, and one that starts from all of them."""
    found: Release = request.getfixturevalue(request.param)
    return found


def in_one_go(release: Release) -> tuple[bytes, Any, int]:
    learning, count = OwnLearning(Engine(release), MINE, TEXTS), 0
    while not learning.finished:
        learning.advance()
        count += 1
    return *learning.result(), count


def same(found: tuple[bytes, Any], wanted: tuple[bytes, Any]) -> None:
    assert found[0] == wanted[0]
    one, other = found[1], wanted[1]
    assert (one.nll_generic, one.nll_personal, one.strength) == (
        other.nll_generic,
        other.nll_personal,
        other.strength,
    )
    if other.held_out is not None:
        assert one.held_out.nll_personal.tolist() == other.held_out.nll_personal.tolist()


def test_stopped_after_every_graph_run_it_comes_to_the_same_bytes(release: Release) -> None:
    *wanted, count = in_one_go(release)
    learning, state = OwnLearning(Engine(release), MINE, TEXTS), dict[str, bytes]()
    for number in range(count):
        learning = OwnLearning(Engine(release), MINE, TEXTS)
        if number:
            learning.restore({part: unpacked(data) for part, data in state.items()})
        assert not learning.finished
        learning.advance()
        state = {part: packed(arrays) for part, arrays in learning.state().items()}
    assert learning.finished
    same(learning.result(), (wanted[0], wanted[1]))


@pytest.fixture(scope="module")
def wanted(release: Release) -> tuple[bytes, Any]:
    return in_one_go(release)[:2]


@given(stops=st.lists(st.integers(1, 40), max_size=6))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stopped_anywhere_at_home_it_comes_to_the_same_bytes(
    release: Release,
    wanted: tuple[bytes, Any],
    stops: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("home")
    with Device.enroll(home / "own", release.folder) as device:
        device.add(MINE, TEXTS)
        known, texts = device.known()
    for place, count in enumerate(stops):
        with Device.open(home / "own") as device:
            found = device.learn(stopped=after(count))
            assert found.resumed == (place > 0) or not found.changed
            if found.finished:
                break
            assert device.profile() is None
            told = device.status()["unfinished"]
            assert told is not None
            assert told["current"] is True
    with Device.open(home / "own") as device:
        device.learn()
        kept = device._store.profile(release.release_id)
        assert device.status()["unfinished"] is None
    learning = OwnLearning(Engine(release), known, texts)
    while not learning.finished:
        learning.advance()
    assert kept is not None
    assert kept.packed == learning.result()[0]
    assert kept.about["nll_personal"] == learning.result()[1].nll_personal


def after(count: int) -> Callable[[], bool]:
    """Returns what stops learning after so many graph runs."""
    left = iter(range(count))
    return lambda: next(left, None) is None


def home_with(tmp_path: Path, release: Release, *, texts: bool = True) -> Device:
    device = Device.enroll(tmp_path / "home", release.folder)
    device.add(MINE, TEXTS if texts else [])
    return device


def test_what_is_the_same_is_not_learned_again(release: Release, tmp_path: Path) -> None:
    with home_with(tmp_path, release) as device:
        assert device.learn().changed
        assert not device.learn(stopped=lambda: pytest.fail("learned")).changed
        before = device.profile()
        assert device.learn(anew=True).changed
        after_ = device.profile()
        assert before is not None
        assert after_ is not None
        assert all(np.array_equal(after_[name], own) for name, own in before.items())
        device.add([Example("owner", "something new", "yes")])
        assert device.learn().changed


def test_a_run_of_other_examples_is_begun_anew(release: Release, tmp_path: Path) -> None:
    with home_with(tmp_path, release) as device:
        device.learn()
        old = device._store.profile(release.release_id)
        assert not device.learn(anew=True, stopped=after(5)).finished
        assert device._store.profile(release.release_id) == old  # it serves meanwhile
        device.add([Example("owner", "something new", "yes")])
        told = device.status()["unfinished"]
        assert told is not None
        assert told["current"] is False
        found = device.learn(stopped=after(1))
        assert (found.finished, found.resumed) == (False, False)
        assert device.learn().resumed


def test_a_run_that_another_umbel_kept_otherwise_is_begun_anew(release: Release, tmp_path: Path) -> None:
    with home_with(tmp_path, release) as device:
        device.learn(stopped=after(5))
        kept = device._store.run(release.release_id)
        assert kept is not None
        changed = dict.fromkeys(kept.parts) | {"learning/all/step": packed({"other": np.zeros(1)})}
        device._store.keep_run(release.release_id, kept.about, changed, 0, str(kept.about["holder"]))
        found = device.learn()
        assert (found.finished, found.resumed) == (True, False)


def test_no_file_holds_a_text_or_a_label_while_it_is_learned(release: Release, tmp_path: Path) -> None:
    canary = "a canary sang in the mine at noon"
    with home_with(tmp_path, release) as device:
        device.add([Example("owner", canary, "yes")], [f"{canary} again"])
        device.learn(stopped=after(5))
        assert canary not in json.dumps(device.log()) + json.dumps(device.status())
        for file in (tmp_path / "home").glob("store*"):
            assert canary.encode() not in file.read_bytes()


def test_a_run_goes_with_what_is_forgotten(release: Release, tmp_path: Path) -> None:
    with home_with(tmp_path, release) as device:
        device.learn(stopped=after(5))
        assert device.forget([1]).runs == 1
        assert device.status()["unfinished"] is None
        assert not device.learn(stopped=after(1)).resumed


def test_what_is_forgotten_while_it_is_learned_ends_the_learning(release: Release, tmp_path: Path) -> None:
    with home_with(tmp_path, release) as device:

        def meanwhile(_: Progress) -> None:
            with Device.open(tmp_path / "home") as other:
                other.forget([1])

        with pytest.raises(StoreError, match="forgotten"):
            device.learn(stopped=after(1), on_progress=meanwhile)
        assert device.status()["unfinished"] is None


def test_a_text_is_read_once_in_its_life(
    embedded_release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = counted_readings(monkeypatch)
    with home_with(tmp_path, embedded_release) as device:
        device.learn()
        assert sum(read) == len(device.entries())
        device.add([Example("owner", "something new", "yes")], ["another text"])
        device.learn(stopped=after(2))
        device.learn()
        device.learn(anew=True)
        assert sum(read) == len(device.entries())
        device.add([Example("owner", MINE[0].text, "no")])  # another label is no other text
        device.learn()
        assert sum(read) == len(device.entries())
        assert device.forget([1, 2]).readings == 2
        own = device.entries()
        assert device.learn().finished
        assert sum(read) == len(own) + 2


def test_what_was_read_before_gives_what_reading_anew_gives(
    embedded_release: Release, tmp_path: Path
) -> None:
    """Texts read in other company differ in the last bits of a float32; float16 may then round otherwise."""
    with home_with(tmp_path, embedded_release) as device:
        device.learn()
        for number in range(3):
            device.add([Example("owner", f"something new {number}", "yes")])
            device.learn()
        found = device.profile()
        known, texts = device.known()
    learning = OwnLearning(Engine(embedded_release), known, texts)
    while not learning.finished:
        learning.advance()
    exact = learning._cautious().profiles()
    assert found is not None
    for name, own in exact.items():
        np.testing.assert_allclose(found[name], own, rtol=2e-3, atol=1e-4)


def test_releases_with_the_same_encoder_share_what_was_read(
    embedded_release: Release, onboarding_release: Release
) -> None:
    assert Engine(embedded_release).reader == Engine(embedded_release).reader
    assert Engine(embedded_release).reader != Engine(onboarding_release).reader


def test_the_pace_begins_nothing_that_does_not_fit() -> None:
    now = [0.0]

    def work(seconds: float) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + seconds)

    pace = Pace(10.0, 0.0, lambda: now[0])
    assert pace.fits()
    pace.timed(work(3.0))
    assert pace.fits()
    pace.timed(work(3.0))
    assert pace.elapsed() == 6.0
    assert pace.fits()  # 6 + 1.25 x 3 = 9.75
    pace.timed(work(1.0))
    assert not pace.fits()
    late = Pace(1.0, -5.0, lambda: now[0])
    assert late.fits()  # one graph run a call, or nothing would ever be done
    late.timed(work(0.1))
    assert not late.fits()
    endless = Pace(None, 0.0)
    endless.timed(work(1.0))
    assert endless.fits()


SLOW = """
import time, sys
from umbel.device_client.own_learning import OwnLearning
plain = OwnLearning.advance
def slow(own):
    time.sleep(0.15)
    plain(own)
OwnLearning.advance = slow
from umbel import cli
sys.exit(cli.main(["device", "learn", "--threads", "1", "--json", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_stops_it_and_what_it_has_is_kept(
    kind: signal.Signals, embedded_release: Release, tmp_path: Path
) -> None:
    home_with(tmp_path, embedded_release).close()
    words = [sys.executable, "-c", SLOW, "--home", str(tmp_path / "home")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as process:
        while not _kept(tmp_path) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(kind)
        out, _ = process.communicate(timeout=60)
    if kind == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 0
        assert json.loads(out)["finished"] is False
    with Device.open(tmp_path / "home") as device:
        assert device.status()["unfinished"]["done"] >= 0
        assert device.learn().resumed
        known, texts = device.known()
        kept = device._store.profile(embedded_release.release_id)
    learning = OwnLearning(Engine(embedded_release), known, texts)
    while not learning.finished:
        learning.advance()
    assert kept is not None
    assert kept.packed == learning.result()[0]


def _kept(tmp_path: Path) -> bool:
    with Device.open(tmp_path / "home") as device:
        return device.status()["unfinished"] is not None


def test_from_the_command_line(
    embedded_release: Release,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home_with(tmp_path, embedded_release).close()
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    found = told(capsys, "learn", "--max-seconds", "0")
    assert (found["finished"], found["resumed"], found["doing"]) == (False, False, "learning")
    status, out, _ = umbel(capsys, "learn", "--max-seconds", "0")
    assert status == 0
    assert "umbel device learn' goes on" in out
    status, out, _ = umbel(capsys, "status")
    assert "it goes on with umbel device learn" in out
    found = told(capsys, "learn")
    assert (found["finished"], found["resumed"], found["changed"]) == (True, True, True)
    held = found["held_out"]
    assert held["examples"] == found["examples"]
    assert told(capsys, "learn")["changed"] is False
    assert "Nothing has changed" in umbel(capsys, "learn")[1]
    status, out, _ = umbel(capsys, "status")
    assert "are right with it" in out
    assert "too few to tell" in out
    rows = told(capsys, "status")["runs"]
    assert [row["what"] for row in rows] == ["stopped learning", "stopped learning", "learned"]
    assert rows[-1]["steps"] == 6
    assert rows[-1]["seconds"] >= rows[0]["seconds"]
    found = told(capsys, "forget", "--number", 1, "--yes")
    assert found["erased"] == {"examples": 1, "texts": 0, "profiles": 1, "runs": 0, "readings": 1}
    assert found["again"]["finished"] is True
    assert found["again"]["examples"] == held["examples"] - 1
    status, out, _ = umbel(capsys, "forget", "--number", 2, "--yes", "--no-learn")
    assert out == "Erased: 1 example, 1 profile, 1 note of a text that was read.\n"
    assert "nothing was erased" in umbel(capsys, "forget", "--number", 2, "--yes")[1]
    assert told(capsys, "onboard")["bytes"] > 0
    assert told(capsys, "forget", "--number", 3, "--yes")["again"] == {"how": "onboarded"}


def test_files_keep_nothing_that_is_not_finished(
    embedded_release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jsonl").write_text('{"text": "a good film", "label": "yes"}\n')
    words = ("learn", "-r", embedded_release.folder, "-e", tmp_path / "mine.jsonl", "-p", tmp_path / "p")
    status, _, err = umbel(capsys, *words, "--max-seconds", "5")
    assert (status, "umbel device enroll" in err) == (2, True)
    assert not (tmp_path / "p").exists()


def test_what_was_read_and_is_gone_is_not_taken_for_zeros(embedded_release: Release) -> None:
    learning = OwnLearning(Engine(embedded_release), MINE, TEXTS)
    while not learning.texts.reading.finished:
        learning.advance()
    learning.advance()
    learning.readings_kept = True  # and then another release's take their place
    state = learning.state()
    with pytest.raises(KeyError, match="reading"):
        OwnLearning(Engine(embedded_release), MINE, TEXTS).restore(state)


def test_what_was_begun_anew_and_stopped_is_gone_on_with(embedded_release: Release, tmp_path: Path) -> None:
    with Device.enroll(tmp_path / "own", embedded_release.folder) as device:
        device.add(MINE)
        assert device.learn().finished
        assert not device.learn().changed
        assert not device.learn(anew=True, seconds=0.0).finished
        again = device.learn()
        assert (again.finished, again.changed, again.resumed) == (True, True, True)
        assert not device.learn().changed
