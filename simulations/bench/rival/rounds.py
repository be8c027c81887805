"""Rounds by pfl-research: python -m rival.rounds ORDER.json, or by torchrun in several processes.

Written as its users write it: a federated dataset, a PyTorchModel, an algorithm derived from federated
averaging that learns a person's private vector first, its own clipping and weighting, and SimulatedBackend.
What chance decides (who takes part, in which order examples are seen, which are seen without the profile) is
read from the order, so that the work is the very same as umbel's.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.user_state import InMemoryUserStateStorage
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism, NormClippingOnly
from torch import Tensor

from .learning import Adam
from .rounds_model import PersonalModel

_KEY = "profile"


class PersonalAveraging(FederatedAveraging):  # type: ignore[misc]
    """Federated averaging of the shared part, after a private vector was learned under it, from zeros."""

    def __init__(self, recipe: dict[str, Any]):
        super().__init__()
        self.recipe, self.states = recipe, InMemoryUserStateStorage()

    def train_one_user(
        self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any
    ) -> tuple[Any, Metrics]:
        """Learns the vector and keeps it, then trains the shared part with it."""
        network = model.pytorch_model
        network.train_shared(False)
        vector = self._learned(network, user_dataset.metadata["support"])
        network.train_shared(True)
        self.states.save_state({"vector": vector}, user_dataset.user_id, _KEY)
        # Row 0 is nobody: some examples are seen without the profile.
        network.people.vectors = torch.cat([torch.zeros_like(vector), vector])
        found: tuple[Any, Metrics] = super().train_one_user(
            initial_model_state, model, user_dataset, central_context
        )
        return found

    def _learned(self, network: PersonalModel, support: list[Tensor]) -> Tensor:
        """Returns the vector (1, d_u) by the recipe, as it is stored."""
        vectors = torch.zeros(1, network.size)
        optimizer = Adam(self.recipe, vectors)
        owner = torch.zeros(len(support[-1]), dtype=torch.int64)
        for _ in range(self.recipe["steps"]):
            asked = vectors.detach().requires_grad_()
            network.people.vectors = asked
            (gradient,) = torch.autograd.grad(network.nll(*support, owner), asked)
            optimizer.step(gradient)
        return vectors.half().float()


class People:
    """Makes users' datasets from what the order says of a round's user."""

    def __init__(self, drawn: dict[str, Any], network: PersonalModel):
        self.drawn, self.network = drawn, network
        self.read: dict[int, Tensor] = {}
        self.width = drawn["chosen"].shape[1]

    def turns(self) -> Iterator[tuple[int, int]]:
        """Yields (round, place) of every user of every round."""
        for round_ in range(len(self.drawn["chosen"])):
            for place in range(self.width):
                yield round_, place

    def dataset(self, turn: tuple[int, int]) -> Dataset:
        """Returns a user's data in the order in which the round sees them."""
        user = int(self.drawn["chosen"][turn])
        rows = torch.from_numpy(self.drawn["rows"][turn])
        *texts, labels = self._support(user)
        data = [*(part[rows] for part in texts), labels[rows], torch.from_numpy(self.drawn["owner"][turn])]
        return Dataset(tuple(data), user_id=str(user), metadata={"support": [*texts, labels]})

    @torch.no_grad()
    def _support(self, user: int) -> list[Tensor]:
        ids, mask, labels = (torch.from_numpy(self.drawn[name][user]) for name in ("ids", "mask", "labels"))
        if not self.network.reads_once:
            return [ids, mask, labels]
        if user not in self.read:
            self.read[user] = self.network.read(ids, mask)
        return [self.read[user], labels]


class Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Takes the time of every round."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = time.perf_counter()

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Begins."""
        self.begun = time.perf_counter()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Notes the time since the last round."""
        now = time.perf_counter()
        self.seconds.append(now - self.begun)
        self.begun = now
        return False, Metrics()


def local_sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Makes the optimizer of a user's shared steps: of what is trained, and not of the frozen encoder."""
    return torch.optim.SGD([own for own in parameters if own.requires_grad], lr=lr)


def run(order: dict[str, Any], drawn: dict[str, Any]) -> tuple[list[float], dict[str, Tensor]]:
    """Runs the rounds; returns the seconds of each, and what the shared tensors have become."""
    settings = order["settings"]
    network = PersonalModel(Path(order["model"]), order["trainables"])
    central = torch.optim.SGD(
        list(network.trained.values()), lr=settings["server_rate"], momentum=settings["server_momentum"]
    )
    model = PyTorchModel(network, local_sgd, central)
    people, clock = People(drawn, network), Clock()
    turns = people.turns()
    dataset = FederatedDataset(people.dataset, lambda: next(turns))
    clipping = CentrallyAppliedPrivacyMechanism(NormClippingOnly(2.0, settings["clip"]))
    backend = SimulatedBackend(dataset, dataset, postprocessors=[WeightByUser(), clipping])
    rounds = len(drawn["chosen"])
    algorithm_params = NNAlgorithmParams(
        central_num_iterations=rounds,
        evaluation_frequency=rounds + 1,
        train_cohort_size=people.width,
        val_cohort_size=0,
    )
    train_params = NNTrainHyperParams(
        local_batch_size=order["batch_size"],
        local_num_epochs=1,
        local_learning_rate=settings["local_rate"],
    )
    PersonalAveraging(order["recipe"]).run(
        algorithm_params, backend, model, train_params, None, callbacks=[clock],
        send_metrics_to_platform=False,
    )  # fmt: skip
    return clock.seconds, {name: value.detach() for name, value in network.trained.items()}


def main() -> None:
    """Runs what the order says; the first process tells."""
    order = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(order["threads"])
    out, drawn = Path(order["out"]), dict(np.load(order["drawn"]))
    seconds, tensors = run(order, drawn)
    rank = pytorch_ops.distributed.global_rank
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (out / f"peak-{rank}.json").write_text(json.dumps(peak))
    if rank == 0:
        arrays: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
        np.savez(out / "tensors.npz", **arrays)
        (out / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
