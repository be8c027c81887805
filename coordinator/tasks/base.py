"""What a task is: how token states become predictions, and what the loss of a prediction is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class AbstractTask(nn.Module, ABC):
    """A task: its head and its loss. Everything else of umbel is the same for every task.

    Attributes:
        kind: Its name in configurations and releases.
        labels: The label names, in the order of the logits.
        reads_means: Whether its logits depend on a text's states through their mean alone.
    """

    kind: str
    labels: tuple[str, ...]
    reads_means: ClassVar[bool] = False

    @abstractmethod
    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Maps token states (batch, seq, d) and mask (batch, seq) to logits (batch, labels)."""

    @abstractmethod
    def nll(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns each example's negative log-likelihood (batch,), in nats."""

    def add(self, weight: Tensor | None, bias: Tensor) -> None:
        """Adds weight (labels, d) times the mean token state, and bias (labels,), to the logits, for good.

        Raises:
            NotImplementedError: The task does not say how.
        """
        raise NotImplementedError(f"the task '{self.kind}' cannot take a head")


def mean_state(states: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of token states (batch, seq, d) over what is not padding: (batch, d)."""
    weights = mask.to(states.dtype).unsqueeze(-1)  # (batch, seq, 1)
    return (states * weights).sum(1) / weights.sum(1).clamp_min(1.0)
