"""What left a device in all, kept beside its log, so that nobody opens the whole log to count it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTHING: Mapping[str, Any] = {"messages": 0, "bytes": 0, "last": None}
"""What it is before anything left: messages, their bytes, and when the last one left."""


def added(total: Mapping[str, Any] | None, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what left in all, an entry of the log later; what was refused did not leave.

    Args:
        total: What left before; None: nothing was entered yet.
        entry: The entry.
    """
    found = NOTHING if total is None else total
    if entry["outcome"] != "sent":
        return found
    return {
        "messages": found["messages"] + 1,
        "bytes": found["bytes"] + entry["bytes"],
        "last": entry["at"],
    }
