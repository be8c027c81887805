"""Measures one contestant: trains what it shares, chooses its options, and asks it about the new people."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from umbel.coordinator.training.data import Rows
from umbel.shared.bias import softmax
from umbel.shared.files import sha256_bytes
from umbel.shared.profile import FloatArray
from umbel.simulations.comparison.cohort import Person
from umbel.simulations.comparison.config import ComparisonConfig
from umbel.simulations.comparison.contestant import Contestant, Options, World, restricted
from umbel.simulations.comparison.place import Place, settings_of
from umbel.simulations.comparison.results import Cell, Measured, Seen
from umbel.simulations.progress import Progress

_CHOICE_K = (4, 16)


def measured_cell(place: Place, name: str, words: str, progress: Progress) -> Cell:
    """Runs one contestant on one data set under one seed.

    Args:
        place: The data set and the seed.
        name: The contestant.
        words: What people are told that is done.
        progress: Where they are told.
    """
    contestant = place.contestant(name, progress)
    with progress.phase(words) as bar:
        return _run(contestant, place, name, bar.step)


def _run(contestant: Contestant, place: Place, name: str, on_step: Callable[[int, int], None]) -> Cell:
    world, config = contestant.world, place.config
    begun = time.perf_counter()
    contestant.prepare(on_step)
    trained = time.perf_counter()
    options: dict[int, Options] = {}
    for group in _groups(contestant, world):
        options |= dict.fromkeys(group, _choose(contestant, world, group))
    chosen = time.perf_counter()
    cohort = world.cohort
    people = (*cohort.people, *cohort.more) if contestant.more_people else cohort.people
    if contestant.learns and not cohort.tasks:
        options = {0: options[min(options)]} | options
    costs = contestant.costs()
    return Cell(
        schema="umbel.cell/1",
        settings=settings_of(config, place.name, place.seed, name),
        identity=place.identity(name),
        examples=place.examples,
        precision=place.precision,
        users=tuple(sha256_bytes(person.user.encode())[:12] for person in people),
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
        chosen=_told(options),
        k={str(k): measured(contestant, people, k, own) for k, own in options.items()},
        best=cohort.best,
        best_generic=cohort.best_generic,
        train_seconds=round(trained - begun, 3),
        choose_seconds=round(chosen - trained, 3),
        seen=_seen(contestant),
    )


def _seen(contestant: Contestant) -> Seen | None:
    counts = contestant.seen()
    return None if counts is None else Seen(right=counts[0], asked=counts[1])


def _title(contestant: Contestant, name: str, config: ComparisonConfig) -> str:
    own = config.contestants.get(name)
    return own.title if own is not None and own.title else getattr(contestant, "title", name)


def _group(name: str, config: ComparisonConfig) -> Literal["rival", "method", "combination"]:
    if name not in config.contestants:
        return "rival"
    return "method" if len(config.contestants[name].methods) == 1 else "combination"


def _groups(contestant: Contestant, world: World) -> list[tuple[int, ...]]:
    """Returns the counts of examples for which one set of options is chosen, in groups."""
    ks = world.config.k if contestant.learns else (0,)
    return [(k,) for k in ks] if contestant.by_k else [ks]


def _choose(contestant: Contestant, world: World, ks: Sequence[int]) -> Options:
    """Returns the options with the lowest mean nll on calibration people; the first of equals.

    For several k that is the mean over those of 4 and 16 that are not beyond the largest; for one, its own.
    """
    options = list(contestant.options())
    cohort = world.cohort
    people = (*cohort.calibration, *cohort.more_calibration) if contestant.more_people else cohort.calibration
    if len(options) == 1 or not people or not contestant.learns:
        return options[0]
    at = [max(ks)] if cohort.tasks or len(ks) == 1 else [k for k in _CHOICE_K if k <= max(ks)]
    losses = [np.mean([np.mean(measured(contestant, people, k, tried).nll) for k in at]) for tried in options]
    return options[int(np.nanargmin(losses))]


def _told(options: Mapping[int, Options]) -> dict[str, float]:
    """Returns what was chosen: by name, or where that depends on k, by name and k."""
    rows = list(options.values())
    if all(row == rows[0] for row in rows):
        return dict(rows[0])
    return {f"{name} at k = {k}": value for k, row in options.items() if k for name, value in row.items()}


def measured(contestant: Contestant, people: Sequence[Person], k: int, options: Options) -> Measured:
    """Lets every person learn from k examples, and counts what is right of their query."""
    begun = time.perf_counter()
    found = contestant.logits(people, k, options)
    seconds = (time.perf_counter() - begun) / max(len(people), 1)
    right, nll, hits = [], [], []
    for person, logits in zip(people, found, strict=True):
        allowed = restricted(logits, person)
        hit = allowed.argmax(1) == person.query.label
        right.append(int(hit.sum()))
        hits.append(np.packbits(hit).tobytes().hex())
        nll.append(_nll(allowed, person.query))
    return Measured(
        right=tuple(right),
        asked=tuple(len(person.query) for person in people),
        nll=tuple(nll),
        seconds=round(seconds, 6),
        hits=tuple(hits),
    )


def _nll(logits: FloatArray, query: Rows) -> float:
    chance = np.nan_to_num(softmax(logits)[np.arange(len(query)), query.label])  # diverged: as bad as it gets
    return round(float(-np.log(np.maximum(chance, 1e-12)).mean()), 6)
