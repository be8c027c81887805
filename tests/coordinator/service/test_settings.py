"""What a file and --set say of rounds is all known, or refused."""

import re
import tomllib
from pathlib import Path

import pytest

from umbel.coordinator.federation.settings import RoundSettings
from umbel.coordinator.service.settings import given_settings
from umbel.shared.errors import ConfigError


def test_unknown_names_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "rounds.toml"
    file.write_text('"rounds=20" = 5\nspeed = 1\n')
    with pytest.raises(ConfigError, match="cannot be used") as error:
        given_settings(file, ["depth=3", "clip"])
    assert list(error.value.problems) == [
        "'clip' is not NAME=VALUE",
        "there is no setting 'rounds=20'",
        "there is no setting 'speed'",
        "there is no setting 'depth'",
    ]


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(OSError, match="Not a plain file"):
        given_settings(Path("/dev/zero"), [])


def test_the_document_names_every_setting_with_its_default(repository: Path) -> None:
    text = (repository / "docs" / "federation.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
    told = {
        name: tomllib.loads(f"value = {value}")["value"]
        for names, values in rows
        for name, value in zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=True)
    }
    assert told == RoundSettings().as_run_config()
