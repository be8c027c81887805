"""The paired bootstrap, slowly: one draw after the other, one user after the other, in plain Python."""

from collections.abc import Sequence

from umbel.shared.rng import generator


def paired_bootstrap(differences: Sequence[float], seed: int, draws: int) -> tuple[float, float]:
    """Returns the 2.5 % and 97.5 % quantiles of the means of `draws` samples of users, with replacement."""
    users = len(differences)
    rng = generator(seed, 0, "", "paired bootstrap")
    means = []
    for _ in range(draws):
        sample = [differences[int(rng.integers(0, users))] for _ in range(users)]
        means.append(sum(sample) / users)
    means.sort()
    return quantile(means, 0.025), quantile(means, 0.975)


def grouped_bootstrap(groups: Sequence[Sequence[float]], seed: int, draws: int) -> tuple[float, float]:
    """Returns the same for the mean of the groups' means, where users are drawn within their group."""
    rng = generator(seed, 0, "", "paired bootstrap")
    sums = [0.0] * draws
    for group in groups:
        for draw in range(draws):
            sample = [group[int(rng.integers(0, len(group)))] for _ in group]
            sums[draw] += sum(sample) / len(sample)
    means = sorted(total / len(groups) for total in sums)
    return quantile(means, 0.025), quantile(means, 0.975)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Returns the value at `share` of the way through `ordered`, on a line between its neighbours."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
