"""Checks of values that someone else gave; each returns problems as lines, so that all are told at once."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_SHOWN_CHARACTERS = 40


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


def shown(value: object) -> str:
    """Returns a value for an error text, cut short: a peer may have chosen it, and its length."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def has_controls(text: str) -> bool:
    r"""Says whether a text holds characters that steer a terminal or end a line, which no name needs.

    Example:
        >>> has_controls("likes\n"), has_controls("\x1b[31mlikes"), has_controls("mag ich, sehr")
        (True, True, False)
    """
    return any(_is_control(character) for character in text)


def tamed(text: str) -> str:
    r"""Returns a text as it can be shown in one line: what steers a terminal or ends a line is replaced.

    Example:
        >>> tamed("two\nlines")
        'two\ufffdlines'
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
    return unicodedata.category(character) in ("Cc", "Zl", "Zp")
