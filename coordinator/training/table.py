"""A table of embeddings in place of an encoder that stays as it is, where nothing is personal before it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, final

import numpy as np
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from umbel.coordinator.model import PersonalModel
from umbel.coordinator.onboarding.reading import read_texts
from umbel.shared.text import TokenBatch


@final
class TextTable(nn.Module):
    """Stands for a whole encoder: "token id" (batch, 1) -> embedding of the text with this number."""

    def __init__(self, embeddings: Tensor, config: Any):
        """Takes the texts' embeddings (texts, d), and the configuration of the encoder that gave them."""
        super().__init__()
        self.config = copy.deepcopy(config)
        self.config.num_hidden_layers = 0
        self.table = nn.Parameter(embeddings, requires_grad=False)

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        """Returns what encoders do, with one state per text: its embedding."""
        return BaseModelOutput(last_hidden_state=self.table[input_ids])


def over_embeddings(
    model: PersonalModel,
    tokens: TokenBatch,
    precision: AbstractContextManager[object] | None = None,
    on_text: Callable[[int, int], None] | None = None,
) -> tuple[PersonalModel, TokenBatch]:
    """Reads every text once, and returns a model over what was read, with the texts as it wants them.

    Args:
        model: One that `acts_on_embeddings`; the new one has the same methods and task, not copies.
        tokens: Every text.
        precision: The context in which the encoder runs.
        on_text: Called with (texts read, texts in all).

    Returns:
        A model whose encoder is a `TextTable`, and the texts, each of which is one "token": its number.
    """
    read = read_texts(model, tokens, np.arange(len(tokens)), precision, on_text)
    return behind_table(model, read.embedding)


def behind_table(model: PersonalModel, embeddings: Tensor) -> tuple[PersonalModel, TokenBatch]:
    """Returns what `over_embeddings` does, of texts that have been read: (texts, d)."""
    encoder: Any = model.encoder
    table = TextTable(embeddings, encoder.config)
    behind = PersonalModel(table, {m.name: m for m in model.method_list()}, model.task)
    ids = np.arange(len(embeddings), dtype=np.int64)[:, None]
    return behind, TokenBatch(ids, np.ones_like(ids))
