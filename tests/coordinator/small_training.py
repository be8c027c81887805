"""A training of seconds on a tiny backbone and made-up people; also a program, so that a test can kill it.

python -m tests.coordinator.small_training BACKBONE OUT trains in OUT, and prints the number of each step.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from tests.builders import WORDS

from umbel.coordinator.artifacts import TrainedModel
from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.train import OnProgress, train
from umbel.shared.examples import Example
from umbel.shared.rng import generator

STEPS = 24


def small_config(folder: str, **changes: Any) -> CoordinatorConfig:
    """Returns a configuration whose checkpoints, looks and epochs fall on different steps."""
    training = {
        "max_steps": STEPS,
        "batch_size": 16,
        "evaluate_every": 7,
        "checkpoint_every": 5,
        "warmup_steps": 2,
        "shared_rate": 0.01,
        "head_rate": 0.03,
        "patience": 50,
        "device": "cpu",
        "precision": "float32",
    }
    row: dict[str, Any] = {
        "backbone": {"name": folder, "max_tokens": 16, **changes.pop("backbone", {})},
        "methods": {"plora": {"rank": 3, "alpha": 6.0, "user_size": 5, "dropout": 0.1}},
        "training": training | changes.pop("training", {}),
        "recipe": {"steps": [4], "prior_strength": [1.0], "k": [2], "users": 2, **changes.pop("recipe", {})},
        "trainables": ["task.*", "methods.*"],
    }
    return validated(CoordinatorConfig, row | changes, "the test's configuration")


def people(users: int = 12, count: int = 12) -> list[Example]:
    """Returns examples of people who all like "good", except every third one, who likes "bad" instead."""
    examples = []
    for user in range(users):
        rng = generator(0, 0, str(user), "people")
        for _ in range(count):
            words = [WORDS[i] for i in rng.integers(len(WORDS), size=3)]
            mood = ("good", "bad")[int(rng.integers(2))]
            likes = mood == ("bad" if user % 3 == 0 else "good")
            examples.append(Example(f"person {user}", " ".join([mood, *words[1:]]), "yes" if likes else "no"))
    return examples


def train_small(
    folder: str, out: Path, on_progress: OnProgress | None = None, **changes: Any
) -> TrainedModel:
    """Trains on one thread, which is part of what gives the same bits."""
    silent: dict[str, Any] = {} if on_progress is None else {"on_progress": on_progress}
    kept = {name: changes.pop(name) for name in ("restart", "finished") if name in changes}
    examples = changes.pop("examples", None) or people()
    return train(small_config(folder, **changes), examples, out, threads=1, **kept, **silent)


def _main(backbone: str, out: str) -> None:
    torch.set_num_threads(1)

    def tell(phase: str, done: int, _total: int, _words: str) -> None:
        print(phase, done, flush=True)

    try:
        train_small(backbone, Path(out), tell)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        raise SystemExit(130) from None


if __name__ == "__main__":
    _main(*sys.argv[1:])
