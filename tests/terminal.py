"""`umbel device` as an owner types it."""

import json
from typing import Any

import pytest

from umbel import cli


def umbel(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Runs `umbel device`, and returns its exit code, stdout and stderr."""
    status = cli.main(["device", *map(str, words)])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def told(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """Runs it with --json, and returns what that says."""
    status, out, err = umbel(capsys, *words, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)
