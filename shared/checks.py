"""Checks of values that someone else gave; each returns problems as lines, so that all are told at once."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, final

from umbel.shared.errors import ConfigError

_SHOWN_CHARACTERS = 40
_TURNING = frozenset(
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # turn the order of what is shown
_HEX = frozenset("0123456789abcdef")


@final
class NestingError(ValueError):
    """A JSON text is nested too deeply to be read."""


def parsed_json(
    text: str | bytes, object_pairs_hook: Callable[[list[tuple[str, object]]], object] | None = None
) -> Any:
    """Returns what a JSON text holds; numbers may be NaN, infinite or of thousands of digits.

    Args:
        text: The text, or its bytes in UTF-8.
        object_pairs_hook: As in `json.loads`.

    Raises:
        ValueError: It cannot be read; where it is nested too deeply, a NestingError.

    Example:
        >>> parsed_json("[" * 100_000)
        Traceback (most recent call last):
        umbel.shared.checks.NestingError: nested too deeply
    """
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise NestingError("nested too deeply") from None


def count_problems(name: str, value: object, low: int, high: int) -> list[str]:
    """Returns no line if `value` is an integer from `low` to `high`, else one.

    Example:
        >>> count_problems("rounds", True, 1, 9)
        ['rounds is True, expected an integer from 1 to 9']
    """
    right = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    return [] if right else [f"{name} is {shown(value)}, expected an integer from {low} to {high}"]


def number_problems(name: str, value: object, low: float, high: float) -> list[str]:
    """Returns no line if `value` is a number from `low` to `high`, else one; NaN is none.

    Example:
        >>> number_problems("rate", float("nan"), 0.0, 1.0)
        ['rate is nan, expected a number from 0 to 1']
    """
    right = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    return [] if right else [f"{name} is {shown(value)}, expected a number from {low:g} to {high:g}"]


def refuse_odd(problems: Sequence[str]) -> None:
    """Refuses what a command line gave, where there are problems with it.

    Raises:
        ConfigError: There are some.
    """
    if problems:
        raise ConfigError("the command cannot be run so", problems)


def key_problems(row: Mapping[str, object], names: Collection[str]) -> list[str]:
    """Returns a line for each key of an object that is not one of `names`, then for each that is missing.

    Example:
        >>> key_problems({"k": 1, "seeds": 2}, {"k", "seed"})
        ["unknown key 'seeds'", "missing key 'seed'"]
    """
    unknown, missing = sorted(set(row) - set(names)), sorted(set(names) - set(row))
    return [f"unknown key '{shown(name)}'" for name in unknown] + [
        f"missing key '{name}'" for name in missing
    ]


def is_sha256(value: object) -> bool:
    """Says whether a value has the form of a sha256: 64 lower-case hex digits.

    Example:
        >>> is_sha256("ab" * 32), is_sha256("AB" * 32)
        (True, False)
    """
    return isinstance(value, str) and len(value) == 64 and set(value) <= _HEX


def shown(value: object) -> str:
    r"""Returns a value for an error text, cut short and tamed: a peer may have chosen it, and its length.

    Example:
        >>> shown("\x1b[31mred"), shown("a" * 50)
        ('\ufffd[31mred', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...')
    """
    text = value if isinstance(value, str) else repr(value)
    return tamed(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")


def has_controls(text: str) -> bool:
    r"""Says whether a text holds characters that steer a terminal or end a line, which no name needs.

    Example:
        >>> has_controls("likes\n"), has_controls("\x1b[31mlikes"), has_controls("mag ich, sehr")
        (True, True, False)
    """
    if text.isprintable():  # as almost every name is
        return False
    return any(_is_control(character) for character in text)


def tamed(text: str) -> str:
    r"""Returns a text as it can be shown in one line: what steers a terminal or ends a line is replaced.

    Example:
        >>> tamed("two\nlines"), tamed("\u202eback")
        ('two\ufffdlines', '\ufffdback')
    """
    return "".join("\ufffd" if _is_control(character) else character for character in text)


def listed(names: Sequence[str]) -> str:
    """Returns names for an error text; of many only the first few.

    Example:
        >>> listed(["yes", "no"]), listed([f"intent {number}" for number in range(150)])
        ('yes, no', '150 names: intent 0, intent 1, intent 2, intent 3, ...')
    """
    return ", ".join(names) if len(names) <= 12 else f"{len(names)} names: {', '.join(names[:4])}, ..."


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Zl", "Zp") or character in _TURNING
