"""What the generic model makes of texts: all that the onboarding network gets to see of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from umbel.coordinator.model import PersonalModel
from umbel.shared.text import IntArray, TokenBatch

_BATCH = 256


@final
@dataclass(frozen=True, slots=True)
class Readings:
    """Texts as a person about whom nothing is known would have them read.

    Attributes:
        embedding: (texts, d) float32 mean token states.
        logits: (texts, labels) float32.
        place: (all texts,) where each one's row is; -1 where it was not read.
    """

    embedding: Tensor
    logits: Tensor
    place: IntArray

    def rows(self, text: IntArray) -> tuple[Tensor, Tensor]:
        """Returns embedding and logits of some texts, which must have been read."""
        index = torch.from_numpy(self.place[text])
        return self.embedding[index], self.logits[index]


@torch.no_grad()
def read_texts(
    model: PersonalModel,
    tokens: TokenBatch,
    texts: IntArray,
    precision: AbstractContextManager[object] | None = None,
    on_text: Callable[[int, int], None] | None = None,
) -> Readings:
    """Reads texts once, without a profile.

    Args:
        model: The trained model.
        tokens: Every text.
        texts: Which of them to read, ascending, all different.
        precision: The context in which it runs.
        on_text: Called with (texts read, texts in all).
    """
    place = np.full(len(tokens), -1, np.int64)
    place[texts] = np.arange(len(texts))
    device = next(model.parameters()).device
    embeddings: list[Tensor] = [torch.empty(0)] * len(texts)
    logits: list[Tensor] = [torch.empty(0)] * len(texts)
    model.eval()
    done = 0
    with precision or nullcontext():
        for index in tokens.like_length(_BATCH, texts):
            part = tokens.rows(texts[index])
            ids, mask = (torch.from_numpy(array).to(device) for array in (part.ids, part.mask))
            found = model.read(ids, mask, model.nobody(mask))
            for number, row, embedding in zip(index, *(f.float().cpu() for f in found), strict=True):
                logits[int(number)], embeddings[int(number)] = row, embedding
            done += len(index)
            if on_text is not None:
                on_text(done, len(texts))
    return Readings(torch.stack(embeddings), torch.stack(logits), place)
