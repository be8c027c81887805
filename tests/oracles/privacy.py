"""Clipping, sampling and accounting in plain Python, in the order of the papers' equations."""

import math
from collections.abc import Iterable, Sequence

from umbel.coordinator.federation.privacy.sources import Source


def gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """Returns the exact delta of one Gaussian sum with sensitivity 1 (Balle and Wang, 2018, Theorem 8)."""
    z = noise_multiplier
    return normal_cdf(1 / (2 * z) - epsilon * z) - math.exp(epsilon) * normal_cdf(-1 / (2 * z) - epsilon * z)


def normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2  # not (1 + erf) / 2, which loses the lower tail


def clips_oracle(norms: Sequence[Sequence[float]], clip: float, quantile: float, rate: float) -> list[float]:
    """Returns the clip after each round without noise, from the norms that each round sees."""
    clips = []
    for row in norms:
        share = sum(1 for norm in row if norm <= clip) / len(row)
        clip = clip * math.exp(-rate * (share - quantile))
        clips.append(clip)
    return clips


def poisson_oracle(source: Source, clients: Iterable[int], round_: int, chance: float) -> list[int]:
    """Returns who is sampled, each by the number that is drawn for them among 512 device numbers."""
    return [
        client
        for client in clients
        if source.uniform(round_, "sample", str(client // 512), 512)[client % 512] < chance
    ]
