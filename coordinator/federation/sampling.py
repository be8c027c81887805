"""Who is chosen, as a function of seed, round and purpose."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from typing import final, overload

from umbel.shared.rng import generator


@final
class Without(Sequence[int]):
    """A sorted row of numbers without some of them, which is never written out: it costs what those few cost.

    Example:
        >>> able = Without(range(1_000_000), {1, 2, 7, 5_000_000})
        >>> able[:6], able[-1], len(able)
        ([0, 3, 4, 5, 6, 8], 999999, 999997)
    """

    def __init__(self, numbers: Sequence[int], excluded: Collection[int]):
        """Takes both.

        Args:
            numbers: Sorted, none twice.
            excluded: Those that are left out; they need not be among the numbers.
        """
        self._numbers = numbers
        places = ((bisect_left(numbers, number), number) for number in sorted(set(excluded)))
        left_out = [place for place, own in places if place < len(numbers) and numbers[place] == own]
        # Number i of the rest stands `before` places further on, those whose place - (those before it) <= i.
        self._passed = [place - before for before, place in enumerate(left_out)]

    def __len__(self) -> int:
        return len(self._numbers) - len(self._passed)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self._numbers[place + bisect_right(self._passed, place)]


def sampled(clients: Sequence[int], count: int, seed: int, round_: int, purpose: str) -> list[int]:
    """Returns `count` of the devices, all of them if there are fewer; a function of the arguments only.

    Args:
        clients: Device numbers, sorted; a range or another row that is not written out is as good.
        count: How many to choose.
        seed: The run's seed.
        round_: The round; 0 where the choice is for all rounds.
        purpose: What for.

    Example:
        >>> sampled([10, 20, 30], 5, 0, 1, "sample")
        [10, 20, 30]
    """
    if count >= len(clients):
        return list(clients)
    index = generator(seed, round_, "", purpose).choice(len(clients), count, replace=False)
    return sorted(clients[i] for i in index.tolist())
