"""What somebody would write without a framework: a loop over people, torch for the gradients, no messages."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from umbel.coordinator.federation.sampling import sampled
from umbel.coordinator.federation.server_step import moved
from umbel.coordinator.federation.settings import RoundSettings
from umbel.coordinator.graphs.joint import JointModule
from umbel.device_client.learning import Encoded
from umbel.device_client.rounds import learned, shared_change
from umbel.shared.examples import read_examples
from umbel.shared.messages import TRAIN, RoundTask, clipped
from umbel.shared.profile import FloatArray
from umbel.shared.release import TOKENIZER, Release
from umbel.shared.text import IntArray, TextEncoder, TokenBatch
from umbel.simulations.bench.releases import model_of


@final
class TorchEngine:
    """Gives the gradients that an `Engine` gives, by torch in eager mode."""

    embeds = onboards = contributes_embedded = False

    def __init__(self, release: Release, backbone: str, threads: int):
        """Makes the model that the release was made of."""
        torch.set_num_threads(threads)
        self.release = release
        model = model_of(backbone, "plora")[2].eval().requires_grad_(False)
        self._joint = JointModule(model, list(release.manifest.trainables))

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
        names, wanted = (
            (self._joint.private_names, own) if private else (list(self._joint.trainables), values)
        )
        found = torch.autograd.grad(loss, wanted)
        return nll.numpy(), {name: value.numpy() for name, value in zip(names, found, strict=True)}

    # As of an `Engine`: nll, and the gradients by private tensors or by trainables.
    learn = partialmethod(_gradients, private=True)
    contribute = partialmethod(_gradients, private=False)


def _tensors(
    values: Mapping[str, FloatArray], names: Sequence[str], wanted: bool
) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(values[name]).requires_grad_(wanted) for name in names)


def run_plain(
    release: Release, backbone: str, devices: Path, people: int, settings: RoundSettings, threads: int
) -> tuple[list[float], dict[str, FloatArray]]:
    """Runs the rounds; all texts are encoded beforehand.

    Returns:
        The seconds of each round, and the tensors that are reached.
    """
    engine: Any = TorchEngine(release, backbone, threads)
    supports = _supports(release, devices, people)
    values = {name: _parameter(engine, name) for name in release.manifest.trainables}
    velocity: dict[str, FloatArray] = {}
    seconds = []
    for number in range(1, settings.rounds + 1):
        begun = time.perf_counter()
        chosen = sampled(range(people), settings.clients_per_round, settings.seed, number, "sample")
        task = RoundTask(release.release_id, number, settings.seed, TRAIN, settings.local(), values)
        total = {name: np.zeros(value.shape) for name, value in values.items()}
        for client in chosen:
            profile = learned(engine, [supports[client]], task)
            change = clipped(shared_change(engine, supports[client], profile, client, task), settings.clip)
            for name, value in change.items():
                total[name] += value
        mean = {name: (value / len(chosen)).astype(np.float32) for name, value in total.items()}
        values, velocity = moved(values, velocity, mean, settings.server_rate, settings.server_momentum)
        seconds.append(time.perf_counter() - begun)
    return seconds, values


def _parameter(engine: TorchEngine, name: str) -> FloatArray:
    return engine._joint.model.get_parameter(name).detach().numpy().copy()


def _supports(release: Release, devices: Path, people: int) -> list[Encoded]:
    encoder = TextEncoder(release.blob_path(TOKENIZER).read_bytes(), release.manifest.max_tokens)
    numbers = {label: number for number, label in enumerate(release.manifest.labels)}
    found = []
    for number in range(people):
        examples = read_examples(devices / f"{number:06d}" / "examples.jsonl", default_user="owner")
        labels = np.array([numbers[example.label] for example in examples], np.int64)
        found.append(Encoded(encoder.encode([example.text for example in examples]), labels))
    return found
