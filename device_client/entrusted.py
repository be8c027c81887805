"""What a store's owner has entrusted, at one moment, with what its texts have been read as before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.known import known
from umbel.device_client.vault.store import Store
from umbel.shared.profile import FloatArray


@final
class Entrusted:
    """Examples first, then texts without a label; a text's place is its place among them.

    Attributes:
        examples: The owner's examples.
        texts: Their texts without a label.
        state: A hash of all of it, by which one sees whether a profile was learned from just this.
        erasures: How often something had been erased: what is learned from what is gone must not be kept.
    """

    def __init__(self, store: Store):
        """Reads the store."""
        self._store = store
        self.state, self.erasures = store.state(), store.erasures()
        entries = store.entries()
        self.examples, self.texts = known(entries)
        labelled = [entry.number for entry in entries if entry.label is not None]
        self._numbers = [*labelled, *(entry.number for entry in entries if entry.label is None)]

    def number(self, place: int) -> int:
        """Returns the number that a text has in the store."""
        return self._numbers[place]

    def readings(self, engine: Engine) -> dict[int, FloatArray]:
        """Returns what texts were read as, (d,), by their place; nothing where that says not all of them."""
        if not engine.embeds:
            return {}
        found = self._store.readings(engine.reader)
        return {
            place: np.frombuffer(found[number], np.float32)
            for place, number in enumerate(self._numbers)
            if number in found
        }

    def keep_readings(self, engine: Engine, fresh: Mapping[int, FloatArray]) -> bool:
        """Keeps what texts were read as, by their place, so that none of them is read again.

        Returns:
            Whether they are kept; those by other readers are kept no longer.

        Raises:
            StoreError: Something was forgotten meanwhile.
        """
        if not fresh or not engine.embeds:
            return False
        found = {self._numbers[place]: own.tobytes() for place, own in fresh.items()}
        return self._store.keep_readings(engine.reader, found, self.erasures)
