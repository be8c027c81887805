"""Everybody's texts, each read once: what a text is read as does not depend on who reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.learning import Encoded, encode_examples
from umbel.device_client.simulated import SimulatedHome
from umbel.shared.examples import Example
from umbel.shared.profile import FloatArray

_CHUNK = 512


@final
class Library:
    """What texts are read as by a release, and by every other of the same encoder.

    Attributes:
        engine: The release.
    """

    def __init__(
        self,
        engine: Engine,
        texts: Iterable[str],
        folder: Path,
        on_text: Callable[[int, int], None] = lambda done, of: None,
    ):
        """Reads the texts, a few hundred at a time; what a folder holds of an earlier call is not read again.

        Args:
            engine: The release; where it wants texts whenever it learns, none is read here.
            texts: Everybody's.
            folder: Where it is kept what they were read as.
            on_text: Called with (texts read, texts in all).
        """
        self.engine = engine
        every = sorted(set(texts)) if engine.embeds else []
        self._places = {text: place for place, text in enumerate(every)}
        folder.mkdir(parents=True, exist_ok=True)
        home, parts = SimulatedHome(folder), list[FloatArray]()
        for begin in range(0, len(every), _CHUNK):
            tokens = engine.encode(every[begin : begin + _CHUNK])
            read = home.read(engine, Encoded(tokens, np.zeros(len(tokens), np.int64)))
            parts.append(np.asarray(read.embedding))
            on_text(begin + len(tokens), len(every))
        self._embedding = np.concatenate(parts) if parts else None

    def embeddings(self, texts: Sequence[str]) -> FloatArray | None:
        """Returns what texts are read as, (texts, d); None where the release does not want them read once."""
        if self._embedding is None:
            return None
        return np.asarray(self._embedding[[self._places[text] for text in texts]])

    def read(self, examples: Sequence[Example]) -> Encoded:
        """Returns examples, read if the release wants that."""
        known = encode_examples(self.engine, examples)
        return replace(known, embedding=self.embeddings([example.text for example in examples]))
