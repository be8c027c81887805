"""Checks of values that someone else gave; each returns problems as lines, so that all are told at once."""

from __future__ import annotations

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
