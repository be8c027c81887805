"""What somebody would write without a framework: a loop over people, torch for the gradients, no messages."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partialmethod
from typing import Any, final

import numpy as np
import torch

from umbel.coordinator.federation.server_step import moved
from umbel.coordinator.federation.settings import RoundSettings
from umbel.coordinator.graphs.joint import JointModule
from umbel.device_client.learning import Encoded, read_once
from umbel.device_client.rounds import learned, shared_change
from umbel.shared.messages import TRAIN, RoundTask, clipped
from umbel.shared.profile import FloatArray
from umbel.shared.release import Release
from umbel.shared.text import IntArray, TokenBatch
from umbel.simulations.bench.handed import chosen_in
from umbel.simulations.bench.releases import BEHIND, model_of


@final
class TorchEngine:
    """Gives the gradients that an `Engine` gives, by torch in eager mode."""

    onboards = False

    def __init__(self, release: Release, backbone: str, method: str, threads: int):
        """Makes the model that the release was made of."""
        torch.set_num_threads(threads)
        self.release, self.labels = release, release.manifest.labels
        self.model = model_of(backbone, method)[2].eval().requires_grad_(False)
        self.embeds = self.contributes_embedded = method == BEHIND
        self.embedding_size = int(release.manifest.trainables["task.weight"][1])
        self._joint = JointModule(self.model, list(release.manifest.trainables))

    def _gradients(
        self,
        tokens: TokenBatch,
        labels: IntArray,
        owner: IntArray,
        profile: Mapping[str, FloatArray],
        shared: Mapping[str, FloatArray],
        *,
        private: bool,
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        own = _tensors(profile, self._joint.private_names, private)
        values = _tensors(shared, self._joint.trainables, not private)
        ids, mask, targets, rows = (
            torch.from_numpy(array) for array in (tokens.ids, tokens.mask, labels, owner)
        )
        loss, _, _, nll = self._joint(ids, mask, targets, torch.ones(len(targets)), rows, own, values)
        names, wanted = (self._joint.private_names, own) if private else (self._joint.trainables, values)
        return nll.numpy(), _by_name(loss, names, wanted)

    # As of an `Engine`: nll, and the gradients by private tensors or by trainables.
    learn = partialmethod(_gradients, private=True)
    contribute = partialmethod(_gradients, private=False)

    @torch.no_grad()
    def read(self, tokens: TokenBatch, shared: Mapping[str, FloatArray]) -> tuple[FloatArray, FloatArray]:
        """Returns logits, of which nobody asks, and the mean states of texts (batch, d)."""
        del shared
        ids, mask = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)
        logits, embedding = self.model.read(ids, mask, self.model.nobody(mask))
        return logits.numpy(), embedding.numpy()

    def _behind(
        self,
        embedding: FloatArray,
        labels: IntArray,
        owner: IntArray,
        profile: Mapping[str, FloatArray],
        shared: Mapping[str, FloatArray],
        *,
        private: bool,
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        own = _tensors(profile, ["headbias.bias"], private)
        values = _tensors(shared, _HEAD, not private)
        scale: Any = self.release.manifest.methods[BEHIND]["scale"]
        logits = torch.from_numpy(embedding) @ values[0].T + values[1]
        logits = logits + scale * own[0][torch.from_numpy(owner)]
        nll = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="none")
        names, wanted = (["headbias.bias"], own) if private else (_HEAD, values)
        return nll.detach().numpy(), _by_name(nll.sum(), names, wanted)

    # The same, of texts that were read once.
    learn_embedded = partialmethod(_behind, private=True)
    contribute_embedded = partialmethod(_behind, private=False)


_HEAD = ["task.weight", "task.bias"]


def _tensors(
    values: Mapping[str, FloatArray], names: Sequence[str], wanted: bool
) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(values[name]).requires_grad_(wanted) for name in names)


def _by_name(
    loss: torch.Tensor, names: Sequence[str], wanted: Sequence[torch.Tensor]
) -> dict[str, FloatArray]:
    """Returns the gradient of a loss by each tensor, under its name."""
    found = torch.autograd.grad(loss, list(wanted))
    return {name: value.numpy() for name, value in zip(names, found, strict=True)}


def run_plain(
    engine: TorchEngine, supports: Sequence[Encoded], settings: RoundSettings
) -> tuple[list[float], dict[str, FloatArray]]:
    """Runs the rounds over people whose texts were encoded beforehand.

    Returns:
        The seconds of each round, and the tensors that are reached.
    """
    known = list(supports)
    own: Any = engine  # where a device's is wanted, which is asked for nothing else
    values = {name: _parameter(engine, name) for name in engine.release.manifest.trainables}
    velocity: dict[str, FloatArray] = {}
    seconds = []
    for number in range(1, settings.rounds + 1):
        begun = time.perf_counter()
        chosen = chosen_in(settings, len(known), number)
        task = RoundTask(engine.release.release_id, number, settings.seed, TRAIN, settings.local(), values)
        total = {name: np.zeros(value.shape) for name, value in values.items()}
        for client in chosen:
            (known[client],) = read_once(own, [known[client]])
            profile = learned(own, [known[client]], task)
            change = shared_change(own, known[client], profile, client, task)
            for name, value in clipped(change, settings.clip).items():
                total[name] += value
        mean = {name: (value / len(chosen)).astype(np.float32) for name, value in total.items()}
        values, velocity = moved(values, velocity, mean, settings.server_rate, settings.server_momentum)
        seconds.append(time.perf_counter() - begun)
    return seconds, values


def _parameter(engine: TorchEngine, name: str) -> FloatArray:
    found: FloatArray = engine.model.get_parameter(name).detach().numpy().copy()
    return found
