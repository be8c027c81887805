"""What a task is: how token states become predictions, and what the loss of a prediction is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class AbstractTask(nn.Module, ABC):
    """A task: its head and its loss. Everything else of umbel is the same for every task.

    Attributes:
        kind: Its name in configurations and releases.
        labels: The label names, in the order of the logits.
    """

    kind: str
    labels: tuple[str, ...]

    @abstractmethod
    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Maps token states (batch, seq, d) and mask (batch, seq) to logits (batch, labels)."""

    @abstractmethod
    def nll(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns each example's negative log-likelihood (batch,), in nats."""

    def add_bias(self, bias: Tensor) -> None:
        """Adds (labels,) to the logits of every text, for good; where this is not written, it raises."""
        raise NotImplementedError(f"the task '{self.kind}' cannot take a bias")
