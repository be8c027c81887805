"""Who takes part in an experiment: read, thin out, split, and give each seen person a device."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from umbel.device_client.simulated import EXAMPLES, HELDOUT
from umbel.shared.errors import ConfigError, ExampleError
from umbel.shared.examples import Example, read_examples, write_examples
from umbel.shared.files import sha256_bytes
from umbel.shared.rng import generator
from umbel.simulations.data.community import CommunityConfig, generate_community
from umbel.simulations.data.importers import import_data
from umbel.simulations.data.splits import Population, UserExamples, split_population
from umbel.simulations.experiment import DataConfig
from umbel.simulations.homes.home import table_at
from umbel.simulations.homes.writing import write_people

Accuracy = Callable[[str, Sequence[str]], float]


@final
@dataclass(frozen=True, slots=True)
class People:
    """The people of an experiment.

    Attributes:
        name: What the examples are.
        examples: How many there are.
        population: Seen and unseen people.
        bayes: (user, texts) -> accuracy of the best possible answers; None in real data.
        generic_bayes: The same for answers that do not depend on the person.
    """

    name: str
    examples: int
    population: Population
    bayes: Accuracy | None = None
    generic_bayes: Accuracy | None = None

    def digest(self) -> str:
        """Returns a hash of every person's examples and of who is seen, which tells changed data."""
        population = self.population
        rows = [
            [user.user, [[e.text, e.label, e.time] for e in (*user.support, *user.query)]]
            for group in (population.seen, population.unseen)
            for user in group.values()
        ]
        return sha256_bytes(json.dumps([len(population.seen), rows]).encode())


def gather(config: DataConfig, seed: int, labels: tuple[str, ...] | None) -> People:
    """Reads or generates the examples of an experiment and splits its people.

    Raises:
        ConfigError: The source needs a path.
        DataError: The data set cannot be imported.
        ExampleError: The file is malformed, or too few people have enough examples.
    """
    if config.source == "community":
        options: dict[str, Any] = {"seed": seed, **config.community}
        if config.users is not None:
            options["users"] = config.users
        community = generate_community(CommunityConfig(**options))
        population = _split(community.examples, config, seed, labels)
        return People(
            "generated community",
            len(community.examples),
            population,
            community.bayes_accuracy,
            community.generic_bayes_accuracy,
        )
    examples = _thinned(_read(config), config.users, seed)
    return People(config.source, len(examples), _split(examples, config, seed, labels))


def seen_examples(population: Population) -> list[Example]:
    """Returns what the coordinator may train on: the support of seen people."""
    return [example for user in population.seen.values() for example in user.support]


def make_devices(folder: Path, people: Sequence[UserExamples], support: int, heldout: int) -> None:
    """Gives each person a device home of their own, numbered in order: 000000, 000001, ..."""
    for number, user in enumerate(people):
        home = folder / f"{number:06d}"
        write_examples(home / EXAMPLES, user.support[:support], mode=0o600)
        write_examples(home / HELDOUT, user.query[:heldout], mode=0o600)


def make_table(folder: Path, people: Sequence[UserExamples], support: int, heldout: int) -> None:
    """Gives each person a device, numbered in order, in a table of people; one that is whole stays as it is.

    Raises:
        ExampleError: The folder cannot be written.
    """
    with suppress(ExampleError):
        table = table_at(folder)
        if table is not None and table.people == len(people):
            return
    write_people(folder, ((user.support[:support], user.query[:heldout]) for user in people))


def _read(config: DataConfig) -> list[Example]:
    if config.path is None:
        raise ConfigError(
            f"data.source is '{config.source}', which needs a place to read from",
            hint="Give it with --data PATH (the folder of the data set, or a file of examples).",
        )
    path = Path(config.path)
    return read_examples(path) if config.source == "file" else import_data(config.source, path)


def _thinned(examples: list[Example], users: int | None, seed: int) -> list[Example]:
    everyone = sorted({example.user for example in examples})
    if users is None or users >= len(everyone):
        return examples
    chosen = generator(seed, 0, "", "choose users").permutation(len(everyone))[:users]
    kept = {everyone[int(number)] for number in np.sort(chosen)}
    return [example for example in examples if example.user in kept]


def _split(
    examples: Sequence[Example], config: DataConfig, seed: int, labels: tuple[str, ...] | None
) -> Population:
    """Splits twice: seen people keep most examples for training, new ones enough to be measured on."""
    new = _halves(examples, config, seed, labels, config.query_share)
    seen = _halves(examples, config, seed, labels, config.heldout_share)
    return Population(new.labels, seen.seen, new.unseen, new.skipped)


def _halves(
    examples: Sequence[Example],
    config: DataConfig,
    seed: int,
    labels: tuple[str, ...] | None,
    query_share: float,
) -> Population:
    return split_population(
        examples,
        seed=seed,
        unseen_share=config.unseen_share,
        query_share=query_share,
        min_examples=config.min_examples,
        labels=labels,
    )
