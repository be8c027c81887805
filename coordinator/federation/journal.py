"""What a run of rounds has reached, written after every round, so that a stopped run can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from umbel.coordinator.federation.settings import RoundSettings
from umbel.shared.errors import ConfigError
from umbel.shared.files import atomic_write, sha256_bytes
from umbel.shared.profile import FloatArray

SCHEMA = "umbel.rounds/1"
ROUNDS = "rounds.json"
_VELOCITY = "velocity/"
_HINT = "Give the settings that it was begun with, or another out folder."


@final
@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What one round was.

    Attributes:
        round: From 1.
        clients: Devices whose change was used.
        failures: Tasks, of training or evaluation, that no usable answer came for.
        seconds: Wall-clock.
        bytes_up: Serialized bytes of all answers.
        bytes_down: Serialized bytes of all tasks.
        seen_accuracy: Mean over the evaluated devices of their held-out accuracy; None if none was evaluated.
        notes: What went wrong, one line each; names devices by number only.
    """

    round: int
    clients: int
    failures: int
    seconds: float
    bytes_up: int
    bytes_down: int
    seen_accuracy: float | None
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class RoundsResult:
    """What a run of rounds has reached.

    Attributes:
        rounds: Every finished round, in order.
        trainables: The shared tensors after the last of them.
        velocity: The server's momentum; empty without.
    """

    rounds: list[RoundRecord]
    trainables: dict[str, FloatArray]
    velocity: dict[str, FloatArray] = field(default_factory=dict)


@final
class Journal:
    """The out folder of a run: rounds.json and the safetensors file that it names.

    rounds.json is replaced last and names the tensors by their hash, so that both are of the same round.
    """

    def __init__(self, folder: Path, release_id: str, population: int, settings: RoundSettings):
        self.folder = folder
        identity = {"release": release_id, "population": population, **settings.identity()}
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))

    def read(self) -> RoundsResult | None:
        """Returns what was reached, or None if nothing was.

        Raises:
            ConfigError: The folder holds a run with other settings, or is damaged.
        """
        path = self.folder / ROUNDS
        if not path.is_file():
            return None
        try:
            row = json.loads(path.read_bytes())
            found = dict(row["settings"])
            rounds = [RoundRecord(**{**record, "notes": tuple(record["notes"])}) for record in row["rounds"]]
            name, sha256 = str(row["trainables"]["file"]), row["trainables"]["sha256"]
            right = row["schema"] == SCHEMA
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is not a journal of rounds", [type(error).__name__], _HINT) from None
        if not right:
            raise ConfigError(
                f"{path} is of another version", [f"schema is {row['schema']!r}, expected '{SCHEMA}'"]
            )
        self._refuse_other(path, found)
        tensors = _tensors(self.folder / Path(name).name, sha256)
        velocity = {n.removeprefix(_VELOCITY): v for n, v in tensors.items() if n.startswith(_VELOCITY)}
        trainables = {n: v for n, v in tensors.items() if not n.startswith(_VELOCITY)}
        return RoundsResult(rounds, trainables, velocity)

    def _refuse_other(self, path: Path, found: Mapping[str, Any]) -> None:
        names = sorted(set(found) | set(self._identity))
        differing = [n for n in names if found.get(n) != self._identity.get(n)]
        problems = [f"{n} was {found.get(n)!r}, is now {self._identity.get(n)!r}" for n in differing]
        if problems:
            raise ConfigError(f"{path} belongs to a run with other settings", problems, _HINT)

    def write(self, result: RoundsResult) -> None:
        """Keeps what was reached; the older state stays until the new one is wholly on disk.

        Raises:
            ConfigError: The folder cannot be written.
        """
        from safetensors.numpy import save

        data = save({**result.trainables, **{_VELOCITY + name: v for name, v in result.velocity.items()}})
        sha256 = sha256_bytes(data)
        name = f"trainables-{sha256[:12]}.safetensors"
        row = {
            "schema": SCHEMA,
            "settings": self._identity,
            "rounds": [asdict(record) for record in result.rounds],
            "trainables": {"file": name, "sha256": sha256},
        }
        try:
            atomic_write(self.folder / name, data)
            atomic_write(self.folder / ROUNDS, json.dumps(row, indent=1).encode() + b"\n")
            for old in self.folder.glob("trainables-*.safetensors"):
                if old.name != name:
                    old.unlink(missing_ok=True)
        except OSError as error:
            problem = f"{self.folder}: {error.strerror or type(error).__name__}"
            raise ConfigError(
                "the rounds cannot be kept", [problem], "Choose an out folder that can be written."
            ) from None


def _tensors(path: Path, sha256: str) -> dict[str, FloatArray]:
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError("the rounds cannot be continued", [f"{path}: {error.strerror}"], _HINT) from None
    if sha256_bytes(data) != sha256:
        raise ConfigError(
            "the rounds cannot be continued", [f"{path} is damaged"], "Choose another out folder."
        )
    tensors: dict[str, FloatArray] = load(data)
    return tensors
