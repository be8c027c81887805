"""A rival's environment: its libraries, made once by pip, with nothing of umbel in it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import umbel
from umbel.shared.files import atomic_write
from umbel.simulations.bench.rows import BenchError

_MARKER = "umbel-bench.json"
_VERSIONS = (
    "import json, sys, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
)
_BESIDE = ("tokenizers", "safetensors")  # they come with transformers
_SAID = 10


@final
@dataclass(frozen=True, slots=True)
class Libraries:
    """What a rival is made of.

    Attributes:
        pinned: Installed in this order, each as it was tested with umbel; torch comes first, pinned, so that
            no open range can draw in a CUDA build.
        free: Installed afterwards as they want: they need other versions of umbel's libraries.
        folder: The environment's name in the work folder.
    """

    pinned: tuple[str, ...]
    free: tuple[str, ...] = ()
    folder: str = "rival-env"

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.pinned, *self.free)


PEFT = Libraries(("torch", "transformers", "peft"))
PFL = Libraries(("torch", "transformers"), ("pfl==0.6.0",), "pfl-env")
"""pfl-research; it needs dp-accounting below 0.6, and umbel 0.6 or newer."""


def rival_python(
    folder: Path, given: Path | None, on_phase: Callable[[str], None], libraries: Libraries = PEFT
) -> Path:
    """Returns the python of a rival's environment, which is made unless one is given or there already.

    Args:
        folder: The work folder.
        given: An environment to use instead; it must have the libraries.
        on_phase: Hears what is done, where it takes long.
        libraries: What it must have.

    Raises:
        BenchError: pip could not install, or the environment that was given lacks a library.
    """
    place = given or folder / libraries.folder
    python = place / "bin" / "python"
    if given is not None or (place / _MARKER).is_file():
        rival_versions(python, libraries)
        return python
    on_phase(f"make an environment with {', '.join(libraries.names)}")
    new_environment(place)
    for names in (libraries.pinned[:1], libraries.pinned[1:]):
        pip_install(python, names)
    if libraries.free:
        pip_install(python, libraries.free, pinned=False)
    atomic_write(place / _MARKER, json.dumps(rival_versions(python, libraries)).encode())
    return python


def rival_versions(python: Path, libraries: Libraries = PEFT) -> dict[str, str]:
    """Returns the versions of a rival's libraries.

    Raises:
        BenchError: There is no such environment, or a library is missing.
    """
    names = [name.partition("=")[0] for name in libraries.names]
    try:
        told = subprocess.run(
            [python, "-c", _VERSIONS, *names, *_BESIDE],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(
            "the rival's environment cannot be used",
            [f"{python}: {type(error).__name__}"],
            f"It needs {', '.join(libraries.names)}. Leave --rival-env out, and one is made.",
        ) from None
    return {str(name): str(version) for name, version in json.loads(told).items()}


def new_environment(place: Path) -> None:
    """Makes an empty environment of this Python."""
    _run([sys.executable, "-m", "venv", "--clear", str(place)])


def pip_install(python: Path, names: Sequence[str], *options: str, pinned: bool = True) -> None:
    """Installs into an environment what was tested, as far as constraints.txt is at hand.

    Args:
        python: The environment's.
        names: What is wanted.
        *options: More words for pip.
        pinned: Whether constraints.txt counts.

    Raises:
        BenchError: pip could not; its last words are told.
    """
    root = checkout() if pinned else None
    wanted = ["--constraint", str(root / "constraints.txt")] if root is not None else []
    _run([str(python), "-m", "pip", "install", "--quiet", *wanted, *options, *names])


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
