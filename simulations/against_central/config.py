"""What is run to hold rounds against central training: people, start, and what is tried of both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, final

from pydantic import Field, model_validator

from umbel.coordinator.config import CoordinatorConfig, Strict, TrainingConfig, read_toml, validated
from umbel.shared.errors import ConfigError
from umbel.simulations.experiment import CONFIG, DataConfig, RoundsConfig

Section = TypeVar("Section", TrainingConfig, RoundsConfig)
Options = dict[str, bool | int | float | str]
_SECTIONS = ("seeds", "data", "groups", "central", "rounds", "federated", "evaluation")


@final
class GroupsConfig(Strict):
    """[groups]: who is who among the people who are not new, and how many examples are used of each."""

    public: int = Field(ge=3, description="People whose examples the coordinator has for its first release.")
    public_examples: int = Field(ge=2, description="Examples of each of them, at most.")
    validation: int = Field(ge=1, description="People by whom options are chosen and training is ended.")
    device_examples: int = Field(ge=2, description="Examples on each of the others' devices, at most.")


@final
class CentralConfig(Strict):
    """[central]: training of the pooled examples."""

    look_every: int = Field(ge=1, description="Steps between looks at the validation people.")
    tried: tuple[Options, ...] = Field(min_length=1, description="Changes of [training], each tried.")


@final
class FederatedConfig(Strict):
    """[federated]: runs of rounds, each from the release of the one before and with a smaller local rate."""

    look_every: int = Field(ge=1, description="Rounds between looks at the validation people.")
    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0,), min_length=1, description="What local_rate is times in each run of rounds."
    )
    tried: tuple[Options, ...] = Field(min_length=1, description="Changes of [rounds], each tried.")
    secure_rounds: int = Field(
        0, ge=0, description="Rounds that are run again with secure sums, to count what they send; 0: none."
    )


@final
class AskedConfig(Strict):
    """[evaluation]: how validation people and new ones are measured."""

    k: int = Field(16, ge=0, description="Own examples that a profile is learned from.")
    query: int = Field(100, ge=1, description="Further examples per person that are predicted, at most.")


@final
class AgainstCentralConfig(Strict):
    """The whole of it."""

    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Each splits the people anew.")
    coordinator: CoordinatorConfig
    data: DataConfig
    groups: GroupsConfig
    central: CentralConfig
    rounds: RoundsConfig
    federated: FederatedConfig
    evaluation: AskedConfig

    @model_validator(mode="after")
    def _usable(self) -> Self:
        problems = [] if len(set(self.seeds)) == len(self.seeds) else ["seeds: some are given twice"]
        problems += _tried_problems("central", self.coordinator.training, self.central.tried)
        problems += _tried_problems("federated", self.rounds, self.federated.tried)
        if self.rounds.rounds % self.federated.look_every or not self.rounds.rounds:
            problems.append(f"rounds.rounds is {self.rounds.rounds}, expected a multiple of look_every")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def training(self, number: int, seed: int) -> CoordinatorConfig:
        """Returns the coordinator's configuration for what is tried of central training."""
        training = changed(self.coordinator.training, self.central.tried[number], f"central.tried.{number}")
        return self.coordinator.model_copy(update={"training": training, "seed": seed})

    def rounds_of(self, number: int) -> RoundsConfig:
        """Returns the rounds of what is tried of them."""
        return changed(self.rounds, self.federated.tried[number], f"federated.tried.{number}")


def changed(base: Section, options: Mapping[str, Any], place: str) -> Section:
    """Returns a section with some values changed.

    Raises:
        ConfigError: There are no such values, or they are out of range.
    """
    return validated(type(base), {**base.model_dump(), **options}, place)


def _tried_problems(name: str, base: Section, tried: Sequence[Options]) -> list[str]:
    problems = []
    for number, options in enumerate(tried):
        try:
            changed(base, options, f"{name}.tried.{number}")
        except ConfigError as error:
            problems += [f"{name}.tried.{number}: {problem}" for problem in error.problems]
    return problems


def is_against_central(folder: Path) -> bool:
    """Says whether an experiment's configuration is of this kind."""
    return "federated" in read_toml(folder / CONFIG)


def read_against_central(folder: Path, data: Path | None, seed: int | None) -> AgainstCentralConfig:
    """Reads the configuration.

    Args:
        folder: Where its config.toml lies.
        data: Where the examples lie, if not where it says.
        seed: Only this one.

    Raises:
        ConfigError: Keys are unknown or values out of range; all are listed.
    """
    row = read_toml(folder / CONFIG)
    sections = {name: row.pop(name) for name in _SECTIONS if name in row}
    if data is not None:
        sections["data"] = {**sections.get("data", {}), "path": str(data)}
    if seed is not None:
        sections["seeds"] = [seed]
    return validated(AgainstCentralConfig, {"coordinator": row, **sections}, str(folder / CONFIG))
