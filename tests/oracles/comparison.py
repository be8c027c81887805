"""The figures of a comparison, slowly: one person after the other, in plain Python."""

from collections.abc import Sequence
from typing import Any

from tests.oracles import bootstrap

Cells = Sequence[Any]


def _row(cells: Cells, data: str, seed: int, contestant: str, k: int) -> Any:
    for cell in cells:
        if (cell.data, cell.seed, cell.contestant) == (data, seed, contestant):
            return cell.k.get(str(k)) if cell.learned else cell.k.get("0")
    return None


def accuracy(cells: Cells, data: str, contestant: str, k: int, seeds: Sequence[int]) -> float | None:
    """Returns the mean over seeds of the mean over the people that everybody has."""
    means = []
    for seed in seeds:
        row = _row(cells, data, seed, contestant, k)
        if row is None:
            continue
        people = min(cell.people for cell in cells if cell.data == data and cell.seed == seed)
        shares = [row.right[p] / row.asked[p] for p in range(people) if row.asked[p] > 0]
        means.append(sum(shares) / len(shares))
    return sum(means) / len(means) if means else None


def difference(
    cells: Cells, data: str, one: str, other: str, k: int, seeds: Sequence[int], draws: int
) -> tuple[float, float, float] | None:
    """Returns the mean difference and its interval, over the people and seeds that both have."""
    groups = []
    for seed in seeds:
        left, right = _row(cells, data, seed, one, k), _row(cells, data, seed, other, k)
        if left is None or right is None:
            continue
        users = max((c.users for c in cells if (c.data, c.seed) == (data, seed)), key=len)
        names: list[str] = []
        group: list[float] = []
        for person in range(min(len(left.right), len(right.right))):
            if left.asked[person] > 0:
                mine = left.right[person] / left.asked[person]
                group.append(mine - right.right[person] / right.asked[person])
                names.append(users[person])
        groups.append((names, group))
    if not groups:
        return None
    value = sum(sum(group) / len(group) for _, group in groups) / len(groups)
    return (value, *bootstrap.clustered_bootstrap(groups, 0, draws))
