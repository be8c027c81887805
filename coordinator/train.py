"""`umbel coordinator train`: from examples of seen users to a finished training, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from umbel.coordinator.artifacts import (
    DESCRIPTION,
    TrainedModel,
    load_trained,
    rebuild,
    rebuild_onboarder,
    save_trained,
)
from umbel.coordinator.backbone import Backbone, load_backbone
from umbel.coordinator.config import BackboneConfig, CoordinatorConfig
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.onboarding.network import Onboarder
from umbel.coordinator.onboarding.training import OnboardingTrainer, found_players, starts_of
from umbel.coordinator.training.adapt import ORDER, Keeper, adapt
from umbel.coordinator.training.board import Board
from umbel.coordinator.training.calibrate import TorchGradients, choose_recipe
from umbel.coordinator.training.checkpoint import CHECKPOINT, Progress
from umbel.coordinator.training.collaborative import Factors, found_factors
from umbel.coordinator.training.data import TrainingData, prepare
from umbel.coordinator.training.speed import fuse_attention
from umbel.coordinator.training.start import start_shared, start_users
from umbel.coordinator.training.step import set_dropout, trained_parameters
from umbel.coordinator.training.table import over_embeddings
from umbel.coordinator.training.temperature import fit_calibration
from umbel.coordinator.training.threads import computing_with
from umbel.coordinator.training.trainer import ASIDE, Trainer, training_device, uses_bfloat16
from umbel.coordinator.training.traits import TraitHead
from umbel.coordinator.training.workers import ALONE, Workers, joined
from umbel.shared.answers import Calibration
from umbel.shared.errors import ConfigError, TrainingError
from umbel.shared.examples import Example, labels_of
from umbel.shared.files import refuse_taken, sha256_bytes, sole_use
from umbel.shared.onboarding import PREFIX
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import integer_seed
from umbel.shared.text import TextEncoder

_OTHER_TRAINING = "Name one of this very configuration."
_TRAIN, _NOTHING_TO_DO = "train", "nothing to do"
_OTHER_OUT = "Choose another --out, or pass --restart to train again there."

ADAPTATION = "adaptation"
ONBOARDING = "onboarding"
"""Folders, in a training's own, of the checkpoints of what comes before and after; gone at the end."""

OnProgress = Callable[[str, int, int, str], None]
"""Called with (phase, steps done, steps in all, a few words on how it goes)."""


def _silent(phase: str, done: int, total: int, words: str) -> None:
    """Reports to nobody."""


def train(
    config: CoordinatorConfig,
    examples: Sequence[Example],
    out: Path,
    *,
    threads: int = 2,
    restart: bool = False,
    finished: Path | None = None,
    on_progress: OnProgress = _silent,
) -> TrainedModel:
    """Trains what everyone shares, and chooses how devices learn.

    A finished training of the same configuration and examples in `out` is returned as it is; an unfinished
    one goes on from its last checkpoint, to the same bits (on CPU) as without the stop. Where only [recipe]
    or the trainables differ from those of a finished training, nothing is trained again: the recipe is
    chosen anew.

    Where torchrun has started several processes, all of them call this: each computes its share of every
    step, the first one writes to `out`, and all return the same.

    Args:
        config: What to train and how.
        examples: Examples of seen users: public data, or given with consent.
        out: Folder of checkpoints, metrics and the finished model.
        threads: Torch threads; part of what gives the same bits.
        restart: Forget what is in `out`.
        finished: Folder of a finished training to take into `out` instead of training there.
        on_progress: Hears how it goes.

    Raises:
        BusyError: Another process trains in `out`.
        ConfigError: `out` holds something else, such as a run or a release, or a head is to stay that nothing
            has trained.
        TrainingError: `out` or `finished` holds another training, or there is too little to train on.
        BackboneError: The backbone cannot be loaded.
        ExampleError: A label is not among the configured ones.
    """
    with joined(training_device(config.training.device).type == "cuda") as workers, arithmetic(threads):
        if not workers.first:
            return _helped(config, examples, out, workers, on_progress)
        refuse_taken(out, own=DESCRIPTION)
        with sole_use(out):
            trained = _train(config, examples, out, restart, finished, on_progress, workers)
        workers.from_first(_sent(trained))
        return trained


@contextmanager
def arithmetic(threads: int) -> Iterator[None]:
    """Sets torch's threads, and rounds denormals to 0: moments of the absent decay to them, which is slow.

    Both hold for the whole process, numpy included, so they are set back.
    """
    with computing_with(threads):
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(False)


def _train(
    config: CoordinatorConfig,
    examples: Sequence[Example],
    out: Path,
    restart: bool,
    finished: Path | None,
    on_progress: OnProgress,
    workers: Workers,
) -> TrainedModel:
    """Does what the first worker does."""
    backbone, fingerprint = _begun_alike(config, examples, workers)
    here = (out / DESCRIPTION).is_file() and not restart
    earlier = _finished(out, fingerprint) if here else None
    if not here and finished is not None:
        earlier = _finished(finished, fingerprint, _OTHER_TRAINING)
    if here and earlier is not None and earlier.config == config:
        workers.from_first(_NOTHING_TO_DO)
        return earlier
    model, data = _prepared(config, examples, backbone)
    if restart:
        _forget(out)
    workers.from_first(_NOTHING_TO_DO if earlier else _TRAIN)
    if earlier is None:
        texts = list(dict.fromkeys(example.text for example in examples))  # in the order of data.tokens
        trained = _run(config, backbone, model, data, texts, out, fingerprint, on_progress, workers)
    else:
        trained = _reused(earlier, config, data, on_progress)
    save_trained(out, trained)
    (out / CHECKPOINT).unlink(missing_ok=True)
    for name in (ADAPTATION, ONBOARDING):
        shutil.rmtree(out / name, ignore_errors=True)
    return trained


def _helped(
    config: CoordinatorConfig,
    examples: Sequence[Example],
    out: Path,
    workers: Workers,
    on_progress: OnProgress,
) -> TrainedModel:
    """Does what every other worker does: its share of each step; what is trained, the first one tells."""
    backbone, fingerprint = _begun_alike(config, examples, workers)
    if workers.from_first(None) == _TRAIN:
        model, data = _prepared(config, examples, backbone)
        _trained_together(config, model, data, out, fingerprint, on_progress, workers)
    return _received(workers.from_first(None), config)


def _sent(trained: TrainedModel) -> tuple[Any, ...]:
    """Returns a finished training without its configuration, in parts that can be sent."""
    calibration = None if trained.calibration is None else trained.calibration.as_json()
    named = (trained.labels, trained.backbone_sha256, trained.fingerprint, trained.recipe.as_json())
    return *named, dict(trained.report), dict(trained.tensors), calibration


def _received(parts: tuple[Any, ...], config: CoordinatorConfig) -> TrainedModel:
    labels, sha256, fingerprint, recipe, report, tensors, calibration = parts
    return TrainedModel(
        config,
        labels,
        sha256,
        fingerprint,
        LearningRecipe.from_json(recipe),
        report,
        tensors,
        None if calibration is None else Calibration.from_json(calibration),
    )


def _begun_alike(
    config: CoordinatorConfig, examples: Sequence[Example], workers: Workers
) -> tuple[Backbone, str]:
    """Returns the backbone and the training's fingerprint, once all workers have the same."""
    if config.training.head == "adapted" and not config.training.adapt_steps:
        raise ConfigError(
            "training.head = 'adapted' leaves the task head as training.adapt_steps made it, and that is 0",
            hint="Give adapt_steps under [training], and what of the encoder is trained: [backbone] train.",
        )
    backbone = load_backbone(config.backbone.name, sha256=config.backbone.sha256)
    fingerprint = _fingerprint(config, examples, backbone)
    workers.agree("training (its fingerprint)", fingerprint)
    return backbone, fingerprint


def _prepared(
    config: CoordinatorConfig, examples: Sequence[Example], backbone: Backbone
) -> tuple[PersonalModel, TrainingData]:
    """Returns the model as it is made, and what it is trained on."""
    labels = config.task.labels or labels_of(examples)
    if len(labels) < 2:
        raise TrainingError(
            "there is nothing to tell apart", [f"labels found: {len(labels)}, at least 2 are needed"]
        )
    model = build_model(backbone, config.task.kind, labels, config.method_configs(), config.seed)
    longest = min(config.backbone.max_tokens, model.longest_text(backbone.shape))
    encoder = TextEncoder(backbone.tokenizer_json, longest)
    data = prepare(examples, labels, encoder, config.training, config.seed)
    if config.onboarding.steps:
        found_players(data)  # it comes last, and would fail after everything else
    fuse_attention(model.encoder, training_device(config.training.device))
    return model, data


def read_finished(config: CoordinatorConfig, examples: Sequence[Example], folder: Path) -> TrainedModel:
    """Reads a finished training that may stand for this one.

    Raises:
        TrainingError: There is none in the folder, it is damaged, or of another configuration or examples.
        BackboneError: The backbone cannot be loaded.
    """
    backbone = load_backbone(config.backbone.name, sha256=config.backbone.sha256)
    return _finished(folder, _fingerprint(config, examples, backbone), _OTHER_TRAINING)


def _reused(
    earlier: TrainedModel, config: CoordinatorConfig, data: TrainingData, on_progress: OnProgress
) -> TrainedModel:
    """Returns a finished training under a configuration that differs in what nothing is trained by."""
    if earlier.config.recipe == config.recipe:
        return replace(earlier, config=config)
    _, model = rebuild(earlier)
    network = rebuild_onboarder(earlier, model)
    model, data, _ = _behind(model, data, config, on_progress)
    recipe, trials, calibration = _choose(model, data, config, on_progress, network)
    report = {**earlier.report, "recipe_trials": trials}
    return replace(earlier, config=config, recipe=recipe, report=report, calibration=calibration)


def _choose(
    model: PersonalModel,
    data: TrainingData,
    config: CoordinatorConfig,
    on_progress: OnProgress,
    network: Onboarder | None,
) -> tuple[LearningRecipe, list[dict[str, Any]], Calibration | None]:
    starts = None if network is None else starts_of(network, model, data.tokens, data.calibration)
    recipe, trials = choose_recipe(
        model,
        data.tokens,
        data.calibration,
        config.recipe,
        lambda n, of: on_progress("choose recipe", n, of, ""),
        starts,
    )
    twin = TorchGradients(model, data.tokens)
    return recipe, trials, fit_calibration(twin, data.calibration, config.recipe, recipe, starts)


def _onboarder(
    trainer: Trainer, profiles: Mapping[str, Tensor], folder: Path, on_progress: OnProgress
) -> tuple[Onboarder, list[list[tuple[int, int]]]]:
    config = trainer.config
    folder.mkdir(exist_ok=True)
    onboarding = OnboardingTrainer(
        trainer.model.to(trainer.device),
        trainer.data,
        profiles,
        config,
        folder,
        trainer.fingerprint,
        bfloat16=uses_bfloat16(config.training.precision, trainer.device),
    )
    network = onboarding.run(lambda done, of: on_progress("train onboarding", done, of, ""))
    trainer.model.cpu()
    return network, onboarding.representatives()


def _run(
    config: CoordinatorConfig,
    backbone: Backbone,
    model: PersonalModel,
    data: TrainingData,
    texts: Sequence[str],
    out: Path,
    fingerprint: str,
    on_progress: OnProgress,
    workers: Workers,
) -> TrainedModel:
    trainer, adapted = _trained_together(config, model, data, out, fingerprint, on_progress, workers)
    model, data, progress = trainer.model, trainer.data, trainer.progress
    profiles = rebase(trainer)
    network: Onboarder | None = None
    shown: list[list[tuple[int, int]]] = []
    if config.onboarding.steps:
        network, shown = _onboarder(trainer, profiles, out / ONBOARDING, on_progress)
    recipe, trials, calibration = _choose(model, data, config, on_progress, network)
    report = {
        "steps": progress.step,
        "epochs": round(progress.step / max(len(data.train) / config.training.batch_size, 1e-9), 2),
        "best_step": progress.best_step,
        "stopped": progress.stopped,
        "train_examples": len(data.train),
        "users": len(data.users),
        "calibration_users": len(data.calibration),
        "curve": progress.curve,
        "recipe_trials": trials,
    }
    tensors = {
        n: value.detach() for n, value in (adapted | trainer.weights).items() if not n.startswith(ASIDE)
    }
    if network is not None:
        tensors |= {PREFIX + name: value.detach() for name, value in network.named_parameters()}
        report["prototypes"] = [[[texts[row], data.labels[label]] for row, label in rows] for rows in shown]
    described = (config, data.labels, backbone.sha256, fingerprint)
    return TrainedModel(*described, recipe, report, tensors, calibration)


def _trained_together(
    config: CoordinatorConfig,
    model: PersonalModel,
    data: TrainingData,
    out: Path,
    fingerprint: str,
    on_progress: OnProgress,
    workers: Workers,
) -> tuple[Trainer, dict[str, Tensor]]:
    """Does what workers share: returns the trainer at its end, and the encoder as it was adapted."""
    factors = factors_of(data, config)
    adapted = _adapted(model, data, config, factors, out / ADAPTATION, fingerprint, on_progress, workers)
    model, data, behind = _behind(model, data, config, on_progress)
    trainer = begun(model, data, behind, out, fingerprint, factors, workers)
    with closing(Board(out)) if workers.first else nullcontext() as board:

        def after_step(reached: Progress) -> None:
            if board is not None:
                board.follow(reached.curve)
            last = reached.curve[-1] if reached.curve else None
            on_progress("train", reached.step, config.training.max_steps, _words(last))

        trainer.run(after_step)
    return trainer, adapted


def _behind(
    model: PersonalModel, data: TrainingData, config: CoordinatorConfig, on_progress: OnProgress
) -> tuple[PersonalModel, TrainingData, CoordinatorConfig]:
    """Puts a table of embeddings in the encoder's place, where all that is still trained lies behind it.

    Texts are read as devices read them, in float32 and without dropout, and what is left to compute is too
    small to gain by fewer bits. With dropout asked for, the encoder stays.
    """
    joint = config.backbone.train != "none" and not config.training.adapt_steps
    if joint or config.backbone.dropout or not model.acts_on_embeddings():
        return model, data, config
    model.to(training_device(config.training.device))
    tabled, tokens = over_embeddings(
        model, data.tokens, on_text=lambda done, of: on_progress("read the texts", done, of, "")
    )
    torch.set_num_threads(1)  # until training ends: more would wait for each other
    training = config.training.model_copy(update={"precision": "float32"})
    return tabled, replace(data, tokens=tokens), config.model_copy(update={"training": training})


def begun(
    model: PersonalModel,
    data: TrainingData,
    config: CoordinatorConfig,
    out: Path,
    fingerprint: str,
    factors: Factors | None,
    workers: Workers = ALONE,
) -> Trainer:
    """Returns a trainer whose shared and private tensors have the first values that their methods want.

    Args:
        model: As it was made.
        data: What it is trained on.
        config: The training's configuration.
        out: Where checkpoints lie.
        fingerprint: Hash of all that the result depends on.
        factors: What `factors_of` found.
        workers: Processes that share each step.
    """
    traits = None
    joint = config.backbone.train != "none" and not config.training.adapt_steps
    if factors is not None and joint:
        traits = _trait_head(model, data, config, factors)
    trained = config if joint else config.model_copy(update={"backbone": _frozen(config.backbone)})
    trainer = Trainer(model, data, trained, out, fingerprint, traits, workers)
    with trainer.precision():
        start_shared(model, data)
        start_users(model, trainer.table, data, factors, config.seed)
    return trainer


def _frozen(backbone: BackboneConfig) -> BackboneConfig:
    return backbone.model_copy(update={"train": "none"})


def _trait_head(
    model: PersonalModel, data: TrainingData, config: CoordinatorConfig, factors: Factors
) -> TraitHead:
    rng = torch.Generator().manual_seed(integer_seed(config.seed, 0, "", "init trait head"))
    encoder: Any = model.encoder
    return TraitHead(factors, int(encoder.config.hidden_size), len(data.tokens), rng)


def _adapted(
    model: PersonalModel,
    data: TrainingData,
    config: CoordinatorConfig,
    factors: Factors | None,
    folder: Path,
    fingerprint: str,
    on_progress: OnProgress,
    workers: Workers,
) -> dict[str, Tensor]:
    """Adapts the encoder, if so configured; returns by name what was trained of it, and a head that stays."""
    training = config.training
    if not training.adapt_steps:
        return {}
    device = training_device(training.device)
    named = trained_parameters(model.to(device), config.backbone)
    encoder = {n: v for n, v in named.items() if n.startswith("encoder.")}
    # Most word embeddings are in no text of the data; leaving all of them saves half of a step's memory.
    encoder = {n: v for n, v in encoder.items() if not n.startswith("encoder.embeddings.")}
    head = {n: v for n, v in named.items() if n.startswith("task.")}
    if config.backbone.dropout is not None:
        set_dropout(model.encoder, config.backbone.dropout)
    bfloat16 = uses_bfloat16(training.precision, device)
    keeper = None
    if workers.first:
        folder.mkdir(parents=True, exist_ok=True)
        keeper = Keeper(folder, sha256_bytes(f"{fingerprint}: {ORDER}".encode()))
    adapt(
        model,
        [(head, training.head_rate), (encoder, training.adapt_rate)],
        data,
        steps=training.adapt_steps,
        batch_size=training.batch_size,
        seed=config.seed,
        precision=lambda: torch.autocast(device.type, torch.bfloat16, enabled=bfloat16),
        on_step=lambda done, of: on_progress("adapt the encoder", done, of, ""),
        traits=None if factors is None else _trait_head(model, data, config, factors).to(device),
        keeper=keeper,
        workers=workers,
    )
    kept = encoder | head if training.head == "adapted" else encoder
    return {name: value.detach().cpu().clone() for name, value in kept.items()}


def factors_of(data: TrainingData, config: CoordinatorConfig) -> Factors | None:
    """Returns what judgements alone say of users and texts, where that says anything."""
    users, labels, size = len(data.users), len(data.labels), config.training.traits
    return found_factors(data.train, data.validation, users, labels, size, config.seed)


def rebase(trainer: Trainer) -> dict[str, Tensor]:
    """Puts the shared tensors into the basis where few-shot learning goes best.

    Returns:
        The seen users' private tensors in that basis, by name: (users, *shape).
    """
    profile = {name: value.detach().cpu() for name, value in trainer.table.as_profile().items()}
    trainer.model.cpu()
    for method in trainer.model.method_list():
        profile = method.rebase(profile)
    return profile


def _words(row: dict[str, float] | None) -> str:
    return "" if row is None else f"held-out {row['heldout_accuracy']:.3f}"


def _fingerprint(config: CoordinatorConfig, examples: Sequence[Example], backbone: Backbone) -> str:
    """Returns the hash of all that the trained tensors depend on."""
    unread: Any = {"rounds"} if config.onboarding.steps else True
    row = config.model_dump(mode="json", exclude={"recipe": True, "trainables": True, "onboarding": unread})
    if config.training.head == "trained":
        del row["training"]["head"]  # as it was hashed before there was one
    del row["training"]["compile"]  # what is computed is the same
    digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode())
    digest.update(backbone.sha256.encode())
    for example in examples:
        digest.update(json.dumps([example.user, example.text, example.label, example.time]).encode())
    return digest.hexdigest()


def _finished(folder: Path, fingerprint: str, hint: str = _OTHER_OUT) -> TrainedModel:
    trained = load_trained(folder)
    if trained.fingerprint != fingerprint:
        raise TrainingError(
            f"{folder} holds a finished training of another configuration or of other examples",
            [f"its fingerprint is {trained.fingerprint[:12]}, this training's is {fingerprint[:12]}"],
            hint,
        )
    return trained


def _forget(out: Path) -> None:
    for name in (DESCRIPTION, CHECKPOINT):
        (out / name).unlink(missing_ok=True)
    for name in (ADAPTATION, ONBOARDING):
        shutil.rmtree(out / name, ignore_errors=True)
