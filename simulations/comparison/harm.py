"""Whom personalization helps and whom it harms: each person's answers against the generic model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import comb
from statistics import fmean
from typing import final

import numpy as np
import numpy.typing as npt

from umbel.simulations.comparison.results import hit_bits
from umbel.simulations.comparison.summary import GENERIC, Summary

LEVEL = 0.05
"""Of the test that says that a person is worse off."""


@final
@dataclass(frozen=True, slots=True)
class Harm:
    """People for whom a contestant is worse, or better, than the generic model, by an exact paired test.

    Each person's answers that one side alone has right are as likely either side's by chance: the one-sided
    sign test at 5 % on these (McNemar's exact test). With few such answers it can find nothing, so what it
    finds by chance is less than 5 %, and is worked out for each person. Nor does it see small harm: with 30
    questions of which 15 % are answered otherwise, it flags one person in 20 where all lose 5 points.

    Attributes:
        people: How many were compared, all seeds together; whoever is there under two seeds counts twice.
        seeds: How many seeds that is.
        harmed: The share of them that is worse off.
        helped: The share that is better off.
        chance: The share that the test would find either way if nobody was.
    """

    people: int
    seeds: int
    harmed: float
    helped: float
    chance: float

    @property
    def beyond_chance(self) -> float:
        """The share that is worse off, less what is found by chance."""
        return self.harmed - self.chance


def harm(summary: Summary, data: str, contestant: str, k: int) -> Harm | None:
    """Returns whom a contestant helps and harms at k; None where answers were not kept one by one."""
    by_seed = discordant(summary, data, contestant, k)
    rows = [row for people in by_seed.values() for row in people.values()]
    if not rows:
        return None
    return Harm(
        people=len(rows),
        seeds=len(by_seed),
        harmed=fmean(tail(lost + won, lost) <= LEVEL for lost, won in rows),
        helped=fmean(tail(lost + won, won) <= LEVEL for lost, won in rows),
        chance=fmean(size(lost + won) for lost, won in rows),
    )


def harm_interval(summary: Summary, data: str, contestant: str, k: int) -> tuple[float, float]:
    """Returns the 95 % interval of `Harm.beyond_chance`, by the paired bootstrap over people."""
    by_seed = discordant(summary, data, contestant, k)
    return summary.interval([(list(people), _beyond(people)) for people in by_seed.values()])


def _beyond(people: Mapping[str, tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Returns for each person whether the test flags them as worse off, less how likely it does by chance."""
    return np.array([(tail(lost + won, lost) <= LEVEL) - size(lost + won) for lost, won in people.values()])


def discordant(summary: Summary, data: str, contestant: str, k: int) -> dict[int, dict[str, tuple[int, int]]]:
    """Returns seed -> person -> how many answers the generic model alone has right, and how many it alone.

    Seeds of which answers were not kept one by one, and people who were asked nothing, are left out.
    """
    own, generic = summary.measured(data, contestant, k), summary.measured(data, GENERIC, k)
    found: dict[int, dict[str, tuple[int, int]]] = {}
    for seed, row in own.items():
        other = generic.get(seed)
        if other is None or row.hits is None or other.hits is None:
            continue
        people = {}
        for user, mine, theirs, asked in zip(
            summary.users(data, seed), row.hits, other.hits, row.asked, strict=False
        ):
            left, right = hit_bits(mine, asked), hit_bits(theirs, asked)
            if asked:
                people[user] = int((right & ~left).sum()), int((left & ~right).sum())
        if people:
            found[seed] = people
    return found


def gains(summary: Summary, data: str, contestant: str, k: int) -> list[float]:
    """Returns each person's accuracy less the generic model's, all seeds together, ascending."""
    own, generic = summary.measured(data, contestant, k), summary.measured(data, GENERIC, k)
    found: list[float] = []
    for seed in own.keys() & generic.keys():
        rows = zip(own[seed].right, generic[seed].right, own[seed].asked, strict=False)
        found += [(mine - theirs) / asked for mine, theirs, asked in rows if asked]
    return sorted(found)


@cache
def tail(count: int, least: int) -> float:
    """Returns the chance that of `count` fair coins at least `least` fall on one side."""
    ways: int = sum(comb(count, heads) for heads in range(least, count + 1))
    return float(Fraction(ways, 2**count))


@cache
def size(count: int) -> float:
    """Returns how likely the test finds something among `count` fair coins: at most 5 %."""
    return max((found for least in range(count + 1) if (found := tail(count, least)) <= LEVEL), default=0.0)
