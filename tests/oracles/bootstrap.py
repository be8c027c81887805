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


def clustered_bootstrap(
    groups: Sequence[tuple[Sequence[str], Sequence[float]]], seed: int, draws: int
) -> tuple[float, float]:
    """Returns the same for the mean of the groups' means, where a user is drawn for all groups at once."""
    every = sorted({user for users, _ in groups for user in users})
    rng = generator(seed, 0, "", "clustered bootstrap")
    found = []
    for counts in rng.multinomial(len(every), [1 / len(every)] * len(every), size=draws):
        means = []
        for users, values in groups:
            sample = []
            for user, value in zip(users, values, strict=True):
                sample += [value] * int(counts[every.index(user)])
            if sample:
                means.append(sum(sample) / len(sample))
        if means:
            found.append(sum(means) / len(means))
    found.sort()
    return quantile(found, 0.025), quantile(found, 0.975)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Returns the value at `share` of the way through `ordered`, on a line between its neighbours."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
