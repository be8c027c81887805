"""What training gains on the start, and which share of the central gain rounds reach, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import numpy.typing as npt

from umbel.shared.rng import generator
from umbel.simulations.against_central.results import Scores, Seed, Tried, chosen

What = Literal["generic", "personal", "nll"]
_DRAWS = 10_000
_TAILS = (0.025, 0.975)
_Floats = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


@final
@dataclass(frozen=True, slots=True)
class Gains:
    """What the new people gain.

    Attributes:
        start: The figure under the start: the mean over a seed's people, then over seeds.
        central: What central training adds to it; of nll, what it takes off.
        federated: The same of rounds.
        share: federated / central.
        difference: federated - central.
    """

    start: float
    central: Estimate
    federated: Estimate
    share: Estimate
    difference: Estimate


def gains(seeds: Sequence[Seed], what: What, draws: int = _DRAWS) -> Gains:
    """Returns the gains over all seeds.

    The intervals are from drawing people with replacement, whoever is measured under several seeds for all of
    them at once, both sides and the start on the people drawn. They speak of other people, not of other seeds
    or another training. The share's is that of the ratio of both gains on the people drawn.

    Args:
        seeds: What came out under each.
        what: Which figure.
        draws: How often people are drawn.
    """
    sign = -1.0 if what == "nll" else 1.0
    central, federated = (
        [sign * (_scores(getattr(seed, side), what) - _scores(seed.start, what)) for seed in seeds]
        for side in ("central", "federated")
    )
    weights = _weights(seeds, draws)
    drawn = [_drawn_means(weights, each) for each in (central, federated)]
    values = [float(np.mean([own.mean() for own in each])) for each in (central, federated)]
    return Gains(
        start=float(np.mean([_scores(seed.start, what).mean() for seed in seeds])),
        central=_estimate(values[0], drawn[0]),
        federated=_estimate(values[1], drawn[1]),
        share=_estimate(_ratio(values[1], values[0]), drawn[1] / np.where(drawn[0] == 0, np.nan, drawn[0])),
        difference=_estimate(values[1] - values[0], drawn[1] - drawn[0]),
    )


def late_gains(seeds: Sequence[Seed]) -> tuple[float, float]:
    """Returns what personal accuracy gains on the way, over the last third of the looks: central, rounds.

    It is a mean over looks, of the options that were chosen, and over seeds: no end is chosen by anybody, and
    what one look has by chance counts less.
    """
    sides = (
        [_late(seed.central_tried) for seed in seeds],
        [_late(seed.federated_tried) for seed in seeds],
    )
    central, federated = (float(np.mean(side)) for side in sides)
    return central, federated


def _late(tried: tuple[Tried, ...]) -> float:
    looks = tried[chosen(tried)].looks
    last = [look.unseen for look in looks if 3 * look.at > 2 * looks[-1].at]
    return float(np.mean(last)) - looks[0].unseen


def _scores(scores: Scores, what: What) -> _Floats:
    return np.array(getattr(scores, what), np.float64)


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("nan")


def _weights(seeds: Sequence[Seed], draws: int) -> list[_Floats]:
    """Returns for each seed how often each draw has each of its people: (draws, people)."""
    every = sorted({user for seed in seeds for user in seed.people})
    numbers = {user: number for number, user in enumerate(every)}
    rng = generator(seeds[0].seed, 0, "", "federated against central")
    drawn = rng.multinomial(len(every), np.full(len(every), 1 / len(every)), size=draws).astype(np.float64)
    return [drawn[:, [numbers[user] for user in seed.people]] for seed in seeds]


def _drawn_means(weights: Sequence[_Floats], values: Sequence[_Floats]) -> _Floats:
    """Returns each draw's mean over seeds of the mean over people; a seed with nobody drawn counts as 0."""
    means = [w @ own / np.maximum(w.sum(1), 1.0) for w, own in zip(weights, values, strict=True)]
    return np.asarray(np.mean(means, axis=0))


def _estimate(value: float, drawn: _Floats) -> Estimate:
    low, high = np.nanquantile(drawn, _TAILS) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return Estimate(value, float(low), float(high))
