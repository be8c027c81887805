"""The looks at one set of options: measured, kept, and the best values so far beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import final

import numpy as np

from umbel.shared.files import atomic_write
from umbel.shared.profile import FloatArray
from umbel.simulations.against_central.config import Options
from umbel.simulations.against_central.panel import Panel
from umbel.simulations.against_central.results import Look, Tried, read, write

_LOOKS, _BEST = "looks.json", "best.safetensors"


@final
class Looking:
    """Measures values on the way, and keeps those with the least nll of the validation people.

    What an earlier, stopped run has measured is not measured again.
    """

    def __init__(self, folder: Path, options: Options, validation: Panel, unseen: Panel):
        """Takes up what the folder holds."""
        self._folder, self._panels = folder, (validation, unseen)
        path = folder / _LOOKS
        self.tried = read(Tried, path) if path.is_file() else Tried(options=options, looks=(), seconds=0.0)
        self._since = time.perf_counter()

    def look(self, at: int, values: Mapping[str, FloatArray]) -> Look:
        """Measures values after so many steps or rounds, unless that was done."""
        known = next((look for look in self.tried.looks if look.at == at), None)
        if known is not None:
            self._since = time.perf_counter()
            return known
        validation, unseen = (panel.measure(values) for panel in self._panels)
        found = Look(
            at=at,
            nll=round(float(np.mean(validation.nll)), 6),
            validation=round(float(np.mean(validation.personal)), 6),
            unseen=round(float(np.mean(unseen.personal)), 6),
        )
        if not self.tried.looks or found.nll < self.tried.best().nll:
            self._keep(values)
        took = time.perf_counter() - self._since if at else 0.0  # what came before the start is not its own
        seconds = round(self.tried.seconds + took, 3)
        looks = (*self.tried.looks, found)
        self.tried = Tried(options=self.tried.options, looks=looks, seconds=seconds)
        write(self._folder / _LOOKS, self.tried)
        self._since = time.perf_counter()
        return found

    def _keep(self, values: Mapping[str, FloatArray]) -> None:
        from safetensors.numpy import save

        atomic_write(
            self._folder / _BEST, save({name: np.ascontiguousarray(v) for name, v in values.items()})
        )

    def best_values(self) -> dict[str, FloatArray]:
        """Returns the values of the best look."""
        from safetensors.numpy import load_file

        return dict(load_file(self._folder / _BEST))
