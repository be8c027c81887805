"""From the cells of a comparison to its figures: means, differences with intervals, costs.

A mean is taken over the people of each seed and then over seeds, so that every seed counts alike. Contestants
are compared on the same people only. What has not been run is None, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt

from umbel.simulations.comparison.results import Cell, Comparison, ComparisonError, Measured, Precision
from umbel.simulations.summary import clustered_bootstrap

GENERIC = "generic"
BIAS = "headbias"
HEADLINE_K = 16
DRAWS = 10_000

Group = Literal["rival", "method", "combination"]
Values = npt.NDArray[np.float64]

_SEED = 0  # of the bootstrap: the same in every comparison


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """A contestant on a data set, whether it has been run or not.

    Attributes:
        contestant: Its name.
        title: Its name for people.
        group: As in `Cell`.
        seeds: The seeds that are in, ascending.
        private_bytes: What one person's device keeps, the largest over seeds; None before any seed is in.
        private_numbers: How many numbers are learned for one person, the same way.
        shared_numbers: How many were trained for everyone, the same way.
        train_seconds: Training of the shared part, the median over seeds.
    """

    contestant: str
    title: str
    group: Group
    seeds: tuple[int, ...]
    private_bytes: int | None = None
    private_numbers: int | None = None
    shared_numbers: int | None = None
    train_seconds: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Figures:
    """A contestant on a data set at one k, over the people whom all contestants have.

    Attributes:
        accuracy: Mean over people and seeds.
        by_seed: Seed -> mean over its people.
        people: How many people, all seeds together.
        nll: Mean negative log-likelihood in nats, over people and seeds.
        seconds: Median over seeds of the seconds of learning and predicting per person.
        share: Share of the possible gain that was won, where that is known; see `Summary.figures`.
    """

    accuracy: float
    by_seed: Mapping[int, float]
    people: int
    nll: float
    seconds: float
    share: float | None


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """The accuracy of one contestant less that of another, on the people and seeds that both have.

    Attributes:
        value: Mean over people and seeds.
        low: Lower end of the 95 % interval: people are drawn anew within each seed.
        high: Upper end.
        seeds: The seeds that both have.
        people: How many people, all seeds together.
    """

    value: float
    low: float
    high: float
    seeds: tuple[int, ...]
    people: int


@final
class Summary:
    """The figures of a comparison; differences are worked out when they are asked for, once.

    Attributes:
        seeds: The seeds that the configuration asks for, or that are in.
        data_sets: The same of data sets, in the configuration's order.
    """

    def __init__(self, comparison: Comparison, draws: int = DRAWS):
        """Checks the cells.

        Args:
            comparison: May be incomplete.
            draws: Draws of the bootstrap.

        Raises:
            ComparisonError: Cells contradict one another, such as other people in the same data set and seed.
        """
        self._cells = {(c.data, c.seed, c.contestant): c for c in comparison.cells}
        self._config = comparison.config
        self._draws = draws
        self._differences: dict[tuple[str, str, str, int, int], Difference | None] = {}
        _check(comparison.cells)
        self.seeds = tuple(sorted({*_listed(self._config, "seeds"), *(c.seed for c in comparison.cells)}))
        self.data_sets = _united(_section(self._config, "data"), (c.data for c in comparison.cells))
        self._contestants = _united(
            (*_listed(self._config, "rivals"), *_section(self._config, "contestants")),
            (c.contestant for c in comparison.cells),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the configuration wants readers to know."""
        return tuple(str(note) for note in _listed(self._config, "notes"))

    @property
    def reasons(self) -> dict[str, str]:
        """Name of a claim -> what the configuration says of where it does not hold."""
        return {name: str(words) for name, words in _section(self._config, "reasons").items()}

    @property
    def work_seconds(self) -> float:
        """Seconds of all cells that are in: training, choosing options, learning and predicting."""
        return sum(
            cell.train_seconds
            + cell.choose_seconds
            + sum(figures.seconds * len(figures.asked) for figures in cell.k.values())
            for cell in self._cells.values()
        )

    @property
    def precisions(self) -> Mapping[Precision, tuple[str, ...]]:
        """Precision of matrix products -> titles of the contestants with cells that were measured in it.

        The precision of most cells comes first.
        """
        found: dict[Precision, list[str]] = {}
        for cell in self._cells.values():
            found.setdefault(cell.precision, []).append(cell.title)
        most = sorted(found.items(), key=lambda row: -len(row[1]))
        return {precision: tuple(dict.fromkeys(titles)) for precision, titles in most}

    @property
    def groups(self) -> tuple[Group, ...]:
        """What kind each contestant is, whichever data sets it takes part on."""
        every = (entry for data in self.data_sets for entry in self.entries(data))
        return tuple({entry.contestant: entry.group for entry in every}.values())

    def entries(self, data: str) -> tuple[Entry, ...]:
        """Returns all contestants on a data set: rivals, single methods, combinations."""
        found = [self.entry(data, name) for name in self._contestants if self.takes_part(data, name)]
        order = ("rival", "method", "combination")
        return tuple(sorted(found, key=lambda entry: order.index(entry.group)))

    def takes_part(self, data: str, contestant: str) -> bool:
        """Says whether the configuration, or a cell, has a contestant on a data set."""
        if data not in self.data_sets or contestant not in self._contestants:
            return False
        wanted = _listed(_section(_section(self._config, "contestants"), contestant), "data")
        if contestant in _listed(self._config, "rivals"):
            rivals = _listed(_section(_section(self._config, "data"), data), "rivals")
            return not rivals or contestant in rivals or bool(self._of(data, contestant))
        return not wanted or data in wanted or bool(self._of(data, contestant))

    def entry(self, data: str, contestant: str) -> Entry:
        """Returns what is known of a contestant on a data set."""
        cells = self._of(data, contestant)
        anywhere = [cell for cell in self._cells.values() if cell.contestant == contestant]
        own = _section(_section(self._config, "contestants"), contestant)
        title = str(own.get("title") or (anywhere[0].title if anywhere else contestant))
        group = anywhere[0].group if anywhere else _group(own)
        if not cells:
            return Entry(contestant, title, group, ())
        return Entry(
            contestant,
            title,
            group,
            tuple(cell.seed for cell in cells),
            max(cell.private_bytes for cell in cells),
            max(cell.private_numbers for cell in cells),
            max(cell.shared_numbers for cell in cells),
            median(cell.train_seconds for cell in cells),
        )

    def ks(self, data: str) -> tuple[int, ...]:
        """Returns the counts of own examples, ascending; with 0 where a contestant that learns has it."""
        configured = _listed(_section(_section(self._config, "data"), data), "k")
        found = {int(k) for c in self._cells.values() if c.data == data and c.learned for k in c.k}
        return tuple(sorted({*configured, *found})) or (0,)

    def headline_k(self, data: str) -> int:
        """Returns the k that one figure is given at: 16, or else the largest."""
        ks = self.ks(data)
        return HEADLINE_K if HEADLINE_K in ks else ks[-1]

    def people(self, data: str) -> dict[int, int]:
        """Returns how many people all contestants have, by seed that is in."""
        seeds = sorted({seed for name, seed, _ in self._cells if name == data})
        return {seed: self._common(data, seed) for seed in seeds}

    def more_people(self, data: str) -> dict[int, int]:
        """Returns the people beyond those, whom only contestants that need little for them have."""
        most = {
            seed: max(c.people for c in self._cells.values() if (c.data, c.seed) == (data, seed))
            for seed in self.people(data)
        }
        return {seed: most[seed] - common for seed, common in self.people(data).items()}

    def labels(self, data: str) -> int | None:
        """Returns the count of labels, the largest over seeds."""
        return max((c.labels for c in self._cells.values() if c.data == data), default=None)

    def missing(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Returns what has not been run: (data set, contestant, the seeds that are not in)."""
        return tuple(
            (data, entry.contestant, absent)
            for data in self.data_sets
            for entry in self.entries(data)
            if (absent := tuple(seed for seed in self.seeds if seed not in entry.seeds))
        )

    def figures(self, data: str, contestant: str, k: int) -> Figures | None:
        """Returns a contestant's figures at k, over the seeds that are in; None where there are none.

        A contestant that learns nothing for a person has the same figures at every k.

        `share` is (accuracy - best generic) / (best - best generic), each a mean over people and seeds. It
        begins at the best answers that do not depend on the person, not at the trained generic model: what a
        contestant wins by a better generic part, or because the generic model was trained badly, is no gain
        of fitting the person, and the scale is the same for all. It is below 0 for a contestant that is worse
        than that. It is a ratio of means, since a single person's possible gain may be next to nothing.
        """
        measured = self.measured(data, contestant, k)
        if not measured:
            return None
        counts = {seed: self._common(data, seed) for seed in measured}
        by_seed = {seed: fmean(_accuracies(row, counts[seed])) for seed, row in measured.items()}
        return Figures(
            accuracy=fmean(by_seed.values()),
            by_seed=by_seed,
            people=sum(len(_accuracies(row, counts[seed])) for seed, row in measured.items()),
            nll=fmean(fmean(_asked(row, counts[seed], row.nll)) for seed, row in measured.items()),
            seconds=median(row.seconds for row in measured.values()),
            share=self._share(data, contestant, measured),
        )

    def difference(
        self, data: str, one: str, other: str, k: int, other_k: int | None = None
    ) -> Difference | None:
        """Returns how much better `one` is than `other` at k; None where no seed has both.

        They are compared on the first people that both have, and those are the same: two contestants that
        have further people are compared on all of these. With `other_k`, the other one is taken at that k.
        """
        learns = any(cell.learned for name in (one, other) for cell in self._of(data, name))
        at, against = k, k if other_k is None else other_k
        key = (data, one, other, *((at, against) if learns else (0, 0)))  # at every k the same
        if key not in self._differences:
            self._differences[key] = self._compared(*key)
        return self._differences[key]

    def _compared(self, data: str, one: str, other: str, k: int, other_k: int) -> Difference | None:
        left, right = self.measured(data, one, k), self.measured(data, other, other_k)
        seeds = tuple(seed for seed in left if seed in right)
        if not seeds:
            return None
        groups = []
        for seed in seeds:
            count = min(len(left[seed].right), len(right[seed].right))
            gains = _accuracies(left[seed], count) - _accuracies(right[seed], count)
            groups.append((self._users(data, seed, left[seed], count), gains))
        low, high = self.interval(groups)
        value = fmean(float(gains.mean()) for _, gains in groups)
        return Difference(value, low, high, seeds, sum(len(gains) for _, gains in groups))

    def interval(self, groups: Sequence[tuple[Sequence[str], Values]]) -> tuple[float, float]:
        """Returns the 95 % interval of the mean over seeds of people's mean: (people's ids, a value each)."""
        return clustered_bootstrap(groups, _SEED, self._draws)

    def users(self, data: str, seed: int) -> tuple[str, ...]:
        """Returns the ids of all people under a seed, in the order in which they are measured."""
        return max((c.users for c in self._cells.values() if (c.data, c.seed) == (data, seed)), key=len)

    def _users(self, data: str, seed: int, row: Measured, count: int) -> list[str]:
        """Returns the ids of the first `count` people who were asked anything."""
        pairs = zip(self.users(data, seed)[:count], row.asked[:count], strict=True)
        return [user for user, asked in pairs if asked]

    def _share(self, data: str, contestant: str, measured: Mapping[int, Measured]) -> float | None:
        reached, best, generic = [], [], []
        for seed, row in measured.items():
            cell = self._cells[data, seed, contestant]
            if cell.best is None or cell.best_generic is None:
                return None
            count = min(self._common(data, seed), len(cell.best))
            if not any(row.asked[:count]):
                return None
            reached.append(fmean(_accuracies(row, count)))
            best.append(fmean(_asked(row, count, cell.best)))
            generic.append(fmean(_asked(row, count, cell.best_generic)))
        possible = fmean(best) - fmean(generic)
        return (fmean(reached) - fmean(generic)) / possible if possible > 0 else None

    def seen(self, data: str) -> Mapping[str, float]:
        """Returns what seen people get of each contestant that was asked for it: the mean over seeds."""
        found = {}
        for entry in self.entries(data):
            rows = [cell.seen for cell in self._of(data, entry.contestant) if cell.seen is not None]
            if rows:
                found[entry.contestant] = fmean(row.right / max(row.asked, 1) for row in rows)
        return found

    def _of(self, data: str, contestant: str) -> list[Cell]:
        found = (self._cells.get((data, seed, contestant)) for seed in self.seeds)
        return [cell for cell in found if cell is not None]

    def measured(self, data: str, contestant: str, k: int) -> dict[int, Measured]:
        """Returns what was measured at k, by seed; what learns nothing has the same at every k."""
        rows = {c.seed: c.k.get(str(k) if c.learned else "0") for c in self._of(data, contestant)}
        return {seed: row for seed, row in rows.items() if row is not None}

    def _common(self, data: str, seed: int) -> int:
        return min(c.people for c in self._cells.values() if (c.data, c.seed) == (data, seed))


def _accuracies(measured: Measured, count: int) -> Values:
    """Each person's share of right answers, of the first `count` people who were asked anything."""
    pairs = zip(measured.right[:count], measured.asked[:count], strict=True)
    return np.array([right / asked for right, asked in pairs if asked], np.float64)


def _asked(measured: Measured, count: int, values: Sequence[float]) -> list[float]:
    pairs = zip(values[:count], measured.asked[:count], strict=True)
    return [value for value, asked in pairs if asked]


def _check(cells: Sequence[Cell]) -> None:
    problems = []
    asked: dict[tuple[str, int], tuple[int, ...]] = {}
    known_users: dict[tuple[str, int], tuple[str, tuple[str, ...]]] = {}
    names = set()
    for cell in cells:
        name = f"{cell.data}, seed {cell.seed}, {cell.contestant}"
        problems += [f"{name}: is there twice"] if name in names else []
        names.add(name)
        place = known_users.setdefault((cell.data, cell.seed), (cell.examples, cell.users))
        both = min(len(place[1]), len(cell.users))
        if place[0] != cell.examples or place[1][:both] != cell.users[:both]:
            problems.append(f"{name}: other examples or people than the rest of the data set and seed")
        for k, row in cell.k.items():
            if not any(row.asked):
                problems.append(f"{name}, k = {k}: nobody was asked")
            known = asked.setdefault((cell.data, cell.seed), row.asked)
            both = min(len(known), len(row.asked))
            if known[:both] != row.asked[:both]:
                problems.append(f"{name}, k = {k}: other people than the rest of the data set and seed")
    if problems:
        raise ComparisonError(
            "The cells do not belong together", problems, "Run the comparison again in a folder of its own."
        )


def _group(own: Mapping[str, Any]) -> Group:
    if not own:
        return "rival"
    return "method" if len(_section(own, "methods")) == 1 else "combination"


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    return value if isinstance(value, Mapping) else {}


def _listed(config: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    value = config.get(name)
    return tuple(value) if isinstance(value, list | tuple) else ()


def _united(first: Iterable[str], then: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *then)))
