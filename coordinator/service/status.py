"""What an operator is told of a coordinator, from its folder alone: it need not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umbel.coordinator.federation.gains import FILE as GAIN
from umbel.coordinator.federation.gains import GainFigures, kept_gain
from umbel.coordinator.federation.journal import ROUNDS as JOURNAL
from umbel.coordinator.federation.journal import kept_rounds
from umbel.coordinator.service.folder import ROUNDS, Folder
from umbel.coordinator.service.roster import Roster, name_of

_SHOWN = 20


def status_of(path: Path) -> dict[str, Any]:
    """Returns who may take part, what rounds have reached, and until when certificates hold.

    Raises:
        ConfigError: There is no coordinator, or its files are damaged.
    """
    folder = Folder.read(path)
    with Roster.open(folder.roster) as roster:
        devices, codes = roster.devices(), roster.codes()
    kept = [own for name in (JOURNAL, GAIN) for own in (path / ROUNDS).glob(f"*/{name}")]
    runs = list(dict.fromkeys(own.parent for own in sorted(kept, key=lambda own: own.stat().st_mtime)))
    told = [{"release": own.name, **kept_rounds(own), "gain": kept_gain(own)} for own in runs]
    return {
        "folder": str(path),
        "url": folder.address.url,
        "expires": folder.expiry(),
        "codes": codes,
        "devices": [
            {
                "name": name_of(own.key),
                "number": own.number,
                "joined": own.joined,
                "seen": own.seen,
                "barred": own.barred,
            }
            for own in devices
        ],
        "runs": told,
        "privacy": _together([run["privacy"] for run in told if run["rounds"]]),
    }


def _together(spent: Sequence[Mapping[str, float] | None]) -> dict[str, float | None] | None:
    """Returns what several releases' rounds cost a device that took part in all; None where there is no sum.

    Each release has a budget of its own; epsilons and deltas add up. Without noise in one there is no bound.
    """
    known = [own for own in spent if own is not None]
    if len(spent) < 2 or not known:
        return None
    bound = len(known) == len(spent)
    return {name: sum(own[name] for own in known) if bound else None for name in ("epsilon", "delta")}


def words_of(found: dict[str, Any]) -> str:
    """Returns it in words."""
    devices, codes = found["devices"], found["codes"]
    lines = [
        f"Devices reach this coordinator at {found['url']}; its certificate is good until "
        f"{found['expires']['server'][:10]}.",
        f"{len(devices)} devices joined; {codes['open']} codes are open, {codes['expired']} have expired.",
    ]
    for device in devices[:_SHOWN]:
        seen = f"last heard of {device['seen']}" if device["seen"] else "not heard of since"
        barred = ", shut out" if device["barred"] else ""
        number = "" if device["number"] is None else f", number {device['number']}"
        lines.append(f"  {device['name']}  joined {device['joined'][:10]}, {seen}{number}{barred}")
    if len(devices) > _SHOWN:
        lines.append(f"  ... and {len(devices) - _SHOWN} more: --json shows all")
    runs = [line for run in found["runs"] for line in _run_words(run)]
    return "\n".join([*lines, *(runs or ["No round is finished yet."]), *_together_words(found["privacy"])])


def _together_words(spent: Mapping[str, float | None] | None) -> list[str]:
    if spent is None:
        return []
    if spent["epsilon"] is None:
        return ["Together: no bound on what a device's part tells, since rounds of one release had no noise."]
    cost = f"epsilon {spent['epsilon']:.3f} at delta {spent['delta']:g}"
    return [f"Together: {cost} for a device that took part in all; each release has a budget of its own."]


def _run_words(run: dict[str, Any]) -> list[str]:
    lines = [f"Release {run['release']}: {run['rounds']} rounds, {run['changes']} changes used."]
    privacy, gain = run["privacy"], run["gain"]
    if privacy is not None:
        budget = f"of {privacy['epsilon_budget']:g} is" if privacy["epsilon_budget"] else "(no budget) is"
        lines.append(
            f"  Privacy: epsilon {privacy['epsilon']:.3f} {budget} spent by these rounds, at delta "
            f"{privacy['delta']:g}; the noise multiplier is {privacy['noise_multiplier']:g}."
        )
    return lines if gain is None else [*lines, f"  {GainFigures(**gain).words()}"]
