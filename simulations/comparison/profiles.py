"""umbel's own contestants: methods, their shared part trained here, their profiles learned as on a device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

from umbel.coordinator.config import CoordinatorConfig
from umbel.coordinator.methods import method_class
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.train import begun, rebase
from umbel.coordinator.training.calibrate import TorchGradients, relative, side_by_side
from umbel.coordinator.training.data import Rows
from umbel.coordinator.training.step import trained_parameters
from umbel.shared.errors import ConfigError
from umbel.shared.files import sha256_bytes
from umbel.shared.learning import minimise
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.simulations.comparison.cohort import Person
from umbel.simulations.comparison.config import ContestantConfig
from umbel.simulations.comparison.contestant import Contestant, Costs, Options, World

Reach = Literal["whole", "layers", "texts"]
"""The whole encoder, its personal layers over states that were computed once, or the texts' embeddings."""

_LOOKS = 2  # at held-out examples while training; the best one's weights are kept
_TOGETHER = 640  # examples of people who learn side by side
_BATCH = 64  # examples in one pass


class Profiles(Contestant):
    """Methods on top of the generic model; only a person's private tensors are learned.

    The shared part is trained by the coordinator's own trainer on seen people, with the encoder frozen unless
    the configuration says otherwise. A profile is then learned by the device's algorithm with torch's
    gradients, and rounded as a device stores it: that the graphs and torch agree is what the parity tests are
    for.
    """

    def __init__(self, world: World, name: str, config: ContestantConfig):
        super().__init__(world)
        self.own_name = name
        self.config = config
        self.model: PersonalModel | None = None
        self._tasks: dict[str, FloatArray] = {}
        self.more_people = reach(config) == "texts"

    def prepare(self, on_step: Callable[[int, int], None]) -> None:
        """Trains the methods' shared tensors and the head, beside the seen people's private tensors."""
        config = self._coordinator_config()
        model = self._untrained(config)
        self._tasks = self._train(model, config, on_step)
        self.model = model.requires_grad_(False).eval()

    def _untrained(self, config: CoordinatorConfig) -> PersonalModel:
        """Returns the methods on top of the generic model."""
        world = self.world
        start, labels = replace(world.backbone, module=world.generic.encoder), world.cohort.table.labels
        model = build_model(start, "classification", labels, config.method_configs(), world.seed)
        model.task.load_state_dict(world.generic.task.state_dict())
        longest = world.backbone.shape.max_tokens - model.prompt_rows()
        if world.config.max_tokens > longest:
            raise ConfigError(
                f"contestants.{self.own_name}: texts leave no room for its prompt",
                [f"max_tokens is {world.config.max_tokens}, at most {longest} fit beside the prompt"],
            )
        return model

    def _train(
        self, model: PersonalModel, config: CoordinatorConfig, on_step: Callable[[int, int], None]
    ) -> dict[str, FloatArray]:
        """Trains a model in place; returns what the seen people have learned: name -> (users, *shape)."""
        world = self.world
        fingerprint = self._fingerprint(config)
        folder = world.folder / f"training-{self.own_name}-{fingerprint[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        trainer = begun(model, world.cohort.table, config, folder, fingerprint, world.factors)
        trainer.run(lambda progress: on_step(progress.step, config.training.max_steps))
        learned = rebase(trainer)
        shutil.rmtree(folder)  # a checkpoint was for a stop in between
        return {name: values.numpy() for name, values in learned.items()}

    def _fingerprint(self, config: CoordinatorConfig) -> str:
        """Returns the hash of what the training depends on: another does not go on from its checkpoint."""
        world = self.world
        table = world.cohort.table
        rows = [
            getattr(r, part) for r in (table.train, table.validation) for part in ("text", "user", "label")
        ]
        row = [world.config.model_dump(mode="json"), config.model_dump(mode="json"), world.cohort.texts]
        data = json.dumps(row).encode() + b"".join(part.tobytes() for part in rows)
        weights = [
            value for model in (world.generic.encoder, world.generic.task) for value in model.parameters()
        ]
        return sha256_bytes(data + b"".join(value.detach().numpy().tobytes() for value in weights))

    def _coordinator_config(self) -> CoordinatorConfig:
        world, own = self.world, self.config
        encoder = f"top:{own.encoder_layers}" if own.encoder_layers else "none"
        return CoordinatorConfig.model_validate(
            {
                "seed": world.seed,
                "methods": own.methods,
                # With dropout, held-out loss was the same and a step a fifth longer.
                "backbone": {"dropout": 0.0, "train": encoder},
                "training": {
                    "traits": world.config.traits,
                    "max_steps": world.config.steps,
                    "batch_size": world.batch_size,
                    "shared_rate": own.shared_rate,
                    "private_rate": own.private_rate,
                    "backbone_rate": own.encoder_rate,
                    # Where profiles are tasks, nobody comes without one.
                    "personalised_dropout": 0.0 if world.cohort.tasks else own.personalised_dropout,
                    "head_rate": own.shared_rate,
                    "head": "adapted" if own.head == "generic" else "trained",
                    "warmup_steps": max(world.config.steps // 10, 1),
                    "evaluate_every": -(-world.config.steps // _LOOKS),
                    "checkpoint_every": world.config.steps,
                    "precision": "bfloat16" if world.bfloat16 else "float32",
                    "device": "cpu",
                },
            }
        )

    def options(self) -> Sequence[Options]:
        """Rates and priors; where profiles are tasks, training has learned them, and nothing is chosen."""
        if self.world.cohort.tasks:
            return ({},)
        return [
            {"rate": rate, "prior": prior}
            for rate, prior in product(self.config.learning_rate, self.config.prior_strength)
        ]

    def costs(self) -> Costs:
        """The profile as it is packed, and the shared tensors beyond the generic model, or other than its."""
        model = self._trained()
        spec = model.profile_spec()
        named = dict(model.named_parameters())
        shared = sum(value.numel() for name, value in named.items() if name.startswith("methods."))
        if self.config.encoder_layers:
            layers = trained_parameters(model, self._coordinator_config().backbone)
            shared += sum(value.numel() for name, value in layers.items() if name.startswith("encoder."))
            model.requires_grad_(False)
        return Costs(spec.packed_bytes, sum(tensor.size for tensor in spec.tensors), shared)

    def logits(self, people: Sequence[Person], k: int, options: Options) -> list[FloatArray]:
        """Learns the people's profiles side by side, a batch at a time; each for themselves."""
        found: list[FloatArray] = []
        together = max(1, _TOGETHER // max(k, 1))
        for at in range(0, len(people), together):
            found += self._side_by_side(people[at : at + together], k, options)
        return found

    def _side_by_side(self, people: Sequence[Person], k: int, options: Options) -> list[FloatArray]:
        profile = self._trained().profile_spec().zeros(len(people))
        if self.world.cohort.tasks:
            index = [self.world.cohort.table.users.index(person.user) for person in people]
            profile = {name: values[index] for name, values in self._tasks.items()}
        elif k > 0:
            profile = self._fitted([p.support.take(np.arange(k)) for p in people], profile, options)
        return self._predicted([person.query for person in people], profile)

    def _fitted(
        self, supports: Sequence[Rows], origin: Mapping[str, FloatArray], options: Options
    ) -> dict[str, FloatArray]:
        """Learns profiles (users, *shape) side by side, from where they start and pulled to there."""
        model, world = self._trained(), self.world
        tokens = world.cohort.data.tokens
        twin = TorchGradients(model, tokens, bfloat16=world.bfloat16)
        recipe = LearningRecipe(
            steps=world.config.learning_steps,
            learning_rate=options["rate"],
            prior_strength=options["prior"],
            **relative(model),
        )
        support = side_by_side(supports)
        parts = tokens.like_length(_BATCH, support.text)
        return minimise(lambda values: _learn(twin, support, parts, values), origin, recipe)

    def _predicted(self, queries: Sequence[Rows], profile: Mapping[str, FloatArray]) -> list[FloatArray]:
        """Returns each query's logits (query, labels) under one's profile, rounded as a device stores it."""
        model, world = self._trained(), self.world
        tokens = world.cohort.data.tokens
        twin = TorchGradients(model, tokens, bfloat16=world.bfloat16)
        rounded = model.profile_spec().rounded(profile)
        query = side_by_side(queries)
        logits = np.empty((len(query), len(world.cohort.data.labels)), np.float32)
        for part in tokens.like_length(_BATCH, query.text):
            logits[part] = twin.logits(query.take(part), rounded)
        ends = np.cumsum([len(own) for own in queries])
        return [np.asarray(part) for part in np.split(logits, ends[:-1])]

    def _trained(self) -> PersonalModel:
        if self.model is None:
            raise RuntimeError("prepare() comes first")
        return self.model


def _learn(
    twin: TorchGradients,
    rows: Rows,
    parts: Sequence[npt.NDArray[np.intp]],
    profile: Mapping[str, FloatArray],
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Returns what `twin.learn` does, batch by batch: gradients of a sum add up."""
    nll = np.empty(len(rows), np.float32)
    total = {name: np.zeros_like(values) for name, values in profile.items()}
    for part in parts:
        nll[part], gradients = twin.learn(rows.take(part), profile)
        for name, gradient in gradients.items():
            total[name] += gradient
    return nll, total


def reach(config: ContestantConfig) -> Reach:
    """Says how much of the encoder a contestant acts on: prompts on the whole, some on its output alone."""
    kinds = [method_class(name) for name in config.methods]
    if any(kind.acts_before() for kind in kinds):
        return "whole"
    if config.encoder_layers or any(kind.acts_inside() for kind in kinds):
        return "layers"
    return "texts"
