"""Examples that were encoded are kept in memory, up to a bound: a simulation asks the same people again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import final

from umbel.device_client.learning import Encoded


@final
class EncodedCache:
    """The examples that were used last; safe for threads."""

    def __init__(self, limit: int):
        """Keeps nothing yet.

        Args:
            limit: Bytes of arrays at most.
        """
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[Hashable, Encoded] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Encoded]) -> Encoded:
        """Returns the examples of a key, made if they are not kept.

        Args:
            key: All that they depend on.
            make: Makes them; what it raises is passed on, and nothing is kept.
        """
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        made = make()
        if len(made):  # nothing is made again as fast as it is found, and would count for no bytes
            with self._lock:
                self._keep(key, made)
        return made

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are kept."""
        return self._bytes

    def _keep(self, key: Hashable, made: Encoded) -> None:
        old = self._kept.pop(key, None)  # another thread may have made the same
        self._bytes += made.nbytes - (old.nbytes if old is not None else 0)
        self._kept[key] = made
        while self._bytes > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes
