"""Trains an encoder towards what judgements alone say of texts (see collaborative.py)."""

from __future__ import annotations

from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from umbel.coordinator.training.collaborative import Factors
from umbel.shared.text import IntArray


@final
class TraitHead(nn.Module):
    """Reads traits and worth off an embedding.

    loss = mean over texts of w_t |M e_t + m - [trait_t ; worth_t]|^2

    It is there while an encoder is trained, and then no more. The strongest trait has variance 1, the others
    are as much smaller as they move fewer answers.
    """

    def __init__(self, factors: Factors, width: int, texts: int, rng: torch.Generator):
        """Makes the head.

        Args:
            factors: What judgements say.
            width: Width of embeddings.
            texts: How many texts there are in all; those that nobody judged have no weight.
            rng: Of the first weights.
        """
        super().__init__()
        target = np.concatenate([factors.trait, factors.worth], axis=1)
        target = target / np.sqrt(np.average(target**2, axis=0, weights=factors.weight).max())
        self.matrix = nn.Parameter(torch.empty(target.shape[1], width).normal_(0.0, 0.02, generator=rng))
        self.offset = nn.Parameter(torch.zeros(target.shape[1]))
        targets, weights = torch.zeros(texts, target.shape[1]), torch.zeros(texts)
        targets[torch.from_numpy(factors.text)] = torch.from_numpy(target).float()
        weights[torch.from_numpy(factors.text)] = torch.from_numpy(factors.weight).float()
        # They go where the head goes, and are no weights.
        self.register_buffer("_target", targets, persistent=False)
        self.register_buffer("_weight", weights, persistent=False)

    def loss(self, embedding: Tensor, text: IntArray, often: npt.NDArray[np.float64] | None = None) -> Tensor:
        """Returns the mean weighted squared distance, a scalar.

        Args:
            embedding: (batch, d).
            text: (batch,) which texts.
            often: (batch,) how often each of them counts, 1 on average; all alike if None.
        """
        device = embedding.device
        index = torch.from_numpy(text).to(device)
        weight = self.get_buffer("_weight")[index]
        if often is not None:
            weight = weight * torch.from_numpy(often).float().to(device)
        apart = embedding @ self.matrix.T + self.offset - self.get_buffer("_target")[index]
        return (apart.square().sum(-1) * weight).mean()
