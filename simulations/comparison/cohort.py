"""Who the contestants are compared on: seen people to train on, calibration people, new people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from umbel.coordinator.config import TrainingConfig
from umbel.coordinator.training.data import Rows, TrainingData, prepare, stack
from umbel.shared.errors import ConfigError, ExampleError
from umbel.shared.examples import Example
from umbel.shared.rng import generator
from umbel.shared.text import IntArray, TextEncoder
from umbel.simulations.comparison.config import DataSetConfig
from umbel.simulations.data.community import Community, CommunityConfig, generate_community
from umbel.simulations.data.importers import import_data
from umbel.simulations.data.splits import UserExamples, split_population

_QUERY_SHARE = 0.25  # of a new person's texts: most of them have little more than the largest k


@final
@dataclass(frozen=True, slots=True)
class Person:
    """Somebody whose few examples a contestant learns from.

    Attributes:
        user: The person's id.
        support: Examples to learn from, in random order: `support[:k]` is a sample of k.
        query: Examples to predict.
        labels: The labels that can occur for this person, ascending; None: all of them.
    """

    user: str
    support: Rows
    query: Rows
    labels: IntArray | None = None


@final
@dataclass(frozen=True, slots=True)
class Cohort:
    """The people of one data set under one seed. `Rows.text` indexes `texts` and `data.tokens` alike.

    Attributes:
        name: The data set's name.
        texts: Every distinct text.
        data: What is trained on, with every text encoded.
        table: The same, thinned to the people for whom private tensors are trained.
        people: New people; where profiles are tasks, the tasks themselves.
        more: Further new people, measured only where that costs next to nothing.
        calibration: People on whom contestants choose their options; never measured.
        more_calibration: Further ones, asked only where that costs next to nothing.
        tasks: Profiles are tasks that training knows (CLINC150's domains), not new people.
        best: Accuracy of the best possible answers for each of `people`, where it is known.
        best_generic: The same for answers that do not depend on the person.
    """

    name: str
    texts: tuple[str, ...]
    data: TrainingData
    table: TrainingData
    people: tuple[Person, ...]
    more: tuple[Person, ...]
    calibration: tuple[Person, ...]
    more_calibration: tuple[Person, ...] = ()
    tasks: bool = False
    best: tuple[float, ...] | None = None
    best_generic: tuple[float, ...] | None = None


def gather_cohort(
    name: str, config: DataSetConfig, place: Path | None, encoder: TextEncoder, most: int, seed: int
) -> Cohort:
    """Reads or generates a data set and splits it.

    Args:
        name: The data set's name in the configuration.
        config: Its section.
        place: Its folder; None for the generated community.
        encoder: The backbone's text encoder.
        most: The largest k: everybody who is measured has so many examples to learn from.
        seed: Of the split.

    Raises:
        ConfigError: The data set needs a folder.
        DataError: The folder cannot be read as that data set.
        ExampleError: Nobody has enough examples.
    """
    community = None
    if config.source == "community":
        community = generate_community(
            CommunityConfig(seed=seed, users=config.users or 120, choosiness=config.choosiness)
        )
        examples = community.examples
    else:
        if place is None:
            raise ConfigError(
                f"data set '{name}' needs its folder",
                hint=f"Give it: --data {name}=FOLDER (or a folder of all).",
            )
        examples = [e for e in import_data(config.source, place) if e.user.startswith(config.user_prefix)]
    if config.tasks:
        return _tasks(name, config, examples, encoder, most, seed)
    return _people(name, config, examples, community, encoder, most, seed)


def _people(
    name: str,
    config: DataSetConfig,
    examples: Sequence[Example],
    community: Community | None,
    encoder: TextEncoder,
    most: int,
    seed: int,
) -> Cohort:
    split = split_population(
        examples,
        seed=seed,
        unseen_share=config.unseen_share,
        query_share=_QUERY_SHARE,
        max_query=config.query,
    )
    able = [user for user in split.unseen.values() if len(user.support) >= most]
    if not able:
        raise ExampleError(
            f"nobody new in '{name}' has {most} examples to learn from",
            hint="Give a smaller k or other data.",
        )
    order = generator(seed, 0, "", "comparison: new people").permutation(len(able))
    chosen = [able[int(number)] for number in order]
    seen = [e for user in split.seen.values() for e in (*user.support, *user.query)]
    later = [e for user in chosen for e in (*user.support, *user.query)]
    data, texts = _encoded(seen, later, split.labels, encoder, config.calibration_share, seed)
    numbers = {text: number for number, text in enumerate(texts)}
    people = [_person(user, numbers, split.labels) for user in chosen]
    calibration = [
        _halved(f"calibration {n}", rows, most, config.query) for n, rows in enumerate(data.calibration)
    ]
    usable = tuple(person for person in calibration if len(person.query) > 0)
    first, last = config.calibration_users, config.calibration_users + config.more_calibration_users
    best, best_generic = _known(community, chosen[: config.people])
    return Cohort(
        name,
        texts,
        data,
        _thinned(data, config.training_users, seed),
        tuple(people[: config.people]),
        tuple(people[config.people : config.people + config.more_people]),
        usable[:first],
        usable[first:last],
        best=best,
        best_generic=best_generic,
    )


def _tasks(
    name: str, config: DataSetConfig, examples: Sequence[Example], encoder: TextEncoder, most: int, seed: int
) -> Cohort:
    """Every profile is a task: `most` examples of each are trained on, others choose, others measure."""
    split = split_population(examples, seed=seed, unseen_share=0.0, query_share=0.5, max_query=config.query)
    asked = config.calibration_query
    train = [e for user in split.seen.values() for e in user.support[:most]]
    later = [e for u in split.seen.values() for e in (*u.support[most : most + asked], *u.query)]
    data, texts = _encoded(train, later, split.labels, encoder, 0.0, seed)
    numbers = {text: number for number, text in enumerate(texts)}
    people: list[Person] = []
    choosers: list[Person] = []
    for user in split.seen.values():
        own = _person(user, numbers, split.labels, support=most)
        able = np.unique(np.concatenate([own.support.label, own.query.label]))
        chooser = UserExamples(user.user, user.support[:most], user.support[most : most + asked])
        people.append(replace(own, labels=able))
        choosers.append(replace(_person(chooser, numbers, split.labels), labels=able))
    data = _all_trained(data, choosers)
    chosen = tuple(choosers[: config.calibration_users])
    return Cohort(name, texts, data, data, tuple(people), (), chosen, tasks=True)


def _all_trained(data: TrainingData, choosers: Sequence[Person]) -> TrainingData:
    """Trains on all of a task's examples, as whoever learns one task alone does; holds `choosers` out."""
    held = [(person.query, data.users.index(person.user)) for person in choosers]
    own = [replace(query, user=np.full(len(query), number)) for query, number in held]
    return replace(data, train=stack((data.train, data.validation)), validation=stack(own))


def _encoded(
    seen: Sequence[Example],
    later: Sequence[Example],
    labels: tuple[str, ...],
    encoder: TextEncoder,
    calibration_share: float,
    seed: int,
) -> tuple[TrainingData, tuple[str, ...]]:
    """Returns what is trained on, with the other people's texts encoded behind the seen people's."""
    config = TrainingConfig.model_validate({"calibration_share": calibration_share})
    data = prepare(seen, labels, encoder, config, seed)
    texts = tuple(dict.fromkeys(e.text for e in (*seen, *later)))
    return replace(data, tokens=encoder.encode(list(texts))), texts


def _person(
    user: UserExamples, numbers: dict[str, int], labels: tuple[str, ...], support: int | None = None
) -> Person:
    return Person(
        user.user, _rows(user.support[:support], numbers, labels), _rows(user.query, numbers, labels)
    )


def _rows(examples: Sequence[Example], numbers: dict[str, int], labels: tuple[str, ...]) -> Rows:
    of_label = {label: number for number, label in enumerate(labels)}
    text = np.array([numbers[e.text] for e in examples], np.int64)
    label = np.array([of_label[e.label] for e in examples], np.int64)
    return Rows(text, np.zeros(len(examples), np.int64), label)


def _halved(user: str, rows: Rows, most: int, query: int) -> Person:
    index = np.arange(len(rows))
    return Person(user, rows.take(index[:most]), rows.take(index[most : most + query]))


def _thinned(data: TrainingData, users: int | None, seed: int) -> TrainingData:
    """Keeps some of the seen people, so that each one's private tensors are trained on enough examples."""
    if users is None or users >= len(data.users):
        return data
    order = generator(seed, 0, "", "comparison: training users").permutation(len(data.users))
    kept = np.sort(order[:users])
    renumbered = np.full(len(data.users), -1, np.int64)
    renumbered[kept] = np.arange(len(kept))

    def narrowed(rows: Rows) -> Rows:
        mine = rows.take(np.flatnonzero(renumbered[rows.user] >= 0))
        return replace(mine, user=renumbered[mine.user])

    return replace(
        data,
        users=tuple(data.users[int(number)] for number in kept),
        train=narrowed(data.train),
        validation=narrowed(data.validation),
    )


def _known(
    community: Community | None, people: Sequence[UserExamples]
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if community is None:
        return None, None

    def of(best: Any) -> tuple[float, ...]:
        return tuple(float(best(user.user, [e.text for e in user.query])) for user in people)

    return of(community.bayes_accuracy), of(community.generic_bayes_accuracy)
