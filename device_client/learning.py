"""The device's learning loop: from a handful of labelled texts to a private profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import numpy.typing as npt

from umbel.device_client.engine import Engine
from umbel.shared.errors import ExampleError, ProfileError
from umbel.shared.examples import Example
from umbel.shared.learning import Descent
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.text import IntArray, TokenBatch, join, no_tokens

NO_SHARED: Mapping[str, FloatArray] = {}
_ROWS = 32

State = dict[str, dict[str, npt.NDArray[Any]]]
"""What it takes to go on with something: parts by name, which mostly stay as they are once they are there."""


@final
@dataclass(frozen=True, slots=True)
class Encoded:
    """Labelled texts of one user, ready for the graphs.

    Attributes:
        tokens: (batch, seq) ids and mask.
        labels: (batch,) label numbers.
        embedding: (batch, d) what the texts were read as, where answers depend on nothing else; None: they
            have not been read.
    """

    tokens: TokenBatch
    labels: IntArray
    embedding: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        embedding = 0 if self.embedding is None else self.embedding.nbytes
        return self.tokens.ids.nbytes + self.tokens.mask.nbytes + self.labels.nbytes + embedding

    def first(self, count: int) -> Encoded:
        """Returns the first `count` examples."""
        return self.rows(np.arange(min(count, len(self))))

    def rows(self, index: Sequence[int] | IntArray) -> Encoded:
        """Returns some examples."""
        chosen = np.asarray(index, np.int64)
        embedding = None if self.embedding is None else self.embedding[chosen]
        return Encoded(self.tokens.rows(chosen), self.labels[chosen], embedding)

    def as_read(self) -> Encoded:
        """Returns the examples without tokens, which nothing needs where they have been read."""
        return self if self.embedding is None else replace(self, tokens=no_tokens(len(self)))


def encode_examples(engine: Engine, examples: Sequence[Example]) -> Encoded:
    """Encodes examples for a release.

    Raises:
        ExampleError: A label is not one of the release's.
    """
    numbers = {label: number for number, label in enumerate(engine.labels)}
    unknown = [
        f"example {n}: label is not one of the release's"
        for n, e in enumerate(examples, 1)
        if e.label not in numbers
    ]
    if unknown:
        raise ExampleError(
            "labels do not fit the release", unknown, f"Its labels are: {', '.join(engine.labels)}."
        )
    labels = np.array([numbers[example.label] for example in examples], np.int64)
    return Encoded(engine.encode([example.text for example in examples]), labels)


def read_tokens(
    engine: Engine, tokens: TokenBatch, shared: Mapping[str, FloatArray] = NO_SHARED
) -> tuple[FloatArray, FloatArray]:
    """Returns logits (batch, labels) and embeddings (batch, d) without a profile, like lengths together."""
    logits = np.zeros((len(tokens), len(engine.labels)), np.float32)
    embedding = np.zeros((len(tokens), engine.embedding_size), np.float32)
    for index in tokens.like_length(_ROWS):
        logits[index], embedding[index] = engine.read(tokens.rows(index), shared)
    return logits, embedding


def read_once(
    engine: Engine, supports: Sequence[Encoded], shared: Mapping[str, FloatArray] = NO_SHARED
) -> list[Encoded]:
    """Returns the examples with their embeddings, where the release needs nothing else of a text.

    The encoder then runs once per text, however often profiles are learned from it. Embeddings that are there
    are kept, and do not depend on what rounds train.
    """
    if not engine.embeds:
        return list(supports)
    missing = [own for own in supports if own.embedding is None]
    if not missing:
        return list(supports)
    tokens = join([own.tokens for own in missing])
    _, found = read_tokens(engine, tokens, shared)
    parts = iter(np.split(found, np.cumsum([len(own) for own in missing])[:-1]))
    return [replace(own, embedding=next(parts)) if own.embedding is None else own for own in supports]


def together(examples: Sequence[Encoded]) -> Encoded:
    """Returns the examples of several as one; with embeddings, if all have them."""
    known = [own.embedding for own in examples if own.embedding is not None]
    return Encoded(
        join([own.tokens for own in examples]),
        np.concatenate([own.labels for own in examples]),
        np.concatenate(known) if len(known) == len(examples) else None,
    )


def learn_profiles(
    engine: Engine,
    supports: Sequence[Encoded],
    recipe: LearningRecipe,
    *,
    start: Mapping[str, FloatArray] | None = None,
    shared: Mapping[str, FloatArray] = NO_SHARED,
    rows: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, FloatArray]:
    """Learns the profiles of one or more users, each from their own examples only.

    Minimises, for each user, sum_i nll_i + prior_strength / 2 |profile - start|^2 by the recipe's AdamW, then
    rounds to what is stored, so that the profile in use is the profile that is kept.

    Args:
        engine: The release.
        supports: Each user's examples; a user without any keeps the starting profile.
        recipe: Steps, rates, prior.
        start: Where to start and what to be pulled to, (users, *shape); zeros (the generic profile) if None.
        shared: A round's values of trainable shared tensors.
        rows: Examples of a graph run at most; 32 if None, and all where they have been read.
        on_step: Called after every step with its number (from 1) and the mean nll before it.

    Returns:
        name -> (users, *shape) float32.

    Raises:
        ProfileError: A profile that was learned is not finite as it is stored.
    """
    exact = learn_exactly(engine, supports, recipe, start=start, shared=shared, rows=rows, on_step=on_step)
    return stored(engine, exact, supports)


def learn_exactly(
    engine: Engine,
    supports: Sequence[Encoded],
    recipe: LearningRecipe,
    *,
    start: Mapping[str, FloatArray] | None = None,
    shared: Mapping[str, FloatArray] = NO_SHARED,
    rows: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, FloatArray]:
    """Learns as `learn_profiles` does, and returns what was learned before it is rounded.

    It may not be finite. Users without examples keep exactly what they started from.
    """
    learning = ProfileLearning(engine, supports, recipe, start=start, shared=shared, rows=rows)
    while not learning.finished:
        nll = learning.advance()
        if nll is not None and on_step is not None:
            on_step(learning.steps, nll)
    return learning.exact()


@final
class ProfileLearning:
    """The learning of one or more users' profiles, a graph run at a time; `learn_profiles` says of what.

    The gradient of a sum is the sum of the gradients: pieces of the examples change only the memory that a
    step takes and the time that padding costs.
    """

    def __init__(
        self,
        engine: Engine,
        supports: Sequence[Encoded],
        recipe: LearningRecipe,
        *,
        start: Mapping[str, FloatArray] | None = None,
        shared: Mapping[str, FloatArray] = NO_SHARED,
        rows: int | None = None,
    ):
        """Reads the examples, where the release wants them read once; arguments as in `learn_exactly`.

        Args:
            engine: The release.
            supports: Each user's examples.
            recipe: Steps, rates, prior.
            start: Where to start and what to be pulled to.
            shared: A round's values of trainable shared tensors.
            rows: Examples of a graph run at most; 32 if None, and all where they have been read.
        """
        self._engine, self._shared = engine, shared
        spec = engine.release.manifest.profile
        self._origin = dict(start) if start is not None else spec.zeros(len(supports))
        self._empty = np.array([len(support) == 0 for support in supports])
        self._descent = Descent(self._origin, recipe)
        self._pieces: list[tuple[Encoded, IntArray]] = []
        self._found: list[tuple[FloatArray, dict[str, FloatArray]]] = []
        if not self._empty.all() and recipe.steps:
            read = read_once(engine, supports, shared)
            whole = any(own.embedding is None for own in read)
            known = together(read if whole else [own.as_read() for own in read])
            owner = np.repeat(np.arange(len(supports)), [len(support) for support in supports])
            self._pieces = _pieces(known, owner, rows)

    @property
    def steps(self) -> int:
        """Steps that have been made."""
        return self._descent.steps

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not self._pieces or self._descent.finished

    def advance(self) -> float | None:
        """Runs the graph on the next piece of the examples.

        Returns:
            After the last piece, with which a step is made: the mean nll before the step. Otherwise None.
        """
        known, owner = self._pieces[len(self._found)]
        at = self._descent.profile, self._shared
        with np.errstate(over="ignore", invalid="ignore"):  # `stored` says it in one error, without a warning
            if known.embedding is not None:
                self._found.append(self._engine.learn_embedded(known.embedding, known.labels, owner, *at))
            else:
                self._found.append(self._engine.learn(known.tokens, known.labels, owner, *at))
            return self._step() if len(self._found) == len(self._pieces) else None

    def _step(self) -> float:
        nll = np.concatenate([part for part, _ in self._found])
        gradients = self._found[0][1]
        if len(self._found) > 1:
            gradients = {n: np.sum([part[n] for _, part in self._found], axis=0) for n in gradients}
        self._descent.step(gradients)
        self._found = []
        return float(nll.mean())

    def state(self) -> State:
        """Returns what it takes to go on from here to the same numbers: the step, and the pieces since."""
        pieces = {
            f"piece {number}": {"nll": nll, **{f"gradient/{name}": own for name, own in gradients.items()}}
            for number, (nll, gradients) in enumerate(self._found)
        }
        return {"step": self._descent.state(), **pieces}

    def restore(self, state: State) -> None:
        """Goes on from what `state` gave of the same learning.

        Raises:
            KeyError: Something is missing in it.
        """
        self._descent.restore(state["step"])
        found = [state[f"piece {number}"] for number in range(len(state) - 1)]
        self._found = [(own["nll"], {n: own[f"gradient/{n}"] for n in self._origin}) for own in found]

    def exact(self) -> dict[str, FloatArray]:
        """Returns what was learned, not rounded; users without examples keep what they started from."""
        return {
            name: _kept(values, self._origin[name], self._empty)
            for name, values in self._descent.profile.items()
        }


def stored(
    engine: Engine, profile: Mapping[str, FloatArray], supports: Sequence[Encoded]
) -> dict[str, FloatArray]:
    """Rounds profiles (users, *shape) to what a device stores, but for users without examples.

    Raises:
        ProfileError: Values are not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = engine.release.manifest.profile.rounded(profile)
    # Of values that are not finite there are finite bits, so both are looked at.
    broken = [name for name in rounded if not np.isfinite([profile[name], rounded[name]]).all()]
    if broken:
        raise ProfileError(
            "learning did not converge, so no profile was made",
            [f"{name}: holds values that are not finite" for name in broken],
            "The recipe of the release does not suit these examples: tell its publisher.",
        )
    empty = np.array([len(support) == 0 for support in supports])
    return {name: _kept(values, profile[name], empty) for name, values in rounded.items()}


def _pieces(known: Encoded, owner: IntArray, rows: int | None) -> list[tuple[Encoded, IntArray]]:
    """Cuts everyone's examples into pieces, `rows` at most: (examples, owner).

    Texts that are read each time are so many as `_ROWS` if nothing is said, those of like length together.
    """
    if known.embedding is None:
        parts = known.tokens.like_length(rows or _ROWS)
    else:
        size = rows or len(known)
        parts = [np.arange(at, min(at + size, len(known))) for at in range(0, len(known), size)]
    if len(parts) == 1 and known.embedding is not None:
        return [(known, owner)]
    return [(known.rows(part), owner[part]) for part in parts]


def _kept(
    values: FloatArray, origin: FloatArray, empty: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> FloatArray:
    """Users without examples keep exactly what they started from."""
    return np.where(empty.reshape(-1, *[1] * (values.ndim - 1)), origin, values)


def predict_logits(
    engine: Engine,
    tokens: TokenBatch,
    profile: Mapping[str, FloatArray],
    *,
    owner: IntArray | None = None,
    shared: Mapping[str, FloatArray] = NO_SHARED,
    batch_size: int = 32,
) -> FloatArray:
    """Returns logits (batch, labels), computed in batches of texts of like length.

    Args:
        engine: The release.
        tokens: The texts.
        profile: Private tensors (users, *shape).
        owner: (batch,) whose text each is; user 0 for all if None.
        shared: A round's values of trainable shared tensors.
        batch_size: Texts per graph run.
    """
    owners = np.zeros(len(tokens), np.int64) if owner is None else owner
    logits = np.zeros((len(tokens), len(engine.labels)), np.float32)
    for index in tokens.like_length(batch_size):
        logits[index] = engine.predict(tokens.rows(index), owners[index], profile, shared)
    return logits


def example_logits(
    engine: Engine,
    examples: Encoded,
    profile: Mapping[str, FloatArray],
    *,
    owner: IntArray | None = None,
    shared: Mapping[str, FloatArray] = NO_SHARED,
) -> FloatArray:
    """Returns what `predict_logits` does; of texts that have been read, without reading them again."""
    if examples.embedding is None:
        return predict_logits(engine, examples.tokens, profile, owner=owner, shared=shared)
    owners = np.zeros(len(examples), np.int64) if owner is None else owner
    if not len(examples):
        return np.zeros((0, len(engine.labels)), np.float32)
    return engine.predict_embedded(examples.embedding, owners, profile, shared)
