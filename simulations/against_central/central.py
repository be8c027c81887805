"""Central training of a release's trainables on examples that the coordinator has in the clear."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import torch

from umbel.coordinator.artifacts import TrainedModel, rebuild
from umbel.coordinator.config import CoordinatorConfig
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.train import arithmetic
from umbel.coordinator.training.checkpoint import Progress
from umbel.coordinator.training.data import TrainingData, prepare
from umbel.coordinator.training.start import start_users
from umbel.coordinator.training.table import behind_table
from umbel.coordinator.training.trainer import Trainer
from umbel.shared.examples import Example
from umbel.shared.profile import FloatArray
from umbel.shared.text import TextEncoder
from umbel.simulations.against_central.library import Library

OnLook = Callable[[int, Mapping[str, FloatArray]], None]
"""Called with (steps so far, the trainables' values)."""
_NEVER = 10**9


@final
class Pool:
    """Pooled examples, their texts read once where that is enough, and the model to begin with."""

    def __init__(self, start: TrainedModel, library: Library, examples: Sequence[Example], threads: int):
        """Takes what the texts are read as.

        Args:
            start: The training whose release both sides begin with.
            library: It has the texts, by that release.
            examples: Everybody's.
            threads: Torch's.
        """
        config = start.config
        backbone, self._model = rebuild(start)
        longest = min(config.backbone.max_tokens, self._model.longest_text(backbone.shape))
        encoder = TextEncoder(backbone.tokenizer_json, longest)
        # Nobody is kept out for a recipe: devices learn by the start's on both sides.
        training = config.training.model_copy(update={"calibration_share": 0.0})
        self._data = prepare(examples, start.labels, encoder, training, config.seed)
        self._threads = threads
        # In the order of data.tokens.
        embeddings = library.embeddings(list(dict.fromkeys(example.text for example in examples)))
        if embeddings is not None:
            self._model, tokens = behind_table(self._model, torch.tensor(embeddings))
            self._data = replace(self._data, tokens=tokens)

    def train(
        self, config: CoordinatorConfig, trainables: Sequence[str], every: int, folder: Path, on_look: OnLook
    ) -> None:
        """Trains by the coordinator's own steps, private tensors jointly, to the last of them.

        Args:
            config: How; the training's own early stopping is off.
            trainables: What is trained of what is shared, and nothing else.
            every: Steps between looks.
            folder: Of checkpoints; it is cleared before and after.
            on_look: Called at step 0, every so many steps, and after the last.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        never = {"patience": _NEVER, "evaluate_every": _NEVER, "checkpoint_every": _NEVER}
        config = config.model_copy(
            update={"training": config.training.model_copy(update={**never, "precision": "float32"})}
        )
        with arithmetic(self._threads):
            trainer = _begun(copy.deepcopy(self._model), self._data, config, trainables, folder)

            def values() -> dict[str, FloatArray]:
                return {name: trainer.weights[name].detach().cpu().numpy().copy() for name in trainables}

            def after_step(reached: Progress) -> None:
                if reached.step % every == 0 or reached.step == config.training.max_steps:
                    on_look(reached.step, values())

            on_look(0, values())
            trainer.run(after_step)
        shutil.rmtree(folder, ignore_errors=True)


def _begun(
    model: PersonalModel,
    data: TrainingData,
    config: CoordinatorConfig,
    trainables: Sequence[str],
    folder: Path,
) -> Trainer:
    """Returns a trainer that begins with the model's shared tensors as they are."""
    trainer = Trainer(model, data, config, folder, fingerprint="")
    missing = [name for name in trainables if name not in trainer.weights]
    if missing:
        raise ValueError(f"the coordinator does not train: {', '.join(missing)}")
    for name, value in trainer.weights.items():
        if not name.startswith("users/"):
            value.requires_grad_(name in trainables)
    start_users(model, trainer.table, data, None, config.seed)
    return trainer
