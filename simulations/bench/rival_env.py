"""The rival's environment: torch, transformers and PEFT, made once by pip, with nothing of umbel in it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import umbel
from umbel.shared.files import atomic_write
from umbel.simulations.bench.rows import BenchError

LIBRARIES = ("torch", "transformers", "peft")
_MARKER = "umbel-bench.json"
_VERSIONS = (
    "import json, importlib.metadata as m; "
    f"print(json.dumps({{n: m.version(n) for n in {(*LIBRARIES, 'tokenizers', 'safetensors')!r}}}))"
)
_SAID = 10


def rival_python(folder: Path, given: Path | None, on_phase: Callable[[str], None]) -> Path:
    """Returns the python of the rival's environment, which is made unless one is given or there already.

    Args:
        folder: The work folder.
        given: An environment to use instead; it must have the libraries.
        on_phase: Hears what is done, where it takes long.

    Raises:
        BenchError: pip could not install, or the environment that was given lacks a library.
    """
    place = given or folder / "rival-env"
    python = place / "bin" / "python"
    if given is not None or (place / _MARKER).is_file():
        rival_versions(python)
        return python
    on_phase("make an environment with torch, transformers and peft")
    new_environment(place)
    for names in (
        LIBRARIES[:1],
        LIBRARIES[1:],
    ):  # torch first, pinned: no open range can draw in a CUDA build
        pip_install(python, names)
    atomic_write(place / _MARKER, json.dumps(rival_versions(python)).encode())
    return python


def rival_versions(python: Path) -> dict[str, str]:
    """Returns the versions of the rival's libraries.

    Raises:
        BenchError: There is no such environment, or a library is missing.
    """
    try:
        told = subprocess.run(
            [python, "-c", _VERSIONS], capture_output=True, text=True, check=True, timeout=120
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(
            "the rival's environment cannot be used",
            [f"{python}: {type(error).__name__}"],
            f"It needs {', '.join(LIBRARIES)}. Leave --rival-env out, and one is made.",
        ) from None
    return {str(name): str(version) for name, version in json.loads(told).items()}


def new_environment(place: Path) -> None:
    """Makes an empty environment of this Python."""
    _run([sys.executable, "-m", "venv", "--clear", str(place)])


def pip_install(python: Path, names: Sequence[str], *options: str) -> None:
    """Installs into an environment what was tested, as far as constraints.txt is at hand.

    Raises:
        BenchError: pip could not; its last words are told.
    """
    root = checkout()
    pinned = ["--constraint", str(root / "constraints.txt")] if root is not None else []
    _run([str(python), "-m", "pip", "install", "--quiet", *pinned, *options, *names])


def checkout() -> Path | None:
    """Returns the folder of the repository that this umbel runs from; None if it came as a wheel."""
    root = Path(umbel.__file__).resolve().parents[2]
    whole = (root / "pyproject.toml").is_file() and (root / "constraints.txt").is_file()
    return root if whole else None


def _run(command: Sequence[str]) -> None:
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise BenchError(
            "an environment could not be made",
            (found.stderr or found.stdout).strip().splitlines()[-_SAID:],
            "pip must reach its index; --rival-env names an environment that is there already.",
        )
