"""Whether the machine is on wall power, as Linux tells; elsewhere it is not known."""

from __future__ import annotations

from pathlib import Path

SUPPLIES = Path("/sys/class/power_supply")
_BATTERIES = ("Battery", "UPS")


def wall_power(supplies: Path = SUPPLIES) -> bool | None:
    """Says whether the machine is on wall power; one without a battery is. None: it is not known.

    Args:
        supplies: The folder in which Linux describes each supply.
    """
    try:
        found = [folder for folder in supplies.iterdir() if _said(folder, "scope") != "Device"]  # a mouse
        told = [(_said(folder, "type"), _said(folder, "online")) for folder in found]
    except OSError:
        return None
    if any(online not in ("", "0") for kind, online in told if kind not in ("", *_BATTERIES)):
        return True
    kinds = {kind for kind, _ in told}
    return None if "" in kinds else kinds.isdisjoint(_BATTERIES)


def _said(folder: Path, name: str) -> str:
    """Returns what a supply says; nothing if it has no such file."""
    try:
        return (folder / name).read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""
