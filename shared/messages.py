"""Round messages: what a coordinator may ask of a device and what a device may answer, checked on both sides.

A message is a few named arrays and a flat config of scalars (`Wire`), whatever carries it. Reading one checks
keys, types, names, shapes and norms; what is not expected is refused, so that nothing can ride along.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeAlias, final

import numpy as np
import numpy.typing as npt

from umbel.shared.checks import count_problems, number_problems, parsed_json, shown
from umbel.shared.errors import MessageError, ReleaseError
from umbel.shared.gain import MOST as MOST_GAIN
from umbel.shared.norms import exceeds
from umbel.shared.npy import npy_array
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Manifest

SCHEMA = "umbel.round/1"
TRAIN, EVALUATE = "train", "evaluate"
GAIN = "query.gain"
NPY = "numpy.ndarray"
"""What Flower calls an array that `numpy.save` has written."""

Scalar: TypeAlias = str | int | float | bool
Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

RATES = ("local_rate", "clip", "profile_dropout", "onboarding_rate")
"""The local settings that are no whole numbers."""

# A sum of squares in another order may differ in its last bits; that is no larger change.
_HINT = "Both sides must run the same umbel and the same release; nothing was changed."


class _HoldsArray(Protocol):
    stype: str
    data: bytes


@final
@dataclass(frozen=True, slots=True)
class Wire:
    """A message as it travels: named arrays and a flat config.

    Attributes:
        arrays: name -> array; left out of `repr`: they may be one device's change.
        config: key -> scalar.
    """

    arrays: Arrays = field(repr=False)
    config: Mapping[str, Scalar]

    @classmethod
    def of(cls, arrays: Mapping[str, _HoldsArray], config: Mapping[str, Any]) -> Wire:
        """Reads the records of a transport, whose arrays are what `numpy.save` writes (`NPY`).

        Raises:
            MessageError: An array cannot be decoded.
        """
        decoded: dict[str, npt.NDArray[Any]] = {}
        problems = []
        for name, array in arrays.items():
            try:
                decoded[name] = _decoded(array)
            except Exception as error:  # numpy's reader fails in many ways, down to Python's tokenizer
                problems.append(f"array '{shown(name)}' cannot be decoded ({type(error).__name__})")
        if problems:
            raise MessageError("a round message is damaged", problems, _HINT)
        return cls(decoded, dict(config))


@final
@dataclass(frozen=True, slots=True)
class LocalSettings:
    """What a device does in a round.

    Attributes:
        local_steps: Minibatch SGD steps on the shared tensors.
        local_rate: Their rate.
        batch_size: Examples per step; fewer where a device has fewer.
        clip: Largest L2 norm of the change that leaves, over all tensors together.
        example_cap: Largest number of examples that a device reports.
        profile_dropout: Chance that an example of a shared step is seen without the profile, so that what
            people without a profile get is trained too (PLoRA's personalised dropout).
        onboarding_steps: Episodes in which the owner plays somebody new, where rounds train onboarding.
        onboarding_rate: The rate of their steps.
        onboarding_learning_steps: Few-shot steps after which every other episode takes its loss; 0: none.
        tell_within: Whether to tell if the change was within the clip before it was clipped.
        recipe: How to learn the profile; the release's own recipe if None.
    """

    local_steps: int = 4
    local_rate: float = 0.05
    batch_size: int = 8
    clip: float = 1.0
    example_cap: int = 32
    profile_dropout: float = 0.2
    onboarding_steps: int = 4
    onboarding_rate: float = 0.05
    onboarding_learning_steps: int = 2
    tell_within: bool = False
    recipe: LearningRecipe | None = None

    def problems(self) -> list[str]:
        """Returns what is out of range, one line each."""
        wrong = [
            *count_problems("local_steps", self.local_steps, 1, 10_000),
            *number_problems("local_rate", self.local_rate, 0.0, 1e3),
            *count_problems("batch_size", self.batch_size, 1, 4096),
            *number_problems("clip", self.clip, 1e-9, 1e9),
            *count_problems("example_cap", self.example_cap, 1, 10**9),
            *number_problems("profile_dropout", self.profile_dropout, 0.0, 1.0),
            *count_problems("onboarding_steps", self.onboarding_steps, 0, 10_000),
            *number_problems("onboarding_rate", self.onboarding_rate, 0.0, 1e3),
            *count_problems("onboarding_learning_steps", self.onboarding_learning_steps, 0, 10_000),
        ]
        return wrong + [f"recipe: {problem}" for problem in (self.recipe.problems() if self.recipe else ())]

    def as_config(self) -> dict[str, Scalar]:
        """Returns the settings as scalars; the recipe as JSON, empty if there is none."""
        config: dict[str, Scalar] = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name != "recipe"
        }
        config |= {name: float(config[name]) for name in RATES}
        return {**config, "recipe": json.dumps(self.recipe.as_json(), sort_keys=True) if self.recipe else ""}


@final
@dataclass(frozen=True, slots=True)
class RoundTask:
    """What is asked of a device in a round.

    Attributes:
        release_id: The release that the round works on.
        round: From 1.
        seed: The run's seed.
        stage: "train" or "evaluate".
        settings: How to train; an evaluation uses its recipe only.
        arrays: The round's values of every trainable shared tensor.
    """

    release_id: str
    round: int
    seed: int
    stage: str
    settings: LocalSettings
    arrays: Mapping[str, FloatArray]

    def check(self, manifest: Manifest) -> None:
        """Raises MessageError with all problems if this is no task for a release."""
        problems = [
            *_release_problems(self.release_id, manifest),
            *count_problems("round", self.round, 1, 10**9),
            *count_problems("seed", self.seed, -(2**63), 2**63 - 1),
            *(
                []
                if self.stage in (TRAIN, EVALUATE)
                else [f"stage is {shown(self.stage)}, expected train or evaluate"]
            ),
            *self.settings.problems(),
            *_array_problems(self.arrays, manifest.trainables),
        ]
        _refuse("the round task cannot be used", problems)

    def recipe(self, manifest: Manifest, examples: int) -> LearningRecipe:
        """Returns how a profile is learned in this round: as the task says, else as the release does.

        Args:
            manifest: The release's.
            examples: How many labelled ones it is learned from.
        """
        return (self.settings.recipe or manifest.recipe).at(examples)

    def wire(self) -> Wire:
        """Returns the task as it travels."""
        config: dict[str, Scalar] = {
            "schema": SCHEMA, "release_id": self.release_id, "round": self.round, "seed": self.seed,
            "stage": self.stage, **self.settings.as_config(),
        }  # fmt: skip
        return Wire(self.arrays, config)


@final
@dataclass(frozen=True, slots=True)
class Contribution:
    """What leaves a device after training: the clipped change of the shared tensors, and two numbers.

    Attributes:
        release_id: The release that it worked on.
        round: The round that it answers.
        change: name -> new value - the round's value, for every trainable; left out of `repr`.
        examples: How many examples it rests on, at most the task's cap.
        seconds: What the work took.
        within: Whether the change was within the clip before it was clipped; None if that was not asked.
    """

    release_id: str
    round: int
    change: Mapping[str, FloatArray] = field(repr=False)
    examples: int
    seconds: float
    within: bool | None = None

    def check(self, manifest: Manifest, task: RoundTask) -> None:
        """Raises MessageError with all problems if this is no answer to a task."""
        problems = [
            *_answer_problems(self.release_id, self.round, self.seconds, task),
            *_release_problems(self.release_id, manifest),
            *count_problems("examples", self.examples, 1, task.settings.example_cap),
            *self._within_problems(task.settings.tell_within),
            *_array_problems(self.change, manifest.trainables),
        ]
        norm = math.inf if problems else l2_norm(self.change.values())
        if not problems and exceeds(norm, task.settings.clip):
            problems.append(f"the change has norm {norm:.6g}, the clip is {task.settings.clip:.6g}")
        _refuse("the contribution cannot be used", problems)

    def _within_problems(self, asked: bool) -> list[str]:
        if asked == (self.within is not None):
            return []
        return ["missing key 'within'" if asked else "unknown key 'within'"]

    def wire(self) -> Wire:
        """Returns the contribution as it travels."""
        config: dict[str, Scalar] = {
            "schema": SCHEMA, "release_id": self.release_id, "round": self.round,
            "examples": self.examples, "seconds": self.seconds,
        }  # fmt: skip
        return Wire(self.change, config if self.within is None else {**config, "within": self.within})


@final
@dataclass(frozen=True, slots=True)
class EvaluationReply:
    """What leaves a device after an evaluation: two counts.

    Attributes:
        release_id: The release that was evaluated.
        round: The round that it answers.
        correct: Right predictions.
        total: Held-out examples.
        seconds: What the work took.
    """

    release_id: str
    round: int
    correct: int
    total: int
    seconds: float

    def check(self, manifest: Manifest, task: RoundTask) -> None:
        """Raises MessageError with all problems if this is no answer to a task."""
        problems = [
            *_answer_problems(self.release_id, self.round, self.seconds, task),
            *_release_problems(self.release_id, manifest),
            *count_problems("total", self.total, 1, 10**9),
        ]
        problems += [] if problems else count_problems("correct", self.correct, 0, self.total)
        _refuse("the evaluation cannot be used", problems)

    def wire(self) -> Wire:
        """Returns the reply as it travels."""
        config: dict[str, Scalar] = {
            "schema": SCHEMA, "release_id": self.release_id, "round": self.round,
            "correct": self.correct, "total": self.total, "seconds": self.seconds,
        }  # fmt: skip
        return Wire({}, config)


@final
@dataclass(frozen=True, slots=True)
class Hello:
    """A device's number: what a coordinator samples by, since transports give out new ids at every start.

    Attributes:
        client: The partition in a simulation, a random number made once on a real device.
    """

    client: int

    def wire(self) -> Wire:
        """Returns the answer as it travels."""
        return Wire({}, {"schema": SCHEMA, "client": self.client})


@final
@dataclass(frozen=True, slots=True)
class GainQuestion:
    """Asks a device what its profile for a release gains.

    Attributes:
        release_id: The release.
    """

    release_id: str

    def wire(self) -> Wire:
        """Returns the question as it travels."""
        return Wire({}, {"schema": SCHEMA, "release_id": self.release_id})


@final
@dataclass(frozen=True, slots=True)
class GainReport:
    """What a device tells of its owner's gain: one number, noised (`shared/gain.py`).

    Attributes:
        release_id: The release.
        noised: The gain with its noise, in steps of the grid.
    """

    release_id: str
    noised: int

    def wire(self) -> Wire:
        """Returns the report as it travels."""
        return Wire({}, {"schema": SCHEMA, "release_id": self.release_id, "noised": self.noised})


def read_task(wire: Wire, manifest: Manifest) -> RoundTask:
    """Reads what a coordinator asks.

    Raises:
        MessageError: It is not a task for this release; lists all problems.
    """
    names = {
        "release_id": str, "round": int, "seed": int, "stage": str, "local_steps": int, "local_rate": float,
        "batch_size": int, "clip": float, "example_cap": int, "profile_dropout": float,
        "onboarding_steps": int, "onboarding_rate": float, "onboarding_learning_steps": int,
        "tell_within": bool, "recipe": str,
    }  # fmt: skip
    found, problems = _fields(wire.config, names)
    recipe = _recipe(found.get("recipe", ""), problems)
    _refuse("the round task cannot be used", problems)
    local = {f.name: found[f.name] for f in fields(LocalSettings) if f.name != "recipe"}
    settings = LocalSettings(**local, recipe=recipe)
    task = RoundTask(
        found["release_id"], found["round"], found["seed"], found["stage"], settings, dict(wire.arrays)
    )
    task.check(manifest)
    return task


def read_contribution(wire: Wire, manifest: Manifest, task: RoundTask) -> Contribution:
    """Reads a device's answer to a training task.

    Raises:
        MessageError: It is not an answer to the task; lists all problems.
    """
    names = {"release_id": str, "round": int, "examples": int, "seconds": float}
    names |= {"within": bool} if task.settings.tell_within else {}
    found, problems = _fields(wire.config, names)
    _refuse("the contribution cannot be used", problems)
    reply = Contribution(change=dict(wire.arrays), **found)
    reply.check(manifest, task)
    return reply


def read_evaluation(wire: Wire, manifest: Manifest, task: RoundTask) -> EvaluationReply:
    """Reads a device's answer to an evaluation task.

    Raises:
        MessageError: It is not an answer to the task; lists all problems.
    """
    names = {"release_id": str, "round": int, "correct": int, "total": int, "seconds": float}
    found, problems = _fields(wire.config, names)
    _refuse("the evaluation cannot be used", problems + _array_problems(wire.arrays, {}))
    reply = EvaluationReply(**found)
    reply.check(manifest, task)
    return reply


def read_hello(wire: Wire) -> Hello:
    """Reads a device's number.

    Raises:
        MessageError: It is no such answer.
    """
    found, problems = _fields(wire.config, {"client": int})
    problems += _array_problems(wire.arrays, {})
    problems += [] if problems else count_problems("client", found["client"], 0, 2**63 - 1)
    _refuse("the device's number cannot be used", problems)
    return Hello(found["client"])


def read_gain_question(wire: Wire) -> GainQuestion:
    """Reads a question for the gain.

    Raises:
        MessageError: It is no such question.
    """
    found, problems = _fields(wire.config, {"release_id": str})
    _refuse("the question cannot be used", problems + _array_problems(wire.arrays, {}))
    return GainQuestion(found["release_id"])


def read_gain(wire: Wire, question: GainQuestion) -> GainReport:
    """Reads a device's gain.

    Raises:
        MessageError: It is no answer to the question; lists all problems.
    """
    found, problems = _fields(wire.config, {"release_id": str, "noised": int})
    problems += _array_problems(wire.arrays, {})
    if found.get("release_id", question.release_id) != question.release_id:
        problems.append(f"the question was for release {question.release_id[:12]}")
    problems += [] if problems else count_problems("noised", found["noised"], -MOST_GAIN, MOST_GAIN)
    _refuse("the gain cannot be used", problems)
    return GainReport(**found)


def l2_norm(arrays: Iterable[npt.NDArray[Any]]) -> float:
    """Returns the L2 norm of some arrays taken together, summed in float64.

    Example:
        >>> l2_norm([np.array([3.0], np.float32), np.array([[0.0, 4.0]], np.float32)])
        5.0
    """
    # `reduce` is what `sum` calls; of small arrays it is half the time.
    return math.sqrt(
        sum(float(np.add.reduce(np.square(array, dtype=np.float64), axis=None)) for array in arrays)
    )


def clipped(
    arrays: Mapping[str, FloatArray], clip: float, norm: float | None = None
) -> dict[str, FloatArray]:
    """Returns the arrays, scaled down together so that their L2 norm is at most `clip`.

    Args:
        arrays: name -> array.
        clip: The bound.
        norm: The arrays' norm, where it is known.

    Example:
        >>> clipped({"a": np.array([3.0, 4.0], np.float32)}, 2.5)
        {'a': array([1.5, 2. ], dtype=float32)}
    """
    norm = l2_norm(arrays.values()) if norm is None else norm
    factor = np.float32(1.0 if norm <= clip else clip / norm)
    return {name: array * factor for name, array in arrays.items()}


def _decoded(array: _HoldsArray) -> npt.NDArray[Any]:
    if array.stype != NPY:
        raise TypeError(array.stype)
    return npy_array(array.data)


def _refuse(headline: str, problems: list[str]) -> None:
    if problems:
        raise MessageError(headline, problems, _HINT)


def _fields(config: Mapping[str, Any], kinds: Mapping[str, type]) -> tuple[dict[str, Any], list[str]]:
    """Returns the values that have the right type, and what is wrong with the rest."""
    problems = (
        []
        if config.get("schema") == SCHEMA
        else [f"schema is {shown(config.get('schema'))}, expected {SCHEMA}"]
    )
    problems += [f"unknown key '{shown(key)}'" for key in sorted(set(config) - set(kinds) - {"schema"})]
    problems += [f"missing key '{key}'" for key in kinds if key not in config]
    found = {}
    for key in kinds:
        if key in config and type(config[key]) is kinds[key]:
            found[key] = config[key]
        elif key in config:
            problems.append(f"{key} is of type {type(config[key]).__name__}, expected {kinds[key].__name__}")
    return found, problems


def _recipe(text: str, problems: list[str]) -> LearningRecipe | None:
    if not text:
        return None
    try:
        return LearningRecipe.from_json(parsed_json(text))
    except ValueError:
        problems.append("recipe is not the JSON of a recipe")
    except ReleaseError as error:
        problems += error.problems
    return None


def _release_problems(release_id: str, manifest: Manifest) -> list[str]:
    own = manifest.release_id
    return [] if release_id == own else [f"it is for release {shown(release_id[:12])}, not for {own[:12]}"]


def _answer_problems(release_id: str, round_: int, seconds: float, task: RoundTask) -> list[str]:
    problems = [] if round_ == task.round else [f"it answers round {round_}, not round {task.round}"]
    if release_id != task.release_id:
        problems.append(f"the task was for release {task.release_id[:12]}")
    return problems + number_problems("seconds", seconds, 0.0, 1e9)


def _array_problems(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    problems = [f"unknown tensor '{shown(name)}'" for name in sorted(set(arrays) - set(shapes))]
    problems += [f"missing tensor '{name}'" for name in shapes if name not in arrays]
    for name, shape in shapes.items():
        if name in arrays:
            problems += _tensor_problems(name, arrays[name], shape)
    return problems


def _tensor_problems(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> list[str]:
    if array.dtype != np.float32:
        return [f"{name}: dtype is {array.dtype}, expected float32"]
    if array.shape != tuple(shape):
        return [f"{name}: shape is {array.shape}, expected {tuple(shape)}"]
    return [] if np.isfinite(array).all() else [f"{name}: holds values that are not finite"]
