"""Federated averaging of all weights, then local fine-tuning of all weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from umbel.coordinator.model import PersonalModel
from umbel.coordinator.training.data import Rows
from umbel.shared.rng import generator
from umbel.simulations.comparison.contestant import World
from umbel.simulations.comparison.rivals.common import Learner, logits_of, masked_nll, plain_copy, seeded

RATE = 5e-5
CLIENTS = 4
LOCAL_STEPS = 4
LOCAL_BATCH = 16


@final
class FedAvg(Learner):
    """FedAvg from the generic model over seen people, then each person fine-tunes the encoder's layers alone.

    A round: 4 people, 4 Adam steps each from the round's weights, the mean of their weights. What a person's
    device keeps is every layer and the head.
    """

    name = "fedavg"
    title = "FedAvg, then local fine-tuning"
    whole = True
    rates = (1e-5, 3e-5)

    def __init__(self, world: World):
        super().__init__(world)
        self._averaged = plain_copy(world.generic)

    def prepare(self, on_step: Callable[[int, int], None]) -> None:
        """Runs the rounds."""
        world, rows = self.world, self.world.cohort.table.train
        able = np.unique(rows.user)
        rounds = max(1, world.config.rival_steps // 10)
        for round_ in range(rounds):
            rng = generator(world.seed, round_, "", "rival fedavg clients")
            chosen = rng.permutation(able)[:CLIENTS]
            self._round(round_, [rows.take(np.flatnonzero(rows.user == user)) for user in chosen])
            on_step(round_ + 1, rounds)

    def build(self) -> tuple[PersonalModel, list[nn.Parameter]]:
        """Returns the averaged model and its weights, the embeddings left out: most are never read."""
        frozen = set(self._averaged.encoder.get_submodule("embeddings").parameters())
        return self._averaged, [p for p in self._averaged.parameters() if p not in frozen]

    def own_head(self) -> bool:
        """The head is among all weights."""
        return False

    def shared_numbers(self) -> int:
        """All weights."""
        return sum(parameter.numel() for parameter in self._averaged.parameters())

    def _round(self, round_: int, clients: list[Rows]) -> None:
        parameters = list(self._averaged.parameters())
        start = [parameter.detach().clone() for parameter in parameters]
        total = [torch.zeros_like(value) for value in start]
        for rows in clients:
            _set(parameters, start)
            self._local(round_, rows)
            for value, parameter in zip(total, parameters, strict=True):
                value.add_(parameter.detach(), alpha=1.0 / len(clients))
        _set(parameters, total)

    def _local(self, round_: int, rows: Rows) -> None:
        """Takes one client's steps, dropout on."""
        world, model = self.world, self._averaged
        user = world.cohort.table.users[int(rows.user[0])]
        rng = generator(world.seed, round_, user, "rival fedavg batches")
        nobody = torch.zeros(len(world.cohort.data.labels))
        model.requires_grad_(True)
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        for step in range(LOCAL_STEPS):
            batch = rows.take(rng.permutation(len(rows))[:LOCAL_BATCH])
            with seeded(world.seed, user, f"rival fedavg dropout {round_} {step}"):
                loss = masked_nll(logits_of(world, model, batch), torch.from_numpy(batch.label), nobody)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        optimizer.zero_grad()
        model.requires_grad_(False)
        model.eval()


def _set(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
