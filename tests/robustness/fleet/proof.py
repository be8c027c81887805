"""The proof: a broken run and its reference, the bytes that left, and what came after."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tests.builders import tiny_release
from tests.federation import Federation
from tests.robustness.canaries import forms_of_text
from tests.robustness.fleet import reference
from tests.robustness.fleet.after import spread
from tests.robustness.fleet.course import Course
from tests.robustness.fleet.liar import Liar
from tests.robustness.fleet.needles import found_in
from tests.robustness.fleet.reference import Secrets
from tests.robustness.fleet.scene import Scene

from umbel.coordinator.federation.journal import kept_trainables
from umbel.shared.examples import Example
from umbel.shared.release import Release
from umbel.shared.rng import generator

_ALIKE = ("round", "clients", "failures", "notes", "refused", "epsilon", "clip", "within")
_METHODS: dict[str, Any] = {
    "plora": {"rank": 4, "alpha": 8.0, "user_size": 24},
    "xpeft": {"adapters": 128, "width": 8, "kept": 40, "dead_zone": 0.0},
}
_TOLD = (*_ALIKE, "seconds", "bytes_up")
_CONTROLS = 3
_TOLERANCE = 1e-6
_LIKED, _DISLIKED = ("good", "tender", "like"), ("bad", "slow", "not")
_OTHERS = ("film", "book", "a", "the", "is", "very", "we", "they")


def masked_release(folder: Path) -> Release:
    """Publishes a tiny release whose profiles have numbers and masks of bits."""
    return tiny_release(folder, methods=_METHODS)


def canary(number: int) -> str:
    """Returns words that only one owner's texts have.

    Example:
        >>> canary(3)
        'Kanarienvogel 3 sänge um 12 € in Grube 24'
    """
    return f"Kanarienvogel {number} sänge um {9 + number} € in Grube {7 * number + 3}"


def examples_of(number: int) -> list[Example]:
    """Returns what an owner has judged, as most would; a canary is in each text."""
    rng, rows = generator(0, 0, str(number), "fleet examples"), []
    for label, words in (("yes", _LIKED), ("no", _DISLIKED)) * 4:
        chosen = [*rng.choice(words, 2), *rng.choice(_OTHERS, 2)]
        rows.append(Example("owner", f"{' '.join(rng.permutation(chosen))} {canary(number)}", label))
    return rows


def prove(path: Path, release: Release, scene: Scene, updates: int) -> dict[str, Any]:
    """Plays a scene and compares.

    Args:
        path: An empty folder.
        release: With masks.
        scene: What happens.
        updates: How many devices look for the new release in the end.

    Returns:
        What was found; "problems" is empty if all is as it must be.
    """
    began = time.monotonic()
    own = Federation(path / "broken", release, scene.devices, examples_of, scene.least)
    try:
        course = Course(own, scene, path / "sent")
        course.run()
        records, took = course.records(), time.monotonic() - began
        failed = reference.failures(records)
        again, secrets = reference.run(
            own, scene.settings, failed, {scene.liar: Liar(scene.lies)}, path / "reference"
        )
        found: dict[str, Any] = {
            "scene": asdict(scene) | {"blows": course.told},
            "seconds": round(took, 1),
            "rounds": [
                {name: record[name] for name in (*_ALIKE, "seconds", "bytes_up")} for record in records
            ],
            "result": _compared(own, records, again),
            "wire": {"processes": course.processes(), **_searched(path / "sent", secrets, scene.devices)},
            "control": _control(path, release),
            "spread": asdict(spread(own, updates)),
        }
    finally:
        own.close()
    return found | {"problems": _problems(scene, found)}


def _compared(own: Federation, records: Sequence[Mapping[str, Any]], again: Any) -> dict[str, Any]:
    reached = kept_trainables(own.folder.rounds(own.release.release_id), own.release.release_id)[1]
    gaps = [float(np.abs(value - again.trainables[name]).max()) for name, value in reached.items()]
    other = [
        f"round {two.round}: {name} is {_plain(one[name])!r}, not {_plain(getattr(two, name))!r}"
        for one, two in zip(records, again.rounds, strict=True)
        for name in _ALIKE
        if _plain(one[name]) != _plain(getattr(two, name))
    ]
    return {
        "largest difference": max(gaps),
        "to the bit": all(np.array_equal(v, again.trainables[name]) for name, v in reached.items()),
        "other records": other,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _searched(sent: Path, secrets: Secrets, devices: int) -> dict[str, Any]:
    """Looks for all that devices keep to themselves in all that left them."""
    texts = {form for number in range(devices) for form in _forms(number)}
    sets = {"texts": texts, **{name: getattr(secrets, name) for name in Secrets.__slots__}}
    data = b"\0".join(file.read_bytes() for file in sorted(sent.iterdir()))
    return {
        "bytes": len(data),
        "searched": {name: len(pieces) for name, pieces in sets.items()},
        "found": {name: len(found_in(data, pieces)) for name, pieces in sets.items()},
    }


def _forms(number: int) -> Iterable[bytes]:
    words = [canary(number), *(example.text for example in examples_of(number))]
    return [form for text in words for form in forms_of_text(text).values()]


def _control(path: Path, release: Release) -> dict[str, Any]:
    """Runs one round without secure sums: the same search must find what each device changed."""
    scene = Scene(0, _CONTROLS, 1, _CONTROLS, 60.0, -1, {}, (), secure=False)
    own = Federation(path / "open", release, scene.devices, examples_of)
    try:
        Course(own, scene, path / "open sent").run()
        _, secrets = reference.run(own, scene.settings, {}, {}, path / "open reference")
        return _searched(path / "open sent", secrets, scene.devices)
    finally:
        own.close()


def _problems(scene: Scene, found: Mapping[str, Any]) -> list[str]:
    """Returns what is not as it must be."""
    result, wire, control = found["result"], found["wire"], found["control"]
    problems = [f"{blow['kind']} came after round {blow['round']}"
                for blow in found["scene"]["blows"] if not blow["in_round"]]  # fmt: skip
    if len(found["rounds"]) != scene.rounds:
        problems.append(f"{len(found['rounds'])} of {scene.rounds} rounds are done")
    if not result["largest difference"] <= _TOLERANCE:
        problems.append("the result is not that of the run without crashes")
    problems += result["other records"]
    problems += [f"{count} pieces of {name} left a device" for name, count in wire["found"].items() if count]
    if wire["bytes"] < sum(record["bytes_up"] for record in found["rounds"]):
        problems.append("less was seen to leave than came")
    problems += [f"no {name} were searched for" for name, count in wire["searched"].items() if not count]
    if control["found"]["changes"] < control["searched"]["changes"] / 4 or not control["found"]["changes"]:
        problems.append("the search does not find changes that are sent in the clear")
    if not found["spread"]["migrated"]:
        problems.append("no device adopted the new release")
    return problems
