"""docs/walkthrough.md: its commands work, and it shows a device's whole life."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from umbel.coordinator.publish import publish_update
from umbel.shared.release import SHARED_WEIGHTS, Release

WAY = ("enroll", "add", "onboard", "learn", "predict", "update", "export", "import", "forget")


def test_the_commands_of_the_walk_work(onboarding_release: Release, tmp_path: Path, repository: Path) -> None:
    from safetensors.numpy import load_file

    shutil.copytree(onboarding_release.folder, tmp_path / "release")
    weights = load_file(onboarding_release.blob_path(SHARED_WEIGHTS))
    moved = {name: weights[name] * np.float32(1.01) for name in onboarding_release.manifest.trainables}
    publish_update(onboarding_release, moved, tmp_path / "release-after-rounds")
    page = Path(shutil.copy(repository / "docs" / "walkthrough.md", tmp_path / "page.md"))
    script = repository / "scripts" / "record_walk.py"
    run = subprocess.run(
        [sys.executable, script, page, "--releases", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(repository / "src")},
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    printed = page.read_text(encoding="utf-8")
    assert "8 new, 0 with another label" in printed
    assert "Erased:" in printed
    assert str(tmp_path) not in printed


def test_the_walk_goes_the_whole_way(repository: Path) -> None:
    page = (repository / "docs" / "walkthrough.md").read_text(encoding="utf-8")
    typed = re.findall(r"^\$ umbel device (\w+)", page, re.MULTILINE)
    places = [typed.index(command) for command in WAY]
    assert places == sorted(places)
