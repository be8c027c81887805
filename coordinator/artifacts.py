"""What a training leaves behind, and how a model is built from it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from umbel.coordinator.onboarding.network import Onboarder
from umbel.shared.answers import Calibration
from umbel.shared.checks import count_problems, number_problems, parsed_json
from umbel.shared.errors import TrainingError, UmbelError
from umbel.shared.files import atomic_write, sha256_bytes
from umbel.shared.onboarding import PREFIX
from umbel.shared.recipe import LearningRecipe

MODEL = "model.safetensors"
DESCRIPTION = "training.json"
_COUNTS = ("steps", "best_step", "train_examples", "users")
_REPORT = (*_COUNTS, "epochs", "stopped", "curve")


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
        calibration: The temperatures of what people see; None where nobody was there to fit them on.
    """

    config: CoordinatorConfig
    labels: tuple[str, ...]
    backbone_sha256: str
    fingerprint: str
    recipe: LearningRecipe
    report: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    calibration: Calibration | None = None

    @property
    def identity(self) -> str:
        """Hash of all that a release of it depends on."""
        row = [self.fingerprint, self.recipe.as_json(), list(self.config.trainables)]
        row += [] if self.calibration is None else [self.calibration.as_json()]
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
    if trained.calibration is not None:
        description["calibration"] = trained.calibration.as_json()
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
        row = parsed_json(path.read_bytes())
        model = (folder / MODEL).read_bytes()
        if problems := _problems(row, model):
            raise _damaged(folder, problems)
        return TrainedModel(
            validated(CoordinatorConfig, row["config"], str(path)),
            tuple(row["labels"]),
            row["backbone_sha256"],
            row["fingerprint"],
            LearningRecipe.from_json(row["recipe"]),
            row["report"],
            load(model),
            Calibration.from_json(row["calibration"]) if "calibration" in row else None,
        )
    except UmbelError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, [type(error).__name__]) from error


def _damaged(folder: Path, problems: Sequence[str]) -> TrainingError:
    return TrainingError(
        f"the training in {folder} is damaged", problems, "Train again, or restore the folder."
    )


def _problems(row: Mapping[str, Any], model: bytes) -> list[str]:
    """Returns what is wrong with a model file, or with what nothing else checks of its description."""
    problems = [] if sha256_bytes(model) == row["model_sha256"] else [f"{MODEL} has another hash"]
    for name in ("backbone_sha256", "fingerprint"):
        problems += [] if isinstance(row[name], str) else [f"{name} is no text"]
    labels = row["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        problems.append("labels is no list of names")
    elif len(set(labels)) < max(2, len(labels)):
        problems.append("labels are not two or more different names")
    return problems + [f"report: {problem}" for problem in _report_problems(row["report"])]


def _report_problems(report: Mapping[str, Any]) -> list[str]:
    problems = [f"missing: {name}" for name in _REPORT if name not in report]
    if problems:
        return problems
    for name in _COUNTS:
        problems += count_problems(name, report[name], 0, 2**63 - 1)
    problems += number_problems("epochs", report["epochs"], 0.0, 1e9)
    problems += [] if isinstance(report["stopped"], str) else ["stopped is no text"]
    problems += [] if report["curve"] else ["curve is empty"]
    problems += [] if _are_prototypes(report.get("prototypes", [])) else ["prototypes are malformed"]
    for number, look in enumerate(report["curve"], 1):
        wrong = count_problems("step", look["step"], 0, 2**63 - 1)
        for name in ("loss", "heldout_loss"):
            wrong += number_problems(name, look[name], -1e300, 1e300)
        wrong += number_problems("heldout_accuracy", look["heldout_accuracy"], 0.0, 1.0)
        problems += [f"look {number} of the curve: {problem}" for problem in wrong]
    return problems


def _are_prototypes(rows: object) -> bool:
    """Says whether a report shows each prototype by pairs of a text and a label."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        return False
    pairs = [pair for row in rows for pair in row]
    return all(isinstance(pair, list) and list(map(type, pair)) == [str, str] for pair in pairs)


def rebuild(trained: TrainedModel) -> tuple[Backbone, PersonalModel]:
    """Builds the model of a finished training.

    Raises:
        BackboneError: The backbone is missing or not the one that was trained on.
        TrainingError: The saved tensors do not fit the model.
    """
    config = trained.config
    backbone = load_backbone(config.backbone.name, sha256=trained.backbone_sha256)
    model = build_model(backbone, config.task.kind, trained.labels, config.method_configs(), config.seed)
    tensors = {name: value for name, value in trained.tensors.items() if not name.startswith(PREFIX)}
    wanted = [name for name, _ in model.named_parameters() if not name.startswith("encoder.")]
    _fill(dict(model.named_parameters()), tensors, wanted)
    return backbone, model.eval()


def rebuild_onboarder(trained: TrainedModel, model: PersonalModel) -> Onboarder | None:
    """Builds the onboarding network of a finished training; None if it has none.

    Raises:
        TrainingError: The saved tensors do not fit it.
    """
    config = trained.config
    if not config.onboarding.steps:
        return None
    encoder: Any = model.encoder
    width, labels = int(encoder.config.hidden_size), len(trained.labels)
    network = Onboarder(config.onboarding, model.profile_spec(), width, labels, config.seed)
    parameters = {PREFIX + name: value for name, value in network.named_parameters()}
    tensors = {name: value for name, value in trained.tensors.items() if name.startswith(PREFIX)}
    _fill(parameters, tensors, list(parameters))
    return network.requires_grad_(False).eval()


def _fill(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], wanted: Sequence[str]) -> None:
    """Gives parameters their saved values, or says all that does not fit."""
    problems = [f"unknown tensor: {name}" for name in sorted(set(tensors) - set(parameters))]
    problems += [f"missing tensor: {name}" for name in wanted if name not in tensors]
    problems += [
        f"{name}: shape is {tuple(value.shape)}, expected {tuple(parameters[name].shape)}"
        for name, value in tensors.items()
        if name in parameters and value.shape != parameters[name].shape
    ]
    if problems:
        raise TrainingError("the saved tensors do not fit the model", problems)
    with torch.no_grad():
        for name, value in tensors.items():
            parameters[name].copy_(value)
