"""Rounds under a privacy budget: the one place that samples, adds noise, and says when it is spent."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import final

import numpy as np

from umbel.coordinator.federation.aggregation.mean import Total
from umbel.coordinator.federation.privacy.accountant import epsilon
from umbel.coordinator.federation.privacy.clipping import count_noise, next_clip, sum_multiplier
from umbel.coordinator.federation.privacy.sources import Floats, Source
from umbel.shared.errors import ConfigError
from umbel.shared.norms import largest
from umbel.shared.profile import FloatArray

BLOCK = 512
"""Device numbers for which whether they are sampled is drawn together."""
_GRID_BITS = 24


@final
@dataclass(frozen=True, slots=True)
class PrivacySettings:
    """What is promised, and at what price.

    Attributes:
        noise_multiplier: z, the standard deviation of the noise on the sum over the clip; 0: no privacy.
        epsilon_budget: No round begins that would cost more than this in all; 0: no end.
        delta: The chance with which the bound of epsilon may fail.
        clip_quantile: The clip follows this quantile of the devices' norms; 0: it stays as it is.
        clip_rate: How fast it follows.
    """

    noise_multiplier: float = 0.0
    epsilon_budget: float = 0.0
    delta: float = 1e-6
    clip_quantile: float = 0.0
    clip_rate: float = 0.2

    @property
    def adaptive(self) -> bool:
        """Whether the clip follows a quantile."""
        return self.clip_quantile > 0


def rounds_paid(settings: PrivacySettings, rate: float, most: int) -> int:
    """Returns how many rounds a budget pays for, `most` if more; without a budget all of them.

    Args:
        settings: What is promised.
        rate: q, the chance of each device to be sampled in a round.
        most: Of how many one wants to know.
    """
    if not settings.epsilon_budget:
        return most
    paid, beyond = 0, most + 1
    while beyond - paid > 1:
        middle = (paid + beyond) // 2
        spent = epsilon(rate, settings.noise_multiplier, middle, settings.delta)
        paid, beyond = (middle, beyond) if spent <= settings.epsilon_budget else (paid, middle)
    return paid


@final
class PrivateRounds:
    """What is private about rounds."""

    def __init__(self, settings: PrivacySettings, expected: int, population: int, source: Source) -> None:
        """Prepares the rounds.

        Args:
            settings: What is promised.
            expected: m, how many devices a round has on average: the mean is over so many, whoever answers.
            population: Each of so many devices is sampled with the chance q = expected / population; where
                there are more, they too.
            source: Of the sample and the noise.

        Raises:
            ConfigError: The population is not known, or the budget does not pay for one round.
        """
        if population < 1:
            raise ConfigError(
                "privacy needs the number of devices",
                [f"population is {population}, so the chance of a device to be sampled is not known"],
                "Say how many devices there are: --devices, or population in a run config.",
            )
        self.settings, self.expected, self.source = settings, expected, source
        self.rate = min(1.0, expected / population)
        if not self.affords(1):
            raise ConfigError(
                "the privacy budget does not pay for one round",
                [f"one costs epsilon {self.spent(1):.4g}, the budget is {settings.epsilon_budget:g}"],
                "Take a larger noise_multiplier or budget, or fewer clients of more devices.",
            )

    def spent(self, rounds: int) -> float:
        """Returns the epsilon that so many rounds cost."""
        return epsilon(self.rate, self.settings.noise_multiplier, rounds, self.settings.delta)

    def affords(self, rounds: int) -> bool:
        """Says whether the budget pays for so many rounds."""
        budget = self.settings.epsilon_budget
        return budget == 0 or self.spent(rounds) <= budget

    def sampled(self, clients: Sequence[int], round_: int) -> list[int]:
        """Returns the devices of a round: each is in it by its own chance q (Poisson sampling).

        Whether it is follows from its number alone, not from who else is there. Numbers are drawn for
        `BLOCK` device numbers at a time: of a million devices, it is those few that are looked at who are in.

        Args:
            clients: Device numbers, sorted; a row that is not written out is as good.
            round_: The round.
        """
        chosen: list[int] = []
        place = 0
        while place < len(clients):
            block = clients[place] // BLOCK
            drawn = self.source.uniform(round_, "sample", str(block), BLOCK)
            inside = (block * BLOCK + int(own) for own in np.flatnonzero(drawn < self.rate))
            chosen += [number for number in inside if _holds(clients, number)]
            place = bisect_left(clients, (block + 1) * BLOCK, lo=place)
        return chosen

    def mean(self, total: Total, round_: int, clip: float, rounding: float = 0.0) -> dict[str, FloatArray]:
        """Returns the noised sum of the changes over the expected number of devices.

        Args:
            total: The sum of the changes, each of weight 1; of none, if nobody answered.
            round_: The round.
            clip: C, the bound on each change's L2 norm.
            rounding: What a secure sum's rounding may add to that norm.
        """
        deviation = self._sum_multiplier() * (largest(clip) + rounding)
        subject = _digest(total)  # another sum, by other devices, gets another noise: it cannot be subtracted
        grid = 2.0 ** (math.frexp(deviation)[1] - _GRID_BITS)
        noised = {}
        for name, values in total.sums.items():
            noise = self.source.normal(round_, f"noise of {name}", subject, values.size).reshape(values.shape)
            # On one grid, whatever was summed: the last bits of a number tell nothing of the sum.
            noised[name] = np.rint((values + deviation * noise) / grid) * grid
        return Total(noised, self.expected).mean()

    def share_within(self, within: int, answers: int, round_: int) -> float:
        """Returns the noised share of the devices whose change was within the clip.

        Args:
            within: Of how many it was.
            answers: How many answered; one that did not counts as half.
            round_: The round.
        """
        spread = count_noise(self.settings.noise_multiplier, self.expected)
        noise = float(self.source.normal(round_, "noise of within", f"{within} of {answers}", 1)[0])
        return 0.5 + (within - answers / 2 + spread * noise) / self.expected

    def next_clip(self, clip: float, share: float) -> float:
        """Returns the clip of the next round."""
        return next_clip(clip, share, self.settings.clip_quantile, self.settings.clip_rate)

    def _sum_multiplier(self) -> float:
        z = self.settings.noise_multiplier
        return sum_multiplier(z, count_noise(z, self.expected)) if self.settings.adaptive else z


def _holds(numbers: Sequence[int], number: int) -> bool:
    """Says whether a sorted row has a number."""
    place = bisect_left(numbers, number)
    return place < len(numbers) and numbers[place] == number


def _digest(total: Total) -> str:
    digest = sha256()
    sums: Mapping[str, Floats] = total.sums
    for name in sorted(sums):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(sums[name]).tobytes())
    return digest.hexdigest()
