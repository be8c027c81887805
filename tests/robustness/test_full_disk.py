"""A disk fills up under a device: a clear error, nothing lost, nothing half there."""

import json
from pathlib import Path

import pytest
from tests.robustness.test_kills import python

from umbel.shared.release import Release


def squeezed(repository: Path, release: Release, out: Path, *words: str) -> None:
    ended = python(
        repository, "-m", "tests.robustness.full_disk", "--release", release.folder, "--out", out, *words
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    found = json.loads(ended.stdout)
    assert found["findings"] == []
    assert found["refused"] >= 5
    assert found["tries"] > found["refused"]
    if not found["mounted"]:
        pytest.skip(f"files were limited, but no small disk can be mounted here: {found['why_not']}")


def test_adding_with_more_and_more_room(repository: Path, embedded_release: Release, tmp_path: Path) -> None:
    squeezed(repository, embedded_release, tmp_path, "--step", "add")


@pytest.mark.slow
def test_every_step_with_more_and_more_room(
    repository: Path, embedded_release: Release, tmp_path: Path
) -> None:
    squeezed(repository, embedded_release, tmp_path)
