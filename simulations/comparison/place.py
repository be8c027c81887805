"""One data set under one seed: its people, its generic model, and what a cell's figures depend on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.training.collaborative import Factors, found_factors
from umbel.coordinator.training.data import Rows, TrainingData
from umbel.coordinator.training.trainer import uses_bfloat16
from umbel.shared.files import sha256_bytes
from umbel.shared.text import TextEncoder
from umbel.simulations.comparison.cache import text_model, upper_model
from umbel.simulations.comparison.cohort import Cohort, gather_cohort
from umbel.simulations.comparison.coldstart import ColdStart
from umbel.simulations.comparison.config import ComparisonConfig, ContestantConfig
from umbel.simulations.comparison.contestant import Contestant, World, mixed
from umbel.simulations.comparison.generic import GENERIC_VERSION, generic_model
from umbel.simulations.comparison.profiles import Profiles, Reach, reach
from umbel.simulations.comparison.results import Precision
from umbel.simulations.comparison.rivals import REGISTRY
from umbel.simulations.progress import Progress


def settings_of(config: ComparisonConfig, data: str, seed: int, contestant: str) -> str:
    """Returns the hash of all in configuration and code that a cell's figures depend on.

    Of the code that is what its authors number: the version of the generic model, of umbel's contestants, and
    of each rival, with the rates that it tries. Methods' options count with their defaults.
    """
    own: Any
    unread = {"rivals", "rival_steps", "text_steps", "more_calibration_users"}
    if contestant in config.contestants:
        section = config.contestants[contestant]
        own = [contestant_class(section).version, section.resolved()]
        if reach(section) == "texts":
            unread = {"rivals", "rival_steps", "steps", "training_users", "personal_layers"}
            # As it was hashed before there were some.
            unread |= set() if config.data[data].more_calibration_users else {"more_calibration_users"}
    else:
        kind = REGISTRY[contestant]
        own = [contestant, kind.version, getattr(kind, "rates", None)]
        trains = kind.prepare is not Contestant.prepare
        unread = {"rivals", "steps", "text_steps", "more_calibration_users"}
        unread |= set() if trains else {"rival_steps"}
    if not config.data[data].choosiness:
        unread.add("choosiness")  # as it was hashed before there was one
    return _hashed(
        config.data[data].model_dump(mode="json", exclude=unread),
        own,
        seed,
        config.batch_size,
        config.backbone.model_dump(mode="json"),
        GENERIC_VERSION,
    )


@final
class Place:
    """One data set under one seed; its generic model is trained when the first contestant wants it."""

    def __init__(
        self,
        name: str,
        seed: int,
        config: ComparisonConfig,
        folder: Path,
        out: Path,
        backbone: Backbone,
        *,
        restart: bool = False,
    ):
        """Reads the people.

        Args:
            name: The data set.
            seed: Of everything random.
            config: What is compared.
            folder: Folder of the public data sets.
            out: The run's folder.
            backbone: The pretrained encoder.
            restart: Train the generic model again, if there is one.
        """
        self.restart = restart
        self.name, self.seed, self.config, self.out = name, seed, config, out
        self.backbone = backbone
        self.precision: Precision = "bfloat16" if uses_bfloat16("auto") else "float32"
        self.section = config.data[name]
        encoder = TextEncoder(backbone.tokenizer_json, self.section.max_tokens)
        self.cohort: Cohort = gather_cohort(
            name, self.section, folder / self.section.folder, encoder, max(self.section.k), seed
        )
        self._full: World | None = None
        self._parts: dict[Reach, World] = {}

    def identity(self, contestant: str, precision: Precision | None = None) -> str:
        """Returns the hash of all that a cell's figures depend on: settings, weights, examples, precision.

        Args:
            contestant: Whose cell it is.
            precision: The one in which it was measured, on a machine with other units; None: this one's.
        """
        settings = settings_of(self.config, self.name, self.seed, contestant)
        row = [settings, self.examples, precision or self.precision]
        own, further = self.config.contestants.get(contestant), self.cohort.more_calibration
        if further and own is not None and reach(own) == "texts":
            row.append(_hashed([_digest(person.support, person.query) for person in further]))
        return _hashed(*row)

    @cached_property
    def examples(self) -> str:
        """The hash of what all cells of the place depend on: examples and weights."""
        cohort = self.cohort
        people = [_digest(p.support, p.query) for p in (*cohort.people, *cohort.more, *cohort.calibration)]
        return _hashed(people, *self._seen())

    def contestant(self, name: str, progress: Progress) -> Contestant:
        """Makes a contestant: methods of umbel's, or a rival."""
        own = self.config.contestants.get(name)
        if own is not None:
            return contestant_class(own)(self.world(reach(own), progress), name, own)
        kind = REGISTRY[name]
        if kind.pretrained:
            return kind(self._pretrained())
        return kind(self.world("whole" if kind.whole else "layers", progress))

    def world(self, part: Reach, progress: Progress) -> World:
        """Returns what all contestants share, over as much of the encoder as they reach.

        The generic model is trained at the first call; what is below is computed at the first that wants it.
        """
        if self._full is None:
            with progress.phase(f"{self.name}, seed {self.seed}: generic model") as bar:
                self._full = self._trained(bar.step)
        if part == "whole":
            return self._full
        if part not in self._parts:
            self._parts[part] = (self._texts if part == "texts" else self._layers)(self._full)
        return self._parts[part]

    def _seen(self) -> list[Any]:
        """What the generic model's training reads."""
        data = self.cohort.data
        examples = _digest(data.train, data.validation)
        return [self.backbone.sha256, self.cohort.texts, examples]

    def _trained(self, on_step: Any) -> World:
        section, config = self.section, self.config
        folder = self._folder()
        own = [section.generic_steps, section.generic_rate, section.max_tokens, self.seed, config.batch_size]
        own += [section.traits, GENERIC_VERSION]
        kept = folder / f"generic-{_hashed(*own, *self._seen(), self.precision)[:12]}.safetensors"
        if self.restart:
            shutil.rmtree(folder)  # checkpoints, and what contestants have kept of their training
            folder.mkdir()
        generic = generic_model(
            self.backbone,
            self.cohort.data,
            steps=section.generic_steps,
            rate=section.generic_rate,
            traits=section.traits,
            batch_size=config.batch_size,
            seed=self.seed,
            precision=lambda: mixed(self.precision == "bfloat16"),
            kept=kept,
            on_step=on_step,
        )
        return self._world(generic, folder, self._factors(self.cohort.table))

    def _factors(self, data: TrainingData) -> Factors | None:
        people, labels = len(data.users), len(data.labels)
        return found_factors(data.train, data.validation, people, labels, self.section.traits, self.seed)

    def _pretrained(self) -> World:
        """Returns the world of whoever begins with the pretrained encoder: no generic model, no factors."""
        labels = self.cohort.data.labels
        untrained = build_model(self.backbone, "classification", labels, {}, self.seed)
        return self._world(untrained.requires_grad_(False).eval(), self._folder(), None)

    def _world(self, generic: PersonalModel, folder: Path, factors: Factors | None) -> World:
        return World(
            self.cohort,
            self.section,
            self.backbone,
            generic,
            self.seed,
            self.config.batch_size,
            folder,
            self.precision == "bfloat16",
            factors,
        )

    def _folder(self) -> Path:
        folder = self.out / "work" / f"{self.name}-{self.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _layers(self, full: World) -> World:
        """Returns the world over the personal layers alone."""
        start, tokens = replace(self.backbone, module=full.generic.encoder), self.cohort.data.tokens
        layers = self.section.personal_layers
        backbone, generic, rows = upper_model(start, full.generic, tokens, layers, full.bfloat16)
        data, table = (replace(part, tokens=rows) for part in (self.cohort.data, self.cohort.table))
        cohort = replace(self.cohort, data=data, table=table)
        return replace(full, cohort=cohort, backbone=backbone, generic=generic)

    def _texts(self, full: World) -> World:
        """Returns the world over the texts' embeddings, where steps and people cost next to nothing."""
        start, tokens = replace(self.backbone, module=full.generic.encoder), self.cohort.data.tokens
        backbone, generic, rows = text_model(start, full.generic, tokens, full.bfloat16)
        data = replace(self.cohort.data, tokens=rows)
        return replace(
            full,
            cohort=replace(self.cohort, data=data, table=data),
            config=self.section.model_copy(update={"steps": self.section.text_steps}),
            backbone=backbone,
            generic=generic,
            bfloat16=False,  # what is left to compute is small: fewer bits would save nothing
            factors=self._factors(data),
        )


def contestant_class(config: ContestantConfig) -> type[Profiles]:
    """Returns what runs one of umbel's contestants."""
    return Profiles if config.cold_start is None else ColdStart


def _hashed(*row: Any) -> str:
    return sha256_bytes(json.dumps(row).encode())


def _digest(*parts: Rows) -> str:
    data = b"".join(array.tobytes() for rows in parts for array in (rows.text, rows.user, rows.label))
    return sha256_bytes(data)
