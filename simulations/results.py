"""The result of one experiment: what is measured, in one typed value that goes to JSON and back without loss.

Measured floats are rounded to 6 digits when the value is made, so that memory and file hold the same numbers.
The configuration is kept as it was given. Keys by k, the count of a new person's own examples, are strings.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, final

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from umbel.device_client.engine import ONNXRUNTIME
from umbel.shared.errors import UmbelError
from umbel.shared.files import atomic_write

SCHEMA: Literal["umbel.result/1"] = "umbel.result/1"
DIGITS = 6
Quantile = Literal["0.1", "0.25", "0.5", "0.75", "0.9"]
QUANTILES: tuple[Quantile, ...] = ("0.1", "0.25", "0.5", "0.75", "0.9")

_SHOWN_CHARACTERS = 40


@final
class ResultError(UmbelError):
    """A result cannot be read or made."""


def _rounded(value: float) -> float:
    return round(value, DIGITS) + 0.0  # + 0.0 turns -0.0 into 0.0


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"the low end is above the high end: {interval[0]} > {interval[1]}")
    return interval


Number = Annotated[float, AfterValidator(_rounded)]
Share = Annotated[float, Field(ge=0.0, le=1.0), AfterValidator(_rounded)]
Difference = Annotated[float, Field(ge=-1.0, le=1.0), AfterValidator(_rounded)]
Seconds = Annotated[float, Field(ge=0.0), AfterValidator(_rounded)]
Count = Annotated[int, Field(ge=0)]
Interval = Annotated[tuple[Difference, Difference], AfterValidator(_ordered)]
K = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]*)$")]

_config = ConfigDict(extra="forbid", allow_inf_nan=False)


@final
@dataclass(frozen=True, slots=True, kw_only=True, config=_config)
class Data:
    """The examples, and how many people are seen in training, unseen, or skipped for too few examples."""

    name: str
    users_seen: Count
    users_unseen: Count
    users_skipped: Count
    examples: Count
    labels: Count


@final
@dataclass(frozen=True, slots=True, kw_only=True, config=_config)
class Backbone:
    """The language model underneath, and the hash of its weights."""

    name: str
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@final
@dataclass(frozen=True, slots=True, kw_only=True, config=_config)
class Round:
    """One federated round. Bytes are those of all its clients together.

    Refused are devices whose answer broke the contract: they are among the failures, and then on probation.
    Epsilon is what this round and all before it have cost; the clip is told where it follows a quantile.
    """

    round: Count
    clients: Count
    failures: Count
    seconds: Seconds
    bytes_up: Count
    bytes_down: Count
    seen_accuracy: Share | None
    refused: Count = 0
    epsilon: Annotated[float, Field(ge=0.0), AfterValidator(_rounded)] | None = None
    clip: Number | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True, config=_config)
class Seen:
    """Held-out examples of the people seen in training: mean accuracy over users."""

    users: Count
    generic_accuracy: Share
    personal_accuracy: Share


@final
@dataclass(frozen=True, slots=True, kw_only=True, config=_config)
class Unseen:
    """People the model had never met, by k: the count of their own examples that their devices learned from.

    Attributes:
        users: How many people.
        generic_accuracy: Mean over users, without a profile.
        bias_accuracy: The generic model with a private bias per label, fitted on the same k examples.
        personal_accuracy: With the profile learned from the k examples.
        intervals: 95 % paired bootstrap over users of personal minus generic.
        bias_intervals: The same of personal minus bias.
        bayes_accuracy: What the best possible personal answers reach; known in generated data only.
        generic_bayes_accuracy: What the best possible answers reach that are the same for everyone.
        share_of_possible_gain: (personal - generic) / (bayes - generic); no k where nothing can be gained.
        gain_quantiles: Over users, of the gain: a user's personal minus generic accuracy.
        worst_decile: Mean gain of the worst tenth of users.
        gains: Every user's gain, sorted, so that no user can be told from it by place.
        harmed_share: Share of users whose gain is below zero.
    """

    users: Annotated[int, Field(ge=1)]
    generic_accuracy: Mapping[K, Share]
    bias_accuracy: Mapping[K, Share]
    personal_accuracy: Mapping[K, Share]
    intervals: Mapping[K, Interval]
    bias_intervals: Mapping[K, Interval]
    bayes_accuracy: Share | None
    generic_bayes_accuracy: Share | None
    share_of_possible_gain: Mapping[K, Number] | None
    gain_quantiles: Mapping[K, Mapping[Quantile, Difference]]
    worst_decile: Mapping[K, Difference]
    gains: Mapping[K, tuple[Difference, ...]]
    harmed_share: Mapping[K, Share]

    @property
    def ks(self) -> tuple[str, ...]:
        """Every k, smallest first."""
        return tuple(sorted(self.personal_accuracy, key=int))

    @model_validator(mode="after")
    def _check(self) -> "Unseen":
        if problems := [*self._key_problems(), *self._gain_problems()]:
            raise ValueError("; ".join(problems))
        return self

    def _key_problems(self) -> list[str]:
        wanted = set(self.personal_accuracy)
        by_k: dict[str, Mapping[str, Any]] = {
            "generic_accuracy": self.generic_accuracy,
            "bias_accuracy": self.bias_accuracy,
            "intervals": self.intervals,
            "bias_intervals": self.bias_intervals,
            "gain_quantiles": self.gain_quantiles,
            "worst_decile": self.worst_decile,
            "gains": self.gains,
            "harmed_share": self.harmed_share,
        }
        problems = [
            f"{name} has k = {_listed(keys)}, personal_accuracy has {_listed(wanted)}"
            for name, keys in by_k.items()
            if set(keys) != wanted
        ]
        problems += [] if wanted else ["personal_accuracy is empty: at least one k is needed"]
        if extra := set(self.share_of_possible_gain or {}) - wanted:
            problems.append(
                f"share_of_possible_gain has k = {_listed(extra)}, which personal_accuracy has not"
            )
        problems += [
            f"gain_quantiles at k = {k} has {', '.join(row) or 'none'}, needs {', '.join(QUANTILES)}"
            for k, row in self.gain_quantiles.items()
            if set(row) != set(QUANTILES)
        ]
        return problems

    def _gain_problems(self) -> list[str]:
        counts = [
            f"gains at k = {k} holds {len(row)} users, not {self.users}"
            for k, row in self.gains.items()
            if len(row) != self.users
        ]
        return counts + [
            f"gains at k = {k} are not sorted" for k, row in self.gains.items() if list(row) != sorted(row)
        ]


def _listed(keys: Mapping[str, Any] | set[str]) -> str:
    return ", ".join(sorted(keys, key=int)) or "none"


@final
@dataclass(frozen=True, slots=True, kw_only=True, config=_config)
class CurvePoint:
    """One step of training; the held-out accuracy of seen users where it was measured."""

    step: Count
    loss: Number
    heldout_accuracy: Share | None


@final
@dataclass(frozen=True, slots=True, kw_only=True, config=_config)
class Training:
    """The coordinator's training: how long, how far, and which step was kept."""

    steps: Count
    epochs: Annotated[float, Field(ge=0.0), AfterValidator(_rounded)]
    best_step: Count
    train_examples: Count
    curve: tuple[CurvePoint, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True, config=_config)
class Machine:
    """Where it ran. Nothing here changes the numbers, only the seconds."""

    cpus: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    gpu: str | None
    python: str
    versions: Mapping[str, str]


@final
@dataclass(frozen=True, slots=True, kw_only=True, config=_config)
class Result:
    """Everything measured in one experiment.

    Attributes:
        experiment: The experiment's name.
        seed: The seed that all randomness came from.
        engine: What ran the rounds.
        compute: What ran the graphs of devices in them; earlier versions did not say it.
        methods: The personalization methods that were on.
        profile_bytes: Size of one person's profile.
        release: Id of the evaluated release, in hex.
        rounds: The federated rounds, in order; empty if there were none.
        seen: None where no seen users were evaluated.
        training: None where a finished release was evaluated.
        seconds: Wall-clock by phase, in the order in which the phases ran.
        config: The resolved configuration, kept exactly.
    """

    schema: Literal["umbel.result/1"] = SCHEMA
    experiment: Annotated[str, StringConstraints(min_length=1)]
    seed: int
    engine: str
    compute: str = ONNXRUNTIME
    data: Data
    backbone: Backbone
    methods: tuple[str, ...]
    profile_bytes: Count
    release: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]
    rounds: tuple[Round, ...]
    seen: Seen | None
    unseen: Unseen
    training: Training | None
    seconds: Mapping[str, Seconds]
    machine: Machine
    config: Mapping[str, JsonValue]


_adapter: TypeAdapter[Result] = TypeAdapter(Result)


def write_result(path: Path, result: Result) -> None:
    """Writes a result as JSON, whole or not at all; equal results give equal bytes.

    Raises:
        OSError: The folder cannot be written; an old file is then untouched.
    """
    atomic_write(path, (rendered(result) + "\n").encode())


def rendered(result: Result) -> str:
    """Returns a result as JSON text; equal results give equal text."""
    return _rendered(_adapter.dump_python(result, mode="json"), "")


def read_result(path: Path) -> Result:
    """Reads and checks a result.

    Raises:
        ResultError: The file is missing, is not JSON, or breaks the schema; every problem is listed.
    """
    try:
        return _adapter.validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        problem = f"{error.strerror or error}"
        raise ResultError(f"Cannot read the result {path}", [problem], "Check the path.") from None
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors()]
        hint = f"This version of umbel reads {SCHEMA}; run the simulation again to make a new result."
        raise ResultError(f"{path} is not a result of umbel", problems, hint) from None


def without_times(result: Result) -> dict[str, Any]:
    """Returns the result as a dict less what may differ between two runs of one seed: times and machine."""
    kept = asdict(result)
    del kept["seconds"], kept["machine"]
    for row in kept["rounds"]:
        del row["seconds"]
    return kept


def _problem(detail: ErrorDetails) -> str:
    place = ".".join(str(part) for part in detail["loc"]) or "file"
    message = re.sub(r"^Value error, ", "", detail["msg"])
    found = detail["input"]
    if detail["type"] in ("json_invalid", "value_error") or isinstance(found, dict | list | tuple):
        return f"{place}: {message}"
    shown = repr(found)
    shown = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
    return f"{place}: {message}, found {shown}"


def _rendered(value: JsonValue, indent: str) -> str:
    """JSON with one key a line and plain lists on one line: short, and pleasant to compare by eye."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        rows = [f"{inner}{json.dumps(key)}: {_rendered(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(inner + _rendered(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
