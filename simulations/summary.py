"""From each unseen user's accuracies to the `unseen` section of a result."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from umbel.shared.rng import generator
from umbel.simulations.results import QUANTILES, Quantile, ResultError, Unseen

Floats = npt.NDArray[np.floating]

_DRAWS = 10_000
_CHUNK_NUMBERS = 1 << 20
_TAILS = (0.025, 0.975)


@final
@dataclass(frozen=True, slots=True)
class UserAccuracies:
    """What each user gets right at one k, one row per user in the same order everywhere.

    Attributes:
        generic: Accuracy without a profile, (users,).
        bias: Accuracy of the generic model with a private bias per label, (users,).
        personal: Accuracy with the learned profile, (users,).
    """

    generic: Floats
    bias: Floats
    personal: Floats


def paired_bootstrap(differences: Floats, seed: int, draws: int = _DRAWS) -> tuple[float, float]:
    """Returns the 95 % interval of the mean difference, by drawing users with replacement.

    One user gives an interval without width, which says nothing about other people; none give NaN.

    Args:
        differences: Each user's accuracy under one model minus that under the other, (users,).
        seed: The experiment's seed. One seed and count of users draw the same rows, so intervals compare.
        draws: How many samples of users are drawn.

    Example:
        >>> paired_bootstrap(np.array([0.25, 0.25, 0.25]), seed=1)
        (0.25, 0.25)
    """
    if not len(differences):
        return math.nan, math.nan
    means = _drawn_means(_wide(differences), generator(seed, 0, "", "paired bootstrap"), draws)
    low, high = np.quantile(means, _TAILS)
    return float(low), float(high)


def clustered_bootstrap(
    groups: Sequence[tuple[Sequence[str], Floats]], seed: int, draws: int = _DRAWS
) -> tuple[float, float]:
    """Returns the 95 % interval of the mean over groups of each group's mean, by drawing users.

    Whoever is in several groups, as under several seeds, is drawn for all of them at once: their differences
    are no independent evidence. A group of which a draw holds nobody does not count in that draw. The groups
    stay as they are: what would happen with other groups is not in the interval. No group, or one without
    users, gives NaN.

    Args:
        groups: For each group its users' ids, all different, and their differences as in `paired_bootstrap`.
        seed: One seed and the same users draw the same.
        draws: How many samples of users are drawn.

    Example:
        >>> groups = [(["a", "b"], np.array([0.25, 0.25])), (["a", "b"], np.array([0.75, 0.75]))]
        >>> clustered_bootstrap(groups, seed=1)
        (0.5, 0.5)
    """
    if not groups or not all(len(users) for users, _ in groups):
        return math.nan, math.nan
    every = sorted({user for users, _ in groups for user in users})
    numbers = {user: number for number, user in enumerate(every)}
    rng = generator(seed, 0, "", "clustered bootstrap")
    drawn = rng.multinomial(len(every), np.full(len(every), 1 / len(every)), size=draws)
    total, count = np.zeros(draws), np.zeros(draws)
    for users, differences in groups:
        weights = drawn[:, [numbers[user] for user in users]]
        people = weights.sum(1)
        total += (weights @ _wide(differences)) / np.maximum(people, 1)
        count += people > 0
    low, high = np.quantile(total[count > 0] / count[count > 0], _TAILS)
    return float(low), float(high)


def _drawn_means(values: npt.NDArray[np.float64], rng: np.random.Generator, draws: int) -> Floats:
    users = len(values)
    means = np.empty(draws)
    step = max(1, _CHUNK_NUMBERS // users)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        means[start : start + rows] = values[rng.integers(0, users, (rows, users))].mean(axis=1)
    return means


def summarise_unseen(
    by_k: Mapping[int, UserAccuracies],
    *,
    seed: int,
    bayes: Floats | None = None,
    generic_bayes: Floats | None = None,
    draws: int = _DRAWS,
) -> Unseen:
    """Returns the `unseen` section of a result.

    Args:
        by_k: Each user's accuracies by the count of own examples; all arrays (users,), aligned by user.
        seed: The experiment's seed, for the bootstrap.
        bayes: What the best possible personal answers reach for each user, (users,), where it is known.
        generic_bayes: What the best possible answers reach that are the same for everyone, (users,).
        draws: Draws of the bootstrap.

    Raises:
        ResultError: There is no k or no user, arrays are not aligned, or an accuracy is not within 0 and 1.
    """
    _check(by_k, bayes, generic_bayes)
    rows = {str(k): by_k[k] for k in sorted(by_k)}
    over_generic = {k: _wide(row.personal) - _wide(row.generic) for k, row in rows.items()}
    over_bias = {k: _wide(row.personal) - _wide(row.bias) for k, row in rows.items()}
    gains = {k: np.sort(row) for k, row in over_generic.items()}
    best = None if bayes is None else _mean(bayes)
    return Unseen(
        users=len(next(iter(rows.values())).personal),
        generic_accuracy={k: _mean(row.generic) for k, row in rows.items()},
        bias_accuracy={k: _mean(row.bias) for k, row in rows.items()},
        personal_accuracy={k: _mean(row.personal) for k, row in rows.items()},
        intervals={k: paired_bootstrap(row, seed, draws) for k, row in over_generic.items()},
        bias_intervals={k: paired_bootstrap(row, seed, draws) for k, row in over_bias.items()},
        bayes_accuracy=best,
        generic_bayes_accuracy=None if generic_bayes is None else _mean(generic_bayes),
        share_of_possible_gain=None if best is None else _shares(rows, best),
        gain_quantiles={k: _quantiles(row) for k, row in gains.items()},
        worst_decile={k: _mean(row[: math.ceil(len(row) / 10)]) for k, row in gains.items()},
        gains={k: tuple(row.tolist()) for k, row in gains.items()},
        harmed_share={k: _mean(row < 0) for k, row in gains.items()},
    )


def _shares(rows: Mapping[str, UserAccuracies], best: float) -> dict[str, float]:
    possible = {k: best - _mean(row.generic) for k, row in rows.items()}
    won = {k: _mean(row.personal) - _mean(row.generic) for k, row in rows.items()}
    return {k: won[k] / possible[k] for k in rows if possible[k] > 0}


def _quantiles(gains: Floats) -> dict[Quantile, float]:
    values = np.quantile(gains, [float(name) for name in QUANTILES])
    return dict(zip(QUANTILES, values.tolist(), strict=True))


def _wide(values: Floats) -> npt.NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def _mean(values: npt.NDArray[np.floating] | npt.NDArray[np.bool_]) -> float:
    return float(np.mean(values, dtype=np.float64))


def _check(by_k: Mapping[int, UserAccuracies], bayes: Floats | None, generic_bayes: Floats | None) -> None:
    arrays = {
        f"{name} accuracy at k = {k}": values
        for k, row in by_k.items()
        for name, values in (("generic", row.generic), ("bias", row.bias), ("personal", row.personal))
    }
    arrays |= {} if bayes is None else {"Bayes-optimal accuracy": bayes}
    arrays |= {} if generic_bayes is None else {"generic Bayes-optimal accuracy": generic_bayes}
    problems = [f"k must be 0 or more, found {k}" for k in by_k if k < 0]
    problems += [] if by_k else ["no k was evaluated"]
    users = len(next(iter(by_k.values())).personal) if by_k else 0
    problems += ["there are no users"] if by_k and users == 0 else []
    for name, values in arrays.items():
        if values.shape != (users,):
            problems.append(f"{name} has shape {values.shape}, expected {(users,)}")
        elif not bool(np.all((values >= 0) & (values <= 1))):
            problems.append(f"{name} has values outside 0 and 1, or NaN")
    if problems:
        raise ResultError(
            "The unseen users cannot be summarised", problems, "Evaluate at least one unseen user."
        )
