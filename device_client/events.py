"""What a device's log says, and when."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def event(what: str, **told: Any) -> dict[str, Any]:
    """Returns what the log says of something that happens now."""
    return {"at": now(), "what": what, **told}


def now() -> str:
    """Returns the time in UTC, ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
