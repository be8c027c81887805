"""Which device is at which node, where that is known beforehand and nobody has to be asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final


@final
class Roll(Mapping[int, int]):
    """Device number -> node id of devices 0 to n - 1, who are all there: it is as small with a million.

    Example:
        >>> roll = Roll(first_node=1000, devices=3)
        >>> roll[2], 3 in roll, list(roll), roll.numbers
        (1002, False, [0, 1, 2], range(0, 3))
    """

    def __init__(self, first_node: int, devices: int):
        """Takes how many they are.

        Args:
            first_node: The node of device 0; the others follow.
            devices: How many there are.
        """
        self._first_node = first_node
        self.numbers = range(devices)

    def __getitem__(self, number: int) -> int:
        if number not in self.numbers:
            raise KeyError(number)
        return self._first_node + number

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)
