"""A simulated device's home: a profile is whole or absent, and readable by its owner only."""

import stat
from pathlib import Path

import numpy as np
import pytest

from umbel.device_client.egress.gate import Asker, Departure
from umbel.device_client.simulated import SimulatedHome
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
    home = SimulatedHome(tmp_path / "home")
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
    home = SimulatedHome(tmp_path)
    home.save_profile(release, PROFILE)
    with pytest.raises(ProfileError, match="not finite"):
        home.save_profile(release, {"user": np.array([np.nan, 0, 0], np.float32)})
    found = home.load_profile(release)
    assert found is not None
    np.testing.assert_array_equal(found["user"], PROFILE["user"])


def test_a_home_that_cannot_be_written_is_one_clear_error(tmp_path: Path, release: Release) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(ProfileError, match="cannot keep the profile"):
        SimulatedHome(tmp_path / "home").save_profile(release, PROFILE)


def test_a_damaged_profile_is_refused(tmp_path: Path, release: Release) -> None:
    home = SimulatedHome(tmp_path)
    home.save_profile(release, PROFILE)
    path = home.profile_path(release)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ProfileError, match="expected"):
        home.load_profile(release)


def test_examples_are_read_and_heldout_ones_may_be_missing(tmp_path: Path) -> None:
    home = SimulatedHome(tmp_path)
    with pytest.raises(ExampleError, match="Cannot read"):
        home.examples()
    write_examples(tmp_path / "examples.jsonl", [Example("ann", "a slow film", "yes")])
    assert [example.label for example in home.examples()] == ["yes"]
    assert home.heldout() == []


def test_a_simulated_person_has_no_policy_and_what_is_wrong_stays_wrong(tmp_path: Path) -> None:
    home = SimulatedHome(tmp_path, 7)
    assert (home.client_number(), home.refusals(), home.release_folder) == (7, [], None)
    assert home.enter(Departure("train", Asker()), ["x is missing"]) == ["x is missing"]
    assert list(tmp_path.iterdir()) == []
