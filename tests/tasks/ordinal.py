"""Ordinal classification: labels that stand in a row, such as 1 to 5 stars."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from umbel.coordinator.tasks.base import AbstractTask


@final
class Ordinal(AbstractTask):
    """logits_k = -(w . mean(states) - c_k)^2: a score per text, and a place on its scale for every label."""

    kind = "ordinal"

    def __init__(self, labels: tuple[str, ...], hidden_size: int, rng: torch.Generator):
        super().__init__()
        self.labels = labels
        self.weight = nn.Parameter(torch.empty(hidden_size).normal_(0.0, 0.02, generator=rng))
        self.places = nn.Parameter(torch.linspace(-1.0, 1.0, len(labels)))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Maps token states (batch, seq, d) and mask (batch, seq) to logits (batch, labels)."""
        weights = mask.to(states.dtype).unsqueeze(-1)  # (batch, seq, 1)
        pooled = (states * weights).sum(1) / weights.sum(1).clamp_min(1.0)  # (batch, d)
        return -(((pooled @ self.weight).unsqueeze(1) - self.places) ** 2)

    def nll(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns -log softmax(logits)[label]: (batch,)."""
        chosen = functional.one_hot(labels, len(self.labels)).to(logits.dtype)
        return -(functional.log_softmax(logits, dim=-1) * chosen).sum(-1)
