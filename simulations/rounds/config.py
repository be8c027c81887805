"""What a run of rounds is to do: the section [rounds] of experiments, and a seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, final

from pydantic import Field, model_validator

from umbel.coordinator.config import Strict, read_toml, validated
from umbel.coordinator.federation.settings import RoundSettings
from umbel.simulations.experiment import RoundsConfig, changed

_CUT = ("device_examples", "device_heldout")


@final
class OwnRounds(Strict):
    """A run of rounds: the seed and [rounds] of an experiment, without what people are made of."""

    seed: int = Field(0, ge=-(2**63), le=2**63 - 1, description="Seed of all randomness.")
    rounds: RoundsConfig = Field(default_factory=RoundsConfig, description="What happens in the rounds.")

    @model_validator(mode="after")
    def _of_people_as_they_are(self) -> Self:
        cut = [name for name in _CUT if name in self.rounds.model_fields_set]
        if cut:
            raise ValueError(f"{' and '.join(cut)} do not apply: people have the examples that they have")
        if not self.rounds.rounds:
            raise ValueError("rounds is 0: there is nothing to do")
        return self

    def settings(self) -> RoundSettings:
        """Returns the settings of the rounds."""
        return self.rounds.settings(self.seed)


def read_own(file: Path | None, changes: Mapping[str, Mapping[str, Any]]) -> OwnRounds:
    """Reads a run of rounds, with some values changed from the command line.

    Nobody is evaluated unless that is asked for: a table of people need not have held-out examples.

    Args:
        file: A TOML file with seed and [rounds]; None for the defaults.
        changes: As in `read_experiment`.

    Raises:
        ConfigError: Keys are unknown or values out of range: all are listed.
    """
    row = changed({} if file is None else read_toml(file), changes)
    rounds = row.setdefault("rounds", {})
    if isinstance(rounds, dict):
        rounds.setdefault("evaluate_clients", 0)
    return validated(OwnRounds, row, "the settings of the rounds" if file is None else str(file))
