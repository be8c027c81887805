"""The size of a device's environment: made by pip, used once, and counted."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import umbel
from umbel.simulations.bench.footprint import LIMIT_BYTES
from umbel.simulations.bench.processes import environment, run_once
from umbel.simulations.bench.releases import ONBOARDED
from umbel.simulations.bench.rival_env import PEFT, checkout, new_environment, pip_install
from umbel.simulations.bench.rows import Row, Sample
from umbel.simulations.bench.sides import Sides
from umbel.simulations.bench.texts import texts_of

_RIVAL = "torch, transformers and peft, as shipped"
_FOOTPRINT = Path(__file__).parent / "footprint.py"


def size(sides: Sides, encoder: str) -> list[Row]:
    """Bytes of what the device extra brings, as it is after its owner has used it once."""
    place = sides.folder / "device-env"
    python = place / "bin" / "python"
    sides.on_phase("make a device's environment")
    new_environment(place)
    root = checkout()
    what = f"umbel[device]=={umbel.__version__}" if root is None else f"{root}[device]"
    pip_install(python, [what], "--no-compile")
    shipped, _ = _counted(python)
    _use(sides, python, encoder)
    _, whole = _counted(python)
    theirs = None
    if sides.rival is not None:
        told = json.loads(_printed([str(sides.rival), str(_FOOTPRINT), *PEFT.names]))
        theirs = Sample((float(sum(row[1] for row in told)),))
    row: dict[str, Any] = {"encoder": "", "threads": 0, "unit": "bytes", "sense": "share"}
    used = "as shipped, and the bytecode that using it once leaves"
    return [
        Row(part="device environment", setting=used, ours=Sample((float(whole),)),
            theirs=Sample((float(LIMIT_BYTES),)), against="the limit of 200 MB", bound=1.0, **row),
        Row(part="device environment", setting="as shipped, without bytecode", ours=Sample((float(shipped),)),
            theirs=theirs, against=_RIVAL if theirs else "", **row),
    ]  # fmt: skip


def _counted(python: Path) -> tuple[int, int]:
    """Returns bytes as shipped, and with bytecode."""
    told = json.loads(_printed([str(python), "-m", "umbel.simulations.bench.footprint"]))
    return sum(row[1] for row in told), sum(row[1] + row[2] for row in told)


def _printed(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, env=_plain()).stdout


def _plain() -> dict[str, str]:
    """Returns an environment in which that Python's own packages are found, not this one's."""
    return {name: value for name, value in environment(1).items() if name != "PYTHONPATH"}


def _use(sides: Sides, python: Path, encoder: str) -> None:
    """Does what an owner does, so that Python keeps the bytecode of all that it takes."""
    release, home = sides.release(encoder, ONBOARDED), sides.folder / "scratch" / "first-home"
    shutil.rmtree(home, ignore_errors=True)
    texts = texts_of(release, 4, 8)
    for words in (
        ("enroll", "--release", str(release.folder)),
        *(
            ("add", "--text", text, "--label", label)
            for text, label in zip(texts, ("no", "yes") * 2, strict=True)
        ),
        ("onboard", "--explain"),
        ("learn",),
        ("predict", texts[0]),
        ("status",),
        ("log",),
        ("list",),
    ):
        run_once([str(python), "-m", "umbel", "device", *words, "--home", str(home)], _plain())
