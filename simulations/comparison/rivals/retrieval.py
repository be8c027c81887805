"""A person's nearest own examples, put into the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from umbel.coordinator.training.data import Rows
from umbel.shared.profile import FloatArray
from umbel.shared.rng import generator
from umbel.shared.text import TextEncoder
from umbel.simulations.comparison.cohort import Person
from umbel.simulations.comparison.contestant import Contestant, Costs, Options, World
from umbel.simulations.comparison.rivals.common import (
    as_floats,
    batches,
    embedded,
    embedded_texts,
    first,
    head_of,
    masked_nll,
    plain_copy,
    pooled_and_logits,
    train,
)
from umbel.simulations.comparison.rivals.knn import example_bytes

ENCODER_RATE = 5e-5
HEAD_RATE = 3e-3
_NEAREST = 3
_POOLS = (0, 4, 16, 32)

Index = npt.NDArray[np.intp]


@final
class Retrieval(Contestant):
    """Reads "label: text" of the 3 nearest own examples before the text itself; learns nothing per person.

    Nearest by the generic model's mean token state. The whole model is fine-tuned on seen people's examples
    before which some of their others are put, chosen among 0 to 32, so that it reads few and many alike. The
    device keeps the examples themselves.
    """

    name = "retrieval"
    title = "Own examples put into the text"
    version = 2
    whole = True

    def __init__(self, world: World):
        super().__init__(world)
        self._model = plain_copy(world.generic)
        self._reader = _Reader(world)

    def prepare(self, on_step: Callable[[int, int], None]) -> None:
        """Fine-tunes encoder and head on seen people's examples with others of theirs."""
        world, model = self.world, self._model
        data = world.cohort.table
        embeddings = embedded_texts(world, world.generic, data.train)
        owned = [np.flatnonzero(data.train.user == user) for user in range(len(data.users))]
        steps = world.config.rival_steps
        rows_of_step = list(islice(batches(data, max(1, world.batch_size // 4), world.seed), steps))
        nobody = torch.zeros(len(data.labels))

        def loss(step: int) -> Tensor:
            rows = rows_of_step[step]
            rng = generator(world.seed, step, "", "rival retrieval pools")
            pieces = [
                _others(data.train, owned[int(rows.user[n])], int(rows.text[n]), embeddings, rng)
                for n in range(len(rows))
            ]
            ids, mask = self._reader.read(rows, pieces)
            logits = pooled_and_logits(world, model, ids, mask)[1]
            return masked_nll(logits, torch.from_numpy(rows.label), nobody)

        groups = [(list(model.encoder.parameters()), ENCODER_RATE), (head_of(model), HEAD_RATE)]
        train(world, model, groups, steps, loss, on_step)

    def costs(self) -> Costs:
        """The examples' bytes; for everyone, all weights."""
        return Costs(example_bytes(self.world), 0, sum(p.numel() for p in self._model.parameters()))

    @torch.no_grad()
    def logits(self, people: Sequence[Person], k: int, options: Options) -> list[FloatArray]:
        """Puts each person's nearest examples before each query text."""
        return [self._logits(person, k) for person in people]

    def _logits(self, person: Person, k: int) -> FloatArray:
        pool = first(person.support, k)
        pieces = [pool] * len(person.query)
        if len(pool):
            support, _ = embedded(self.world, self.world.generic, pool)
            query, _ = embedded(self.world, self.world.generic, person.query)
            pieces = [pool.take(nearest(row, support)) for row in query]
        ids, mask = self._reader.read(person.query, pieces)
        return as_floats(pooled_and_logits(self.world, self._model, ids, mask)[1])


def nearest(query: FloatArray, pool: FloatArray) -> Index:
    """Returns the rows of the pool (n, d) most similar to the query (d,), the nearest first; at most 3."""
    order: Index = np.argsort(-(pool @ query), kind="stable")[:_NEAREST]
    return order


def _others(train: Rows, owned: Index, text: int, embeddings: FloatArray, rng: np.random.Generator) -> Rows:
    """Returns the nearest among some of a seen person's examples, none of them of the same text."""
    others = owned[train.text[owned] != text]
    size = int(_POOLS[int(rng.integers(len(_POOLS)))])
    pool = train.take(rng.permutation(others)[:size])
    return pool.take(nearest(embeddings[text], embeddings[pool.text])) if len(pool) else pool


@final
class _Reader:
    """Texts with examples before them, as tokens: [CLS] label: text [SEP] ... [SEP] text [SEP].

    A text is never cut further than everywhere else; where it gets too long, the examples before it are cut,
    each to the same length. All together have at most 3 times the length of a text.
    """

    def __init__(self, world: World):
        self._world = world
        self._encoder = TextEncoder(world.backbone.tokenizer_json, world.config.max_tokens)
        self._most = min(3 * world.config.max_tokens, world.backbone.shape.max_tokens)

    def read(self, rows: Rows, pieces: Sequence[Rows]) -> tuple[Tensor, Tensor]:
        """Returns ids and mask (n, seq) of the rows' texts, each with its own pieces before it."""
        told = [self._told(piece) for piece in pieces]
        flat = [text for piece in told for text in piece]
        tokens = self._encoder.encode(flat)
        every = iter(tokens.ids[n, : int(tokens.mask[n].sum())].tolist() for n in range(len(flat)))
        texts = self._world.cohort.data.tokens.rows(rows.text)
        found = [
            self._joined(texts.ids[n, : int(texts.mask[n].sum())].tolist(), list(islice(every, len(told[n]))))
            for n in range(len(rows))
        ]
        longest = max(map(len, found))
        ids = torch.zeros(len(found), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for n, row in enumerate(found):
            ids[n, : len(row)] = torch.tensor(row)
            mask[n, : len(row)] = 1
        return ids, mask

    def _told(self, rows: Rows) -> list[str]:
        cohort = self._world.cohort
        return [
            f"{cohort.data.labels[int(label)]}: {cohort.texts[int(text)]}"
            for text, label in zip(rows.text, rows.label, strict=True)
        ]

    def _joined(self, text: list[int], pieces: list[list[int]]) -> list[int]:
        if not pieces:
            return text
        room = max((self._most - len(text)) // len(pieces), 1)  # tokens of a piece, its [SEP] included
        before = [token for piece in pieces for token in [*piece[1:-1][: room - 1], piece[-1]]]
        return [text[0], *before, *text[1:]]
