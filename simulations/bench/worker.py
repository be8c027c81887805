"""umbel's work that is timed in a running process: python -m umbel.simulations.bench.worker THREADS.

It is a device's own code, and imports nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.prediction import reader
from umbel.shared.adamw import AdamW
from umbel.shared.profile import FloatArray
from umbel.shared.release import read_release
from umbel.simulations.bench.rival.harness import Prepare, Work, now_bytes, serve
from umbel.simulations.bench.staging import profiles_of

_NOTHING: dict[str, FloatArray] = {}


def predicting(threads: int) -> Prepare:
    """Returns what prepares a batch whose rows belong to so many people in turn."""

    def prepare(release: str, texts: list[str], people: int, precision: str) -> tuple[Work, Any]:
        engine = reader(Engine(read_release(Path(release)), threads=threads, alone=True), precision)
        tokens = engine.encode(texts)
        profile = profiles_of(engine.release.manifest.profile, people)
        owner = np.arange(len(texts)) % people

        def work() -> FloatArray:
            return engine.predict(tokens, owner, profile, _NOTHING)

        return work, work().tolist()

    return prepare


def stepping(threads: int) -> Prepare:
    """Returns what prepares one step of learning: the gradient of all examples, and AdamW."""

    def prepare(release: str, texts: list[str], labels: list[int], precision: str) -> tuple[Work, Any]:
        engine = reader(Engine(read_release(Path(release)), threads=threads, alone=True), precision)
        tokens, numbers = engine.encode(texts), np.array(labels, np.int64)
        owner = np.zeros(len(texts), np.int64)
        recipe = engine.release.manifest.recipe
        optimizer, state = AdamW(recipe), engine.release.manifest.profile.zeros(1)

        def gradients() -> tuple[FloatArray, dict[str, FloatArray]]:
            return engine.learn(tokens, numbers, owner, state, _NOTHING)

        def work() -> None:
            nonlocal state
            _, found = gradients()
            origin = engine.release.manifest.profile.zeros(1)
            pulled = {
                name: found[name] + recipe.prior_of(name) * (state[name] - origin[name]) for name in found
            }
            state = optimizer.step(state, pulled)

        nll, first = gradients()
        return work, [[float(nll.sum())], np.concatenate([first[name].ravel() for name in first]).tolist()]

    return prepare


def holding(threads: int) -> Prepare:
    """Returns what tells the memory that the process holds with so many people, after a prediction."""

    def prepare(release: str, texts: list[str], people: int) -> tuple[Work, Any]:
        engine = Engine(read_release(Path(release)), threads=threads, alone=True)
        profile = profiles_of(engine.release.manifest.profile, people)
        engine.predict(engine.encode(texts[:1]), np.array([people - 1]), profile, _NOTHING)
        return int, now_bytes()

    return prepare


TASKS: dict[str, Callable[[int], Prepare]] = {
    "predict": predicting,
    "step": stepping,
    "held": holding,
}


def main() -> None:
    """Serves."""
    threads = int(sys.argv[1])
    serve({name: make(threads) for name, make in TASKS.items()})


if __name__ == "__main__":
    main()
