"""Sequence classification: one label per text."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from umbel.coordinator.tasks.base import AbstractTask, mean_state


@final
class Classification(AbstractTask):
    """logits = W mean(states over tokens) + b."""

    kind = "classification"
    reads_means = True

    def __init__(self, labels: tuple[str, ...], hidden_size: int, rng: torch.Generator):
        super().__init__()
        self.labels = labels
        self.weight = nn.Parameter(torch.empty(len(labels), hidden_size).normal_(0.0, 0.02, generator=rng))
        self.bias = nn.Parameter(torch.zeros(len(labels)))

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """Returns the mean state over the tokens that are not padding: (batch, d)."""
        return mean_state(states, mask)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Maps token states (batch, seq, d) and mask (batch, seq) to logits (batch, labels)."""
        return self.pool(states, mask) @ self.weight.T + self.bias

    @torch.no_grad()
    def add(self, weight: Tensor | None, bias: Tensor) -> None:
        """Adds (labels, d) to W, if there is such, and (labels,) to b."""
        self.bias.add_(bias)
        if weight is not None:
            self.weight.add_(weight)

    def nll(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns -log softmax(logits)[label]: (batch,).

        Written as log_softmax and a one-hot dot: exported, cross_entropy's gradient is too large by the batch
        size.
        """
        chosen = functional.one_hot(labels, len(self.labels)).to(logits.dtype)
        return -(functional.log_softmax(logits, dim=-1) * chosen).sum(-1)
