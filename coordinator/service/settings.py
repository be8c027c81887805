"""The settings of rounds, as an operator gives them: a TOML file, and changes on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from umbel.coordinator.federation.settings import RoundSettings
from umbel.shared.errors import ConfigError
from umbel.shared.files import plain_bytes

_MOST_BYTES = 1 << 20


def given_settings(file: Path | None, changes: Sequence[str]) -> dict[str, Any]:
    """Returns a run config.

    Args:
        file: A TOML file; None for the defaults.
        changes: What is other than in the file, NAME=VALUE each.

    Raises:
        ConfigError: The file is no TOML, or a name is unknown; lists all problems.
        OSError: The file cannot be read.

    Example:
        >>> given_settings(None, ["rounds=3", "local_rate=0.1", "weighting=uniform"])
        {'rounds': 3, 'local_rate': 0.1, 'weighting': 'uniform'}
    """
    given: dict[str, Any] = {}
    problems: list[str] = []
    if file is not None:
        try:
            given = tomllib.loads(plain_bytes(file, _MOST_BYTES).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} is no TOML", [str(error)]) from None
    for change in changes:
        name, sign, value = change.partition("=")
        if not sign:
            problems.append(f"'{change}' is not NAME=VALUE")
            continue
        given[name.strip()] = _value(value.strip())
    known = RoundSettings().as_run_config()
    problems += [f"there is no setting '{name}'" for name in given if name not in known]
    if problems:
        hint = f"Settings: {', '.join(sorted(known))}."
        raise ConfigError("the settings of the rounds cannot be used", problems, hint)
    return given


def _value(text: str) -> Any:
    """Reads a value as TOML does; what is none there is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
