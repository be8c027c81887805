"""What a training leaves behind, and how a model is built from it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from umbel.coordinator.backbone import Backbone, load_backbone
from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.model import PersonalModel, build_model
from umbel.shared.errors import TrainingError, UmbelError
from umbel.shared.files import atomic_write, sha256_bytes
from umbel.shared.recipe import LearningRecipe

MODEL = "model.safetensors"
DESCRIPTION = "training.json"


@final
@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A finished training.

    Attributes:
        config: Its configuration.
        labels: Label names, in the order of the logits.
        backbone_sha256: Hash of the pretrained weights it started from.
        fingerprint: Hash of all that the tensors depend on: configuration, examples, pretrained weights.
        recipe: How devices shall learn.
        report: Steps, curve and recipe trials, for people.
        tensors: Everything that was trained, by parameter name.
    """

    config: CoordinatorConfig
    labels: tuple[str, ...]
    backbone_sha256: str
    fingerprint: str
    recipe: LearningRecipe
    report: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def identity(self) -> str:
        """Hash of all that a release of it depends on."""
        row = [self.fingerprint, self.recipe.as_json(), list(self.config.trainables)]
        return sha256_bytes(json.dumps(row).encode())


def save_trained(folder: Path, trained: TrainedModel) -> None:
    """Writes a finished training; its description comes last, so that a folder that has one is complete."""
    contiguous = {name: value.detach().cpu().contiguous().clone() for name, value in trained.tensors.items()}
    model = save(contiguous)
    atomic_write(folder / MODEL, model)
    description = {
        "model_sha256": sha256_bytes(model),
        "config": trained.config.model_dump(mode="json"),
        "labels": list(trained.labels),
        "backbone_sha256": trained.backbone_sha256,
        "fingerprint": trained.fingerprint,
        "recipe": trained.recipe.as_json(),
        "report": dict(trained.report),
    }
    atomic_write(folder / DESCRIPTION, json.dumps(description, indent=2, sort_keys=True).encode() + b"\n")


def load_trained(folder: Path) -> TrainedModel:
    """Reads a finished training.

    Raises:
        TrainingError: There is none in the folder, or it is damaged.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise TrainingError(
            f"{folder} holds no finished training",
            [f"missing: {path}"],
            "Run: umbel coordinator train CONFIG.",
        )
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        model = (folder / MODEL).read_bytes()
        if sha256_bytes(model) != row["model_sha256"]:
            raise ValueError(f"{MODEL} has another hash")
        return TrainedModel(
            validated(CoordinatorConfig, row["config"], str(path)),
            tuple(row["labels"]),
            row["backbone_sha256"],
            row["fingerprint"],
            LearningRecipe.from_json(row["recipe"]),
            row["report"],
            load(model),
        )
    except UmbelError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"the training in {folder} is damaged",
            [type(error).__name__],
            "Train again, or restore the folder.",
        ) from error


def rebuild(trained: TrainedModel) -> tuple[Backbone, PersonalModel]:
    """Builds the model of a finished training.

    Raises:
        BackboneError: The backbone is missing or not the one that was trained on.
        TrainingError: The saved tensors do not fit the model.
    """
    config = trained.config
    backbone = load_backbone(config.backbone.name, sha256=trained.backbone_sha256)
    model = build_model(backbone, config.task.kind, trained.labels, config.method_configs(), config.seed)
    parameters = dict(model.named_parameters())
    problems = [f"unknown tensor: {name}" for name in sorted(set(trained.tensors) - set(parameters))]
    wanted = [name for name in parameters if not name.startswith("encoder.")]
    problems += [f"missing tensor: {name}" for name in wanted if name not in trained.tensors]
    problems += [
        f"{name}: shape is {tuple(value.shape)}, expected {tuple(parameters[name].shape)}"
        for name, value in trained.tensors.items()
        if name in parameters and value.shape != parameters[name].shape
    ]
    if problems:
        raise TrainingError("the saved tensors do not fit the model", problems)
    with torch.no_grad():
        for name, value in trained.tensors.items():
            parameters[name].copy_(value)
    return backbone, model.eval()
