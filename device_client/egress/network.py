"""Whether the network costs by volume, as NetworkManager tells over D-Bus; elsewhere it is not known."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

BUSCTL = (
    "busctl", "--system", "get-property", "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager", "Metered",
)  # fmt: skip
"""Prints NetworkManager's NMMetered as, for instance, "u 4"."""

_SECONDS = 2.0
_METERED = {"u 1": True, "u 2": False, "u 3": True, "u 4": False}  # yes, no, it guesses yes, it guesses no


def metered(command: Sequence[str] = BUSCTL) -> bool | None:
    """Says whether the network costs by volume. None: it is not known.

    Args:
        command: What asks; it is given 2 seconds.
    """
    try:
        run = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return _METERED.get(run.stdout.decode("ascii", "replace").strip()) if run.returncode == 0 else None
