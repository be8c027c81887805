"""What a run of rounds has reached, written after every round, so that a stopped run can go on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, final

from umbel.coordinator.federation.settings import RoundSettings
from umbel.shared.checks import count_problems, number_problems, parsed_json, shown
from umbel.shared.errors import ConfigError
from umbel.shared.files import atomic_write, sha256_bytes
from umbel.shared.profile import FloatArray

SCHEMA = "umbel.rounds/2"
ROUNDS = "rounds.json"
BEGUN = "begun.json"
ONNXRUNTIME = "onnxruntime"
"""What runs the graphs of devices, where a run names nothing else."""
_PEOPLE, _CLIENTS = "people", "clients_per_round"
_VELOCITY = "velocity/"
_OPTIONAL = {
    "seen_accuracy": (0.0, 1.0), "epsilon": (0.0, math.inf), "clip": (0.0, 1e9), "within": (-1e9, 1e9),
}  # fmt: skip
_HINT = "Give the settings that it was begun with, or another out folder."
_RESTORE = "Restore it, or choose another out folder."


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
        refused: Numbers of the devices whose answer to a training task broke the contract, sorted.
        epsilon: What this round and all before it have cost; None without noise.
        clip: The clip of the round, where it follows a quantile; else None.
        within: Noised share of the devices whose change was within that clip.
    """

    round: int
    clients: int
    failures: int
    seconds: float
    bytes_up: int
    bytes_down: int
    seen_accuracy: float | None
    notes: tuple[str, ...] = ()
    refused: tuple[int, ...] = ()
    epsilon: float | None = None
    clip: float | None = None
    within: float | None = None

    def line(self) -> str:
        """Returns it in words.

        Example:
            >>> RoundRecord(2, 9, 1, 0.71, 0, 0, None, epsilon=0.2).line()
            'round 2: 9 devices, 1 failed, 0.7 s, epsilon 0.200'
        """
        words = f"round {self.round}: {self.clients} devices"
        words += f", {self.failures} failed" if self.failures else ""
        words += f", {self.seconds:.1f} s"
        words += "" if self.seen_accuracy is None else f", seen accuracy {self.seen_accuracy:.3f}"
        return words + ("" if self.epsilon is None else f", epsilon {self.epsilon:.3f}")


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
@dataclass(frozen=True, slots=True)
class Begun:
    """A round that was begun.

    Attributes:
        round: Its number.
        clients: The numbers of the devices that are to train in it, sorted.
    """

    round: int
    clients: tuple[int, ...]


@final
class Journal:
    """The out folder of a run: rounds.json and the safetensors file that it names.

    rounds.json is replaced last and names the tensors by their hash, so that both are of the same round.
    begun.json says who trains in the round that is going on: if it is interrupted, the same devices are asked
    again, whoever else is there by then.
    """

    def __init__(
        self,
        folder: Path,
        release_id: str,
        population: int,
        settings: RoundSettings,
        *,
        compute: str = ONNXRUNTIME,
        people: str = "",
    ):
        """Opens nothing yet.

        Args:
            folder: Where it lies.
            release_id: Of the release that rounds are of.
            population: How many devices there are.
            settings: Of the rounds.
            compute: What runs the graphs of devices.
            people: What tells simulated people from others; empty where nothing does.
        """
        self.folder = folder
        identity = {"release": release_id, "population": population, "compute": compute, _PEOPLE: people}
        self._identity: dict[str, Any] = json.loads(json.dumps(identity | settings.identity()))

    def read(self) -> RoundsResult | None:
        """Returns what was reached, or None if nothing was.

        Raises:
            ConfigError: The folder holds a run with other settings, or is damaged.
        """
        path = self.folder / ROUNDS
        if not path.is_file():
            return None
        row = _checked(path)
        self._refuse_other(path, row["settings"])
        rounds = [_record(record) for record in row["rounds"]]
        tensors = _tensors(self.folder, row["trainables"]["sha256"])
        velocity = {n.removeprefix(_VELOCITY): v for n, v in tensors.items() if n.startswith(_VELOCITY)}
        trainables = {n: v for n, v in tensors.items() if not n.startswith(_VELOCITY)}
        return RoundsResult(rounds, trainables, velocity)

    def begin(self, begun: Begun) -> None:
        """Keeps who is to train in a round, before anybody is asked.

        Raises:
            ConfigError: The folder cannot be written.
        """
        row = {"schema": SCHEMA, "settings": self._identity, **asdict(begun)}
        self._write(BEGUN, json.dumps(row).encode(), mode=0o600)  # under a budget, the sample is a secret

    def begun(self) -> Begun | None:
        """Returns the round that was begun last, finished or not; None if there is none of this run."""
        try:
            row = parsed_json((self.folder / BEGUN).read_bytes())
            if row["schema"] != SCHEMA or self._other(row["settings"]):
                return None
            return Begun(int(row["round"]), tuple(int(client) for client in row["clients"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # the round is then begun anew, with whoever is there

    def _write(self, name: str, data: bytes, mode: int = 0o644) -> None:
        try:
            atomic_write(self.folder / name, data, mode=mode)
        except OSError as error:
            problem = f"{self.folder}: {error.strerror or type(error).__name__}"
            raise ConfigError(
                "the rounds cannot be kept", [problem], "Choose an out folder that can be written."
            ) from None

    def _refuse_other(self, path: Path, found: Mapping[str, Any]) -> None:
        differing = self._other(found)
        problems = [f"{name} was {was!r}, is now {now!r}" for name, (was, now) in differing.items()]
        if problems:
            hint = f"{_HINT} To begin anew under the same name, move {self.folder} away."
            if "population" in differing:
                hint += " population is how many devices are waited for: --devices of 'coordinator serve'."
            raise ConfigError(f"{path} belongs to a run with other settings", problems, hint)

    def _other(self, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Returns name -> what it was and is now, of the settings that are others.

        Earlier runs did not say what ran the graphs nor who took part, and had a longer word for the clients.
        """
        found, now = {"compute": ONNXRUNTIME, **settings}, self._identity
        if _CLIENTS in found:
            found["clients"] = found.pop(_CLIENTS)
        names = set(found) | set(now)
        names -= set() if found.get(_PEOPLE) and now[_PEOPLE] else {_PEOPLE}
        both = {name: (found.get(name), now.get(name)) for name in sorted(names)}
        return {name: values for name, values in both.items() if values[0] != values[1]}

    def write(self, result: RoundsResult) -> None:
        """Keeps what was reached; the older state stays until the new one is wholly on disk.

        Raises:
            ConfigError: The folder cannot be written.
        """
        from safetensors.numpy import save

        data = save({**result.trainables, **{_VELOCITY + name: v for name, v in result.velocity.items()}})
        sha256 = sha256_bytes(data)
        name = _file(sha256)
        row = {
            "schema": SCHEMA,
            "settings": self._identity,
            "trainables": {"file": name, "sha256": sha256},
        }
        self._write(name, data)
        self._write(ROUNDS, _with_rounds(row, result.rounds).encode())
        for old in self.folder.glob("trainables-*.safetensors"):
            if old.name != name:
                with suppress(OSError):  # it only takes room
                    old.unlink(missing_ok=True)


def _with_rounds(row: Mapping[str, Any], rounds: Sequence[RoundRecord]) -> str:
    """Returns rounds.json, a round per line: made after every round, it must not cost more with each."""
    lines = ",\n".join(_line(record) for record in rounds)
    return json.dumps(row)[:-1] + f', "rounds": [\n{lines}\n]}}\n'


@lru_cache(maxsize=4096)
def _line(record: RoundRecord) -> str:
    return json.dumps(asdict(record))


def kept_trainables(folder: Path, release_id: str) -> tuple[int, dict[str, FloatArray]]:
    """Returns how many rounds an out folder holds, and the shared tensors after them.

    Raises:
        ConfigError: There are none, they are of another release, or damaged.
    """
    path = folder / ROUNDS
    if not path.is_file():
        raise ConfigError(
            f"no rounds of release {release_id[:12]} are in {folder}",
            hint="Name the release that rounds were run with, not the one that they led to.",
        )
    row = _checked(path)
    own = row["settings"].get("release")
    if own != release_id:
        raise ConfigError(f"the rounds in {folder} are of another release", [f"{own}, not {release_id}"])
    tensors = _tensors(folder, row["trainables"]["sha256"])
    values = {name: value for name, value in tensors.items() if not name.startswith(_VELOCITY)}
    return len(row["rounds"]), values


def kept_file(folder: Path) -> Path:
    """Returns the file with the shared tensors after the rounds of an out folder.

    Raises:
        ConfigError: rounds.json is missing or damaged.
    """
    return folder / _file(_checked(folder / ROUNDS)["trainables"]["sha256"])


def kept_rounds(folder: Path) -> dict[str, Any]:
    """Returns what is told of an out folder: rounds, changes used, failures, privacy, and the last round.

    Raises:
        ConfigError: It is damaged, or a copy without the tensors that go with it.
    """
    path = folder / ROUNDS
    row = _checked(path) if path.is_file() else {"rounds": [], "settings": {}}  # none is finished yet
    tensors = folder / _file(row["trainables"]["sha256"]) if "trainables" in row else path
    if row["rounds"] and not tensors.is_file() and row == _checked(path):  # a round may have ended meanwhile
        problem = f"{tensors.name} is missing: if this is a copy, a round ended while it was made"
        raise ConfigError(f"{path} is not whole", [problem], "Copy it again, or restore it.")
    rounds = row["rounds"]
    return {
        "rounds": len(rounds),
        "changes": sum(record["clients"] for record in rounds),
        "failures": sum(record["failures"] for record in rounds),
        "privacy": _privacy(row["settings"], rounds, path),
        "last": rounds[-1] if rounds else None,
    }


def _privacy(
    settings: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], path: Path
) -> dict[str, float] | None:
    """Returns the budget, and the epsilon that all rounds together have cost; None without noise."""
    if not settings.get("noise_multiplier"):
        return None
    try:
        told = {name: float(settings[name]) for name in ("noise_multiplier", "epsilon_budget", "delta")}
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{path} is not a journal of rounds", ["its privacy is missing"], _RESTORE
        ) from None
    return {**told, "epsilon": float(rounds[-1]["epsilon"] or 0.0) if rounds else 0.0}


def _checked(path: Path) -> dict[str, Any]:
    """Reads rounds.json; what `read` and the result take from it is of the right type and within range."""
    try:
        row: dict[str, Any] = parsed_json(path.read_bytes())
        schema = row["schema"]
        problems = _problems(row) if schema == SCHEMA else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a journal of rounds", [type(error).__name__], _RESTORE) from None
    if schema != SCHEMA:
        raise ConfigError(f"{path} is of another version", [f"schema is {shown(schema)}, expected {SCHEMA}"])
    if problems:
        raise ConfigError(f"{path} is not a journal of rounds", problems, _RESTORE)
    return row


def _record(row: Mapping[str, Any]) -> RoundRecord:
    """Returns a record as it was: JSON knows no tuples."""
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
    return RoundRecord(**values)


def _problems(row: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{name} is no {what}"
        for name, kind, what in (("settings", dict, "object"), ("rounds", list, "list"))
        if not isinstance(row[name], kind)
    ]
    tensors = row["trainables"]
    if not re.fullmatch("[0-9a-f]{64}", tensors["sha256"]) or tensors["file"] != _file(tensors["sha256"]):
        problems.append("trainables is not a file named by its hash")
    for number, record in enumerate(row["rounds"], 1):
        problems += [f"round {number}: {problem}" for problem in _record_problems(number, record)]
    return problems


def _record_problems(number: int, record: object) -> list[str]:
    if not isinstance(record, dict) or record.keys() != {entry.name for entry in fields(RoundRecord)}:
        return ["its keys are not those of a round"]
    problems = count_problems("round", record["round"], number, number)
    for name in ("clients", "failures", "bytes_up", "bytes_down"):
        problems += count_problems(name, record[name], 0, 2**63 - 1)
    problems += number_problems("seconds", record["seconds"], 0.0, 1e9)
    for name, (low, high) in _OPTIONAL.items():
        if record[name] is not None:
            problems += number_problems(name, record[name], low, high)
    notes = record["notes"]
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        problems.append("notes is no list of texts")
    refused = record["refused"]
    if not isinstance(refused, list) or any(count_problems("", number, 0, 2**63 - 1) for number in refused):
        problems.append("refused is no list of devices' numbers")
    return problems


def _file(sha256: str) -> str:
    return f"trainables-{sha256[:12]}.safetensors"


def _tensors(folder: Path, sha256: str) -> dict[str, FloatArray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = folder / _file(sha256)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError("the rounds cannot be continued", [f"{path}: {error.strerror}"], _HINT) from None
    try:
        if sha256_bytes(data) != sha256:
            raise ValueError("another hash")
        tensors: dict[str, FloatArray] = load(data)
    except (ValueError, SafetensorError):
        raise ConfigError("the rounds cannot be continued", [f"{path} is damaged"], _RESTORE) from None
    return tensors
