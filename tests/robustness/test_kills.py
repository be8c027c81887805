"""A device is killed at its work: what was acknowledged is there, what is there is whole."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from umbel.shared.release import Release


def python(repository: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process without torch's threads, which must not be forked."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=repository,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def killed(repository: Path, release: Release, out: Path, *words: object) -> dict[str, Any]:
    ended = python(
        repository,
        "-m",
        "tests.robustness.kills",
        "--release",
        release.folder,
        "--out",
        out,
        "--json",
        *words,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


@pytest.mark.slow  # many seconds
def test_killed_some_times(repository: Path, embedded_release: Release, tmp_path: Path) -> None:
    found = killed(repository, embedded_release, tmp_path, "--each", "add", "--count", 2)
    assert found["kills"] > 20
    assert found["findings"] == 0
    found = killed(repository, embedded_release, tmp_path, "--each", "none", "--count", 10)
    assert found["kills"] > 30
    assert found["findings"] == 0
    assert set(found["by_way"]) >= {"random"}


@pytest.mark.slow
def test_killed_before_every_call_and_500_times(
    repository: Path, embedded_release: Release, tmp_path: Path
) -> None:
    found = killed(repository, embedded_release, tmp_path, "--count", 500)
    assert found["kills"] > 1000
    assert found["findings"] == 0


_CONTROL = """
import sys
from pathlib import Path
from tests.robustness import kills
from tests.robustness.children import can_trace
from umbel.device_client.vault.store import Added, Store

if can_trace():
    print("untraced")
    sys.exit()
step = kills.STEPS[2]
whole = Store.add

def one_by_one(self, entries, profiles=None, event=None):
    for entry in entries:
        whole(self, [entry])
    Path(self._connection.execute("PRAGMA database_list").fetchone()[2]).with_name("left").write_text("cnry")
    return Added(0, 0, 0)

Store.add = one_by_one
found, folder = set(), Path(sys.argv[1])
for number, ended, problems in kills.each_call(folder, kills.two_releases(Path(sys.argv[2]), folder), step):
    found |= {problem.split(":")[0] for problem in problems}
    if len(found) == 3:
        break
print(sorted(found))
"""


def test_a_device_that_does_things_by_halves_is_found_out(
    repository: Path, embedded_release: Release, tmp_path: Path
) -> None:
    ended = python(repository, "-c", _CONTROL, tmp_path, embedded_release.folder)
    assert ended.returncode == 0, ended.stderr
    if ended.stdout == "untraced\n":
        pytest.skip("system calls cannot be counted here")
    assert ended.stdout.strip() == str(
        ["in plain form", "it holds what nobody acknowledged", "left lying about"]
    )
