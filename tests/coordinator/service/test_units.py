"""The service files of docs/federation.md, as far as this machine can check them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_units_of_the_document_are_ones(repository: Path, tmp_path: Path) -> None:
    text = (repository / "docs/federation.md").read_text(encoding="utf-8")
    found = re.findall(r"^# (\S+/)(umbel-\S+)\n(.*?)(?=^# \S+/umbel-|^```)", text, re.MULTILINE | re.DOTALL)
    units = {name: body for _, name, body in found}
    assert set(units) == {"umbel-coordinator.service", "umbel-join.service", "umbel-join.timer"}
    for name, body in units.items():
        # What starts must be there to be verified; everything else stands as it is in the document.
        started = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", body, flags=re.MULTILINE)
        (tmp_path / name).write_text(started)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / name) for name in units)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in done.stderr.splitlines() if str(tmp_path) in line or "umbel-" in line] == []
    assert done.returncode == 0, done.stderr
