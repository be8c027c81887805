"""A device's part in a round: private steps on a frozen shared part, then shared steps on a frozen profile.

Where rounds train the onboarding network, its owner then plays somebody new (`teaching.py`).

The profile is learned anew in every round, from zeros, rather than from the one that is stored:
- the prior pulls towards where learning started, so starting each time from the last profile would undo the
  prior a little more with every round, and the profile would overfit to a handful of examples;
- what a device computes is then a function of (release, round values, its examples, seed) only, so a round
  that was interrupted and is run again gives the same numbers, whatever was stored meanwhile;
- and it is what a new user gets, so the shared tensors are trained for the profiles that they will meet.
An evaluation learns the profile under the values it evaluates, and stores nothing.
Whether an answer may leave is not decided here, but by the gate (`egress/gate.py`).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar, final

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.learning import Encoded, example_logits, learn_profiles
from umbel.device_client.onboarding import examples_starter
from umbel.device_client.teaching import taught_change
from umbel.shared.messages import Contribution, EvaluationReply, RoundTask, clipped, l2_norm
from umbel.shared.onboarding import PREFIX
from umbel.shared.profile import FloatArray
from umbel.shared.release import Release
from umbel.shared.rng import generator
from umbel.shared.text import IntArray

NO_QUERIES = "this device has no held-out examples"

_Answer = TypeVar("_Answer")


@final
@dataclass(frozen=True, slots=True)
class WantedProfile:
    """A profile that an answer waits for.

    Attributes:
        engine: The release.
        support: What it is to be learned from.
        task: Under which values, and how.
    """

    engine: Engine
    support: Encoded = field(repr=False)
    task: RoundTask

    def made(self) -> dict[str, FloatArray]:
        """Returns it: name -> (1, *shape)."""
        return learned(self.engine, [self.support], self.task)


def read_is_enough(engine: Engine, examples: Encoded) -> bool:
    """Says whether a gradient follows from what texts were read as: their tokens are then not needed."""
    return examples.embedding is not None and engine.contributes_embedded


@final
@dataclass(frozen=True, slots=True)
class WantedGradient:
    """The gradient of the summed nll by every trainable of the model, which an answer waits for.

    Attributes:
        engine: The release.
        examples: Of one step.
        owner: (examples,) which of the profiles each is seen with.
        profile: name -> (profiles, *shape).
        values: Trainable -> its value.
    """

    engine: Engine
    examples: Encoded = field(repr=False)
    owner: IntArray = field(repr=False)
    profile: Mapping[str, FloatArray] = field(repr=False)
    values: Mapping[str, FloatArray] = field(repr=False)

    def made(self) -> dict[str, FloatArray]:
        """Returns it: trainable -> gradient. The encoder runs only where it has to."""
        at = self.examples.labels, self.owner, self.profile, self.values
        if read_is_enough(self.engine, self.examples):
            assert self.examples.embedding is not None
            return self.engine.contribute_embedded(self.examples.embedding, *at)[1]
        return self.engine.contribute(self.examples.tokens, *at)[1]


Wanted: TypeAlias = WantedProfile | WantedGradient
Steps: TypeAlias = Generator[Wanted, dict[str, FloatArray], _Answer]
"""Work that stops where it wants something made that many may want at a time, and ends with its answer."""


class RoundHome(Protocol):
    """What a round needs of a device: a simulated one (`simulated.py`), or its owner's (`enrolled.py`)."""

    @property
    def most_norm(self) -> float:
        """The device's own bound on the norm of a change, whatever clip a task sets."""

    def support(self, engine: Engine) -> Encoded:
        """Returns the labelled examples, with what texts are read as where the release wants that once.

        Profiles are learned from them.

        Raises:
            ExampleError: There are none, or they cannot be used.
        """

    def queries(self, engine: Engine) -> Encoded:
        """Returns likewise examples that nothing is learned from; only simulated devices have some.

        Raises:
            ExampleError: There are none, or they cannot be used.
        """

    def rounding(self, seed: int, round_: int) -> np.random.Generator:
        """Returns what decides how a change is rounded for a secure sum."""

    def save_profile(self, release: Release, profile: dict[str, FloatArray]) -> None:
        """Keeps the profile that a round has learned, name -> (1, *shape)."""


def alone(steps: Steps[_Answer]) -> _Answer:
    """Does work of one device, for which is made by itself what it wants, and returns its answer."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(wanted.made())
    except StopIteration as end:
        answer: _Answer = end.value
        return answer


def train(engine: Engine, home: RoundHome, client: int, task: RoundTask) -> Contribution:
    """Learns and stores the profile, and returns the clipped change of the shared tensors; see `training`."""
    return alone(training(engine, home, client, task))


def evaluate(engine: Engine, home: RoundHome, task: RoundTask) -> EvaluationReply:
    """Counts right predictions on the held-out examples; see `evaluating`."""
    return alone(evaluating(engine, home, task))


def training(engine: Engine, home: RoundHome, client: int, task: RoundTask) -> Steps[Contribution]:
    """Learns and stores the profile, and returns the clipped change of the shared tensors.

    Args:
        engine: The release.
        home: Whose examples, and where the profile is kept.
        client: The device's number; randomness is a function of it.
        task: What the coordinator asks, already checked.

    Raises:
        ExampleError: The home has no usable examples.
        ProfileError: The profile cannot be kept.
        StoreError: The store cannot be written, or examples were forgotten meanwhile.
    """
    started = time.perf_counter()
    support = home.support(engine)
    profile = yield WantedProfile(engine, support, task)
    home.save_profile(engine.release, profile)
    change = yield from shared_steps(engine, support, profile, client, task)
    change |= taught_change(engine, support, client, task)
    norm = l2_norm(change.values())
    return Contribution(
        release_id=engine.release.release_id,
        round=task.round,
        change=clipped(change, min(task.settings.clip, home.most_norm), norm),
        examples=min(len(support), task.settings.example_cap),
        seconds=time.perf_counter() - started,
        within=norm <= task.settings.clip if task.settings.tell_within else None,
    )


def evaluating(engine: Engine, home: RoundHome, task: RoundTask) -> Steps[EvaluationReply]:
    """Counts right predictions on the held-out examples, with the profile that the round's values give.

    Raises:
        ExampleError: The home has no usable examples or no held-out ones.
    """
    started = time.perf_counter()
    queries = home.queries(engine)
    profile = yield WantedProfile(engine, home.support(engine), task)
    logits = example_logits(engine, queries, profile, shared=task.arrays)
    return EvaluationReply(
        release_id=engine.release.release_id,
        round=task.round,
        correct=int((logits.argmax(1) == queries.labels).sum()),
        total=len(queries),
        seconds=time.perf_counter() - started,
    )


def learned(
    engine: Engine, supports: Sequence[Encoded], task: RoundTask, rows: int | None = None
) -> dict[str, FloatArray]:
    """Learns the profiles of one or more people, each from their own examples, under a round's values.

    Args:
        engine: The release.
        supports: Each person's examples; so many that the same recipe holds for all of them.
        task: What the coordinator asks.
        rows: As in `learn_profiles`.

    Returns:
        name -> (people, *shape), as they are stored.

    Raises:
        ProfileError: A profile is not finite.
    """
    recipe = task.recipe(engine.release.manifest, len(supports[0]))
    start = examples_starter(engine, supports, recipe.start, task.arrays)
    places = [(number, np.arange(len(support))) for number, support in enumerate(supports)]
    origin = None if start is None else start(places)
    return learn_profiles(engine, supports, recipe, start=origin, shared=task.arrays, rows=rows)


def shared_change(
    engine: Engine, support: Encoded, profile: Mapping[str, FloatArray], client: int, task: RoundTask
) -> dict[str, FloatArray]:
    """Runs SGD on the model's shared tensors, and returns what changed; see `shared_steps`."""
    return alone(shared_steps(engine, support, profile, client, task))


def shared_steps(
    engine: Engine, support: Encoded, profile: Mapping[str, FloatArray], client: int, task: RoundTask
) -> Steps[dict[str, FloatArray]]:
    """Runs SGD on the model's shared tensors, the profile frozen, and returns what changed, not yet clipped.

    Args:
        engine: The release.
        support: The owner's examples, read where the release wants them read once.
        profile: name -> (1, *shape).
        client: The device's number.
        task: Steps, rate, batch size and the round's values.

    Returns:
        name -> new value - the round's value.
    """
    settings = task.settings
    # Owner 0 has no profile and owner 1 has the device's: one batch holds examples seen with and without it.
    both = {name: np.concatenate([np.zeros_like(values), values]) for name, values in profile.items()}
    dropout = generator(task.seed, task.round, str(client), "profile dropout")
    first = {name: value for name, value in task.arrays.items() if not name.startswith(PREFIX)}
    if not first:
        return {}
    values = dict(first)
    examples = support.as_read() if read_is_enough(engine, support) else support
    for index in minibatches(len(support), settings.batch_size, settings.local_steps, client, task):
        rows = examples.rows(index)
        owner = (dropout.random(len(rows)) >= settings.profile_dropout).astype(np.int64)
        gradients = yield WantedGradient(engine, rows, owner, both, values)
        rate = np.float32(settings.local_rate / len(rows))
        values = {name: value - rate * gradients[name] for name, value in values.items()}
    return {name: value - first[name] for name, value in values.items()}


def minibatches(count: int, size: int, steps: int, client: int, task: RoundTask) -> list[IntArray]:
    """Returns each step's example numbers: shuffled passes over all examples, cut into batches.

    Every batch has min(size, count) numbers and none twice: what a pass leaves over is not filled up from the
    next one.
    """
    rng = generator(task.seed, task.round, str(client), "minibatch")
    size = min(size, count)
    batches: list[IntArray] = []
    while len(batches) < steps:
        order = rng.permutation(count)
        batches += [order[start : start + size] for start in range(0, count - size + 1, size)]
    return batches[:steps]
