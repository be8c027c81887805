"""What is learned in 8 bits is near what float32 learns, the same every time, and known for what it is."""

from pathlib import Path

import numpy as np
import pytest
from tests.builders import random_examples
from tests.terminal import told

from umbel.device_client.device import packed_learning
from umbel.device_client.engine import Engine
from umbel.device_client.owner import Device
from umbel.shared.errors import ConfigError
from umbel.shared.profile import FloatArray, unpack_profile
from umbel.shared.release import Release

pytestmark = pytest.mark.full  # a release is made, by torch

MINE = random_examples(0, "me", 9)


@pytest.fixture
def device(int8_release: Release, tmp_path: Path) -> Device:
    with Device.enroll(tmp_path / "home", int8_release.folder) as found:
        found.add(MINE)
    return Device.open(tmp_path / "home")


def vector(release: Release, packed: bytes) -> FloatArray:
    found = unpack_profile(release.manifest.profile, packed, release.release_id)
    return np.concatenate([found[name].ravel() for name in sorted(found)])


def test_8_bits_learn_what_float32_learns_but_for_rounding(int8_release: Release) -> None:
    (small, told_small), (exact, told_exact) = (
        packed_learning(int8_release, MINE, precision=precision) for precision in ("int8", "float32")
    )
    near, right = vector(int8_release, small), vector(int8_release, exact)
    assert small != exact
    assert float(near @ right) / float(np.linalg.norm(near) * np.linalg.norm(right)) > 0.95
    assert told_small.nll_personal == pytest.approx(told_exact.nll_personal, abs=0.05)
    assert (told_small.precision, told_exact.precision) == ("int8", "float32")


def test_it_is_the_same_every_time_whatever_the_pieces(int8_release: Release) -> None:
    """A text has its own scales, so who is beside it changes nothing but float32's rounding of sums."""
    wanted, _ = packed_learning(int8_release, MINE)
    assert packed_learning(int8_release, MINE)[0] == wanted
    engine = Engine(int8_release).quick()
    tokens, labels = engine.encode([own.text for own in MINE]), np.arange(len(MINE)) % 2
    nobody, owner = int8_release.manifest.profile.zeros(1), np.zeros(len(MINE), np.int64)
    _, whole = engine.learn(tokens, labels, owner, nobody, {})
    parts = [
        engine.learn(tokens.rows([n]), labels[n : n + 1], owner[:1], nobody, {})[1] for n in range(len(MINE))
    ]
    for name, gradient in whole.items():
        summed = np.sum([part[name] for part in parts], axis=0)
        assert summed == pytest.approx(gradient, abs=1e-4 * float(np.abs(gradient).max()))


def test_another_precision_is_learned_anew_and_stays(device: Device) -> None:
    with device:
        assert device.learn().changed
        assert not device.learn().changed
        again = device.learn(precision="float32")
        assert again.changed
        assert again.about is not None
        assert again.about["precision"] == "float32"
        assert not device.learn().changed
        assert device.learn(precision="int8").changed
        assert not device.learn().changed


def test_a_stopped_run_goes_on_in_its_own_precision(device: Device) -> None:
    with device:
        for precision in ("float32", "int8"):
            stops = iter([False, False, True])
            assert not device.learn(precision=precision, anew=True, stopped=stops.__next__).finished
            found = device.learn()
            assert (found.finished, found.resumed) == (True, True)
            assert found.about is not None
            assert found.about["precision"] == precision


def test_in_another_precision_a_stopped_run_is_begun_anew(device: Device) -> None:
    stops = iter([False, False, True])
    with device:
        assert not device.learn(stopped=stops.__next__).finished
        other = device.learn(precision="float32")
        assert (other.finished, other.resumed) == (True, False)


def test_an_unknown_precision_is_refused(device: Device) -> None:
    with device:
        for way in (device.learn, device.onboard, device.update):
            with pytest.raises(ConfigError, match="precision"):
                way(precision="float16")
        assert device.profile() is None


def test_the_command_takes_it(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    device.close()
    assert told(capsys, "learn", "--home", device.home, "--precision", "float32")["precision"] == "float32"
    assert told(capsys, "learn", "--home", device.home)["precision"] == "float32"
    assert told(capsys, "learn", "--home", device.home, "--precision", "int8")["precision"] == "int8"
    assert told(capsys, "status", "--home", device.home)["profile"]["precision"] == "int8"
