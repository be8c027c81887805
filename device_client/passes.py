"""Passes over texts, a graph run at a time: reading them without a profile, answering under one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.learning import NO_SHARED, Encoded, State, example_logits
from umbel.shared.profile import FloatArray
from umbel.shared.text import IntArray, TokenBatch

_ROWS = 32


@final
class Reading:
    """What texts are to a person about whom nothing is known, those of like length together.

    Attributes:
        logits: (texts, labels), whole when it is finished.
        embedding: (texts, d).
    """

    def __init__(self, engine: Engine, tokens: TokenBatch, rows: int | None = None):
        """Cuts the texts into pieces, of `rows` or else 32 at most."""
        self._engine, self._tokens = engine, tokens
        self._parts = tokens.like_length(rows or _ROWS)
        self.logits: FloatArray = np.zeros((len(tokens), len(engine.labels)), np.float32)
        width = engine.embedding_size if self._parts else 0
        self.embedding: FloatArray = np.zeros((len(tokens), width), np.float32)
        self.done = 0

    @property
    def total(self) -> int:
        """Graph runs in all."""
        return len(self._parts)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.done == self.total

    def advance(self) -> None:
        """Reads the next piece."""
        part = self._parts[self.done]
        self.logits[part], self.embedding[part] = self._engine.read(self._tokens.rows(part), NO_SHARED)
        self.done += 1

    def state(self) -> State:
        """Returns what was read, a part for each piece."""
        return {
            str(n): {"logits": self.logits[part], "embedding": self.embedding[part]}
            for n, part in enumerate(self._parts[: self.done])
        }

    def restore(self, state: State) -> None:
        """Goes on from what `state` gave, of the same texts, or of none: those have been kept elsewhere.

        Raises:
            KeyError: Something is missing in it.
        """
        for number, part in enumerate(self._parts[: len(state)]):
            own = state[str(number)]
            self.logits[part], self.embedding[part] = own["logits"], own["embedding"]
        self.done = min(len(state), self.total)


@final
class Answering:
    """What examples are answered with under some profiles.

    Attributes:
        logits: (batch, labels), whole when it is finished.
    """

    def __init__(
        self,
        engine: Engine,
        examples: Encoded,
        profile: Mapping[str, FloatArray],
        owner: IntArray,
        shared: Mapping[str, FloatArray] = NO_SHARED,
        rows: int | None = None,
    ):
        """Cuts the examples into pieces: of `rows` or else 32 at most; all at once where they have been read.

        Arguments as in `example_logits`.
        """
        self._engine, self._examples, self._shared = engine, examples, shared
        self._profile, self._owner = profile, owner
        self.logits: FloatArray = np.zeros((len(examples), len(engine.labels)), np.float32)
        read = examples.embedding is not None
        size = (rows or len(examples)) if read else (rows or _ROWS)
        self._parts = examples.tokens.like_length(size) if len(examples) else []
        if len(self._parts) == 1 and read:
            self._parts = [np.arange(len(examples))]
        self._done = 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self._done == len(self._parts)

    def advance(self) -> None:
        """Answers the next piece."""
        part = self._parts[self._done]
        rows, owner = self._examples.rows(part), self._owner[part]
        self.logits[part] = example_logits(
            self._engine, rows, self._profile, owner=owner, shared=self._shared
        )
        self._done += 1

    def state(self) -> State:
        """Returns the answers so far."""
        return {"answers": {"logits": self.logits, "done": np.array([self._done])}}

    def restore(self, state: State) -> None:
        """Goes on from what `state` gave, of the same examples and profiles.

        Raises:
            KeyError: Something is missing in it.
        """
        self.logits = state["answers"]["logits"].copy()
        self._done = int(state["answers"]["done"][0])
