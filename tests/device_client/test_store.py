"""A device's home: private by its permissions, and whole or absent."""

import stat
from pathlib import Path

import numpy as np
import pytest

from umbel.device_client.store import DeviceHome
from umbel.shared.errors import ExampleError, ProfileError
from umbel.shared.examples import Example, write_examples
from umbel.shared.profile import ProfileSpec, TensorSpec
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Manifest, Release


@pytest.fixture
def release(tmp_path: Path) -> Release:
    spec = ProfileSpec((TensorSpec("user", (3,)),))
    backbone = {"name": "tiny", "family": "bert", "sha256": "0" * 64}
    manifest = Manifest(
        None, "classification", ("no", "yes"), backbone, {}, 8, spec, LearningRecipe(), {}, {}, {}
    )
    return Release(tmp_path / "release", manifest, manifest.release_id)


PROFILE = {"user": np.array([[0.5, -1.0, 2.0]], np.float32)}


def test_a_profile_is_kept_and_only_its_owner_can_read_it(tmp_path: Path, release: Release) -> None:
    home = DeviceHome(tmp_path / "home")
    assert home.load_profile(release) is None
    home.save_profile(release, PROFILE)
    found = home.load_profile(release)
    assert found is not None
    np.testing.assert_array_equal(found["user"], PROFILE["user"])
    path = home.profile_path(release)
    assert path.name == f"profile-{release.release_id[:12]}.umbel"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == release.manifest.profile.file_bytes


def test_a_profile_that_cannot_be_packed_leaves_the_old_one(tmp_path: Path, release: Release) -> None:
    home = DeviceHome(tmp_path)
    home.save_profile(release, PROFILE)
    with pytest.raises(ProfileError, match="not finite"):
        home.save_profile(release, {"user": np.array([np.nan, 0, 0], np.float32)})
    found = home.load_profile(release)
    assert found is not None
    np.testing.assert_array_equal(found["user"], PROFILE["user"])


def test_a_home_that_cannot_be_written_is_one_clear_error(tmp_path: Path, release: Release) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(ProfileError, match="cannot keep the profile"):
        DeviceHome(tmp_path / "home").save_profile(release, PROFILE)


def test_a_damaged_profile_is_refused(tmp_path: Path, release: Release) -> None:
    home = DeviceHome(tmp_path)
    home.save_profile(release, PROFILE)
    path = home.profile_path(release)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ProfileError, match="expected"):
        home.load_profile(release)


def test_examples_are_read_and_heldout_ones_may_be_missing(tmp_path: Path) -> None:
    home = DeviceHome(tmp_path)
    with pytest.raises(ExampleError, match="Cannot read"):
        home.examples()
    write_examples(tmp_path / "examples.jsonl", [Example("ann", "a slow film", "yes")])
    assert [example.label for example in home.examples()] == ["yes"]
    assert home.heldout() == []


def test_the_number_of_a_device_is_made_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = DeviceHome(tmp_path / "a").client_number()
    assert DeviceHome(tmp_path / "a").client_number() == first
    assert 0 <= first < 2**63
    assert DeviceHome(tmp_path / "b").client_number() != first
    with pytest.raises(ExampleError, match="no device home"):
        DeviceHome(tmp_path / "missing").client_number()
