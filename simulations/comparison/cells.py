"""Runs a comparison cell by cell; a cell that is finished is not run again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np

from umbel.coordinator.backbone import Backbone, load_backbone
from umbel.coordinator.config import read_toml, validated
from umbel.coordinator.train import arithmetic
from umbel.coordinator.training.data import Rows
from umbel.coordinator.training.trainer import uses_bfloat16
from umbel.shared.bias import softmax
from umbel.shared.errors import ConfigError
from umbel.shared.files import sha256_bytes, sole_use
from umbel.shared.profile import FloatArray
from umbel.shared.text import TextEncoder
from umbel.simulations.comparison.cache import upper_model
from umbel.simulations.comparison.cohort import Cohort, Person, gather_cohort
from umbel.simulations.comparison.config import ComparisonConfig
from umbel.simulations.comparison.contestant import Contestant, Options, World, mixed, restricted
from umbel.simulations.comparison.generic import generic_model
from umbel.simulations.comparison.profiles import Profiles, needs_whole
from umbel.simulations.comparison.results import (
    Cell,
    Comparison,
    ComparisonError,
    Measured,
    cell_name,
    read_cell,
    write_cell,
    write_comparison,
)
from umbel.simulations.comparison.rivals import REGISTRY
from umbel.simulations.experiment import CONFIG
from umbel.simulations.progress import Progress
from umbel.simulations.simulate import machine

RESULT = "result.json"
_CHOICE_K = (4, 16)


@final
class _Place:
    """One data set under one seed: its people and its generic model, made when the first cell wants them."""

    def __init__(
        self, name: str, seed: int, config: ComparisonConfig, folder: Path, out: Path, backbone: Backbone
    ):
        self.name, self.seed, self.config, self.out = name, seed, config, out
        self.backbone = backbone
        self.section = config.data[name]
        encoder = TextEncoder(backbone.tokenizer_json, self.section.max_tokens)
        self.cohort: Cohort = gather_cohort(
            name, self.section, folder / self.section.folder, encoder, max(self.section.k), seed
        )
        self._worlds: tuple[World, World] | None = None

    def identity(self, contestant: str) -> str:
        """Returns the hash of all that a cell's figures depend on."""
        cohort, config = self.cohort, self.config
        own: Any = contestant
        if contestant in config.contestants:
            own = config.contestants[contestant].model_dump(mode="json")
        people = [_digest(p.support, p.query) for p in (*cohort.people, *cohort.more, *cohort.calibration)]
        row = [
            self.section.model_dump(mode="json"),
            own,
            self.seed,
            config.batch_size,
            self.backbone.sha256,
            cohort.texts,
            _digest(cohort.data.train, cohort.data.validation),
            people,
            uses_bfloat16("auto"),
        ]
        return sha256_bytes(json.dumps(row).encode())

    def _generic_identity(self) -> str:
        section, data = self.section, self.cohort.data
        row: list[Any] = [
            section.generic_steps,
            section.generic_rate,
            section.max_tokens,
            self.seed,
            self.config.batch_size,
        ]
        row += [
            self.backbone.sha256,
            self.cohort.texts,
            _digest(data.train, data.validation),
            uses_bfloat16("auto"),
        ]
        return sha256_bytes(json.dumps(row).encode())

    def world(self, whole: bool, progress: Progress) -> World:
        """Returns what all contestants share: over the whole encoder, or over its personal layers alone.

        The generic model is trained at the first call.
        """
        if self._worlds is None:
            full = self._whole(progress)
            backbone, generic, tokens = upper_model(
                replace(self.backbone, module=full.generic.encoder),
                full.generic,
                self.cohort.data.tokens,
                self.section.personal_layers,
                full.bfloat16,
            )
            data, table = (replace(part, tokens=tokens) for part in (self.cohort.data, self.cohort.table))
            cohort = replace(self.cohort, data=data, table=table)
            self._worlds = full, replace(full, cohort=cohort, backbone=backbone, generic=generic)
        return self._worlds[0 if whole else 1]

    def _whole(self, progress: Progress) -> World:
        bfloat16 = uses_bfloat16("auto")
        folder = self.out / "work" / f"{self.name}-{self.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        with progress.phase(f"{self.name}, seed {self.seed}: generic model") as bar:
            generic = generic_model(
                self.backbone,
                self.cohort.data,
                steps=self.section.generic_steps,
                rate=self.section.generic_rate,
                batch_size=self.config.batch_size,
                seed=self.seed,
                precision=lambda: mixed(bfloat16),
                kept=folder / f"generic-{self._generic_identity()[:12]}.safetensors",
                on_step=bar.step,
            )
        return World(
            self.cohort,
            self.section,
            self.backbone,
            generic,
            self.seed,
            self.config.batch_size,
            folder,
            bfloat16,
        )


def compare(
    config: ComparisonConfig,
    out: Path,
    folder: Path | None,
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    threads: int = 2,
    restart: bool = False,
    progress: Progress,
) -> Comparison:
    """Runs what is missing of a comparison, and writes all cells as result.json.

    Args:
        config: What is compared.
        out: The run's folder; finished cells lie in its folder `cells`.
        folder: Folder of the public data sets; those that are not there are left out.
        only: Names of data sets and contestants to which the run is limited; empty for all.
        seeds: Only these; empty for all.
        threads: Torch's threads.
        restart: Run finished cells again.
        progress: Shows people how it goes.

    Raises:
        BusyError: Another process is at work in `out`.
        ConfigError: A name is not known, or no data set is there.
    """
    names, numbers, contestants = _chosen(config, folder, only, seeds, progress)
    backbone = load_backbone(config.backbone.name, sha256=config.backbone.sha256)
    with sole_use(out), arithmetic(threads):
        places = _places(names, numbers)
        for at, (name, seed) in enumerate(places):
            place = _Place(name, seed, config, folder or Path(), out, backbone)
            for number, contestant in enumerate(contestants, at * len(contestants) + 1):
                words = f"[{number}/{len(places) * len(contestants)}] {name}, seed {seed}"
                _cell(place, contestant, out, restart, words, progress)
        found = Comparison(
            schema="umbel.comparison/1",
            config=config.model_dump(mode="json"),
            machine=machine(threads),
            cells=tuple(finished_cells(config, out)),
        )
        write_comparison(out / RESULT, found)
    return found


def finished_cells(config: ComparisonConfig, out: Path) -> Iterator[Cell]:
    """Gives the cells that are there, in the configuration's order."""
    for name in config.data:
        for seed in config.seeds:
            for contestant in (*config.rivals, *config.contestants):
                path = out / "cells" / cell_name(name, seed, contestant)
                if path.is_file():
                    yield read_cell(path)


def read_comparison_config(folder: Path) -> ComparisonConfig:
    """Reads the configuration of a comparison.

    Raises:
        ConfigError: Keys are unknown or values out of range: all are listed.
    """
    path = folder / CONFIG
    return validated(ComparisonConfig, read_toml(path), str(path))


def _places(names: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """A first seed of everything comes before the second one of anything."""
    return [(name, seed) for seed in seeds for name in names]


def _chosen(
    config: ComparisonConfig,
    folder: Path | None,
    only: Sequence[str],
    seeds: Sequence[int],
    progress: Progress,
) -> tuple[list[str], list[int], list[str]]:
    everyone = (*config.rivals, *config.contestants)
    problems = [f"there is no '{name}'" for name in only if name not in (*config.data, *everyone)]
    problems += [f"there is no seed {seed}" for seed in seeds if seed not in config.seeds]
    if problems:
        hint = f"Data sets: {', '.join(config.data)}. Contestants: {', '.join(everyone)}. "
        raise ConfigError(
            "the comparison has no such part", problems, hint + f"Seeds: {', '.join(map(str, config.seeds))}."
        )
    wanted = [name for name in config.data if name in only] or list(config.data)
    there = [name for name in wanted if _is_there(config, name, folder)]
    left = [f"{name}: no folder '{config.data[name].folder}'" for name in wanted if name not in there]
    if not there:
        raise ConfigError(
            "none of the data sets is there", left, "Give --data FOLDER, which holds the data sets' folders."
        )
    for words in left:
        progress.say(f"left out: {words} in --data")
    return (
        there,
        [seed for seed in config.seeds if not seeds or seed in seeds],
        [name for name in everyone if name in only] or list(everyone),
    )


def _is_there(config: ComparisonConfig, name: str, folder: Path | None) -> bool:
    section = config.data[name]
    return section.source == "community" or (folder is not None and (folder / section.folder).is_dir())


def _cell(place: _Place, name: str, out: Path, restart: bool, words: str, progress: Progress) -> None:
    path = out / "cells" / cell_name(place.name, place.seed, name)
    identity = place.identity(name)
    if path.is_file() and not restart:
        try:
            if read_cell(path).identity == identity:
                return
        except ComparisonError:
            pass  # it is run again and written anew
    contestant = _contestant(place, name, progress)
    with progress.phase(f"{words}: {name}") as bar:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_cell(path, _run(contestant, name, place.config, identity, bar))


def _contestant(place: _Place, name: str, progress: Progress) -> Contestant:
    own = place.config.contestants.get(name)
    if own is not None:
        return Profiles(place.world(needs_whole(own), progress), name, own)
    kind = REGISTRY[name]
    return kind(place.world(kind.whole, progress))


def _run(contestant: Contestant, name: str, config: ComparisonConfig, identity: str, bar: Any) -> Cell:
    world = contestant.world
    begun = time.perf_counter()
    contestant.prepare(bar.step)
    trained = time.perf_counter()
    options = _choose(contestant, world)
    chosen = time.perf_counter()
    cohort = world.cohort
    people = (*cohort.people, *cohort.more) if contestant.more_people else cohort.people
    ks = world.config.k if contestant.learns else (0,)
    if contestant.learns and not cohort.tasks:
        ks = (0, *ks)
    costs = contestant.costs()
    return Cell(
        schema="umbel.cell/1",
        identity=identity,
        data=cohort.name,
        seed=world.seed,
        contestant=name,
        title=_title(contestant, name, config),
        group=_group(name, config),
        labels=len(cohort.data.labels),
        people=len(people),
        learned=contestant.learns,
        private_bytes=costs.private_bytes,
        private_numbers=costs.private_numbers,
        shared_numbers=costs.shared_numbers,
        chosen=dict(options),
        k={str(k): _measured(contestant, people, k, options) for k in ks},
        best=cohort.best,
        best_generic=cohort.best_generic,
        train_seconds=round(trained - begun, 3),
        choose_seconds=round(chosen - trained, 3),
    )


def _title(contestant: Contestant, name: str, config: ComparisonConfig) -> str:
    own = config.contestants.get(name)
    return own.title if own is not None and own.title else getattr(contestant, "title", name)


def _group(name: str, config: ComparisonConfig) -> Any:
    if name not in config.contestants:
        return "rival"
    return "method" if len(config.contestants[name].methods) == 1 else "combination"


def _choose(contestant: Contestant, world: World) -> Options:
    """Returns the options with the lowest mean nll on calibration people; the first of equals."""
    options = list(contestant.options())
    people = world.cohort.calibration
    if len(options) == 1 or not people or not contestant.learns:
        return options[0]
    ks = (
        [k for k in _CHOICE_K if k <= max(world.config.k)]
        if not world.cohort.tasks
        else [max(world.config.k)]
    )
    losses = [
        np.mean([np.mean(_measured(contestant, people, k, tried).nll) for k in ks]) for tried in options
    ]
    return options[int(np.nanargmin(losses))]


def _measured(contestant: Contestant, people: Sequence[Person], k: int, options: Options) -> Measured:
    begun = time.perf_counter()
    found = contestant.logits(people, k, options)
    seconds = (time.perf_counter() - begun) / max(len(people), 1)
    right, nll = [], []
    for person, logits in zip(people, found, strict=True):
        allowed = restricted(logits, person)
        right.append(int((allowed.argmax(1) == person.query.label).sum()))
        nll.append(_nll(allowed, person.query))
    return Measured(
        right=tuple(right),
        asked=tuple(len(person.query) for person in people),
        nll=tuple(nll),
        seconds=round(seconds, 6),
    )


def _nll(logits: FloatArray, query: Rows) -> float:
    chance = softmax(logits)[np.arange(len(query)), query.label]
    return round(float(-np.log(np.maximum(chance, 1e-12)).mean()), 6)


def _digest(*parts: Rows) -> str:
    data = b"".join(array.tobytes() for rows in parts for array in (rows.text, rows.user, rows.label))
    return sha256_bytes(data)
