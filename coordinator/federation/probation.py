"""Who is not asked for a while: devices whose answers broke the contract.

A refused answer puts its device on probation: it is left out of the next rounds, of twice as many each time.
This is a function of the rounds' records, so that a run that goes on leaves out whom it would have left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from umbel.coordinator.federation.journal import RoundRecord

_MOST_DOUBLINGS = 20


def last_rounds(records: Iterable[RoundRecord], first: int) -> dict[int, int]:
    """Returns the last round of the probation of every device that has been refused.

    Args:
        records: The finished rounds, in order.
        first: For how many rounds a device is left out at its first refusal; 0: nobody is.

    Returns:
        Device number -> the last round that it is, or was, left out of.
    """
    times: Counter[int] = Counter()
    last: dict[int, int] = {}
    for record in records:
        for device in record.refused:
            last[device] = record.round + length(times[device], first)
            times[device] += 1
    return last


def length(times_before: int, first: int) -> int:
    """Returns for how many rounds a device is left out that was refused so many times before.

    Example:
        >>> [length(times, 2) for times in range(4)]
        [2, 4, 8, 16]
    """
    return int(first * 2 ** min(times_before, _MOST_DOUBLINGS))
