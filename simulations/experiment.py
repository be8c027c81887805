"""An experiment's configuration: people, coordinator, rounds, and how unseen people are measured."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, final

from pydantic import Field, field_validator, model_validator

from umbel.coordinator.config import CoordinatorConfig, Strict, read_toml, validated
from umbel.coordinator.federation.settings import RoundSettings
from umbel.shared.errors import ConfigError, UmbelError
from umbel.simulations.data.community import CommunityConfig

CONFIG = "config.toml"


@final
class DataConfig(Strict):
    """[data]: who judges what, and who is seen or new."""

    source: Literal["community", "movielens", "crehate", "clinc150", "paradigms", "lamp", "file"] = Field(
        default="community",
        description="The generated community, a public format (its folder by --data), or a file.",
    )
    path: str | None = Field(default=None, description="Folder or file; --data overrides it.")
    users: int | None = Field(default=None, ge=4, description="How many people; None takes all.")
    unseen_share: float = Field(default=0.3, gt=0, lt=1, description="Share of people that are new.")
    query_share: float = Field(
        default=0.5, gt=0, lt=1, description="Share of a new person's examples to predict."
    )
    heldout_share: float = Field(
        default=0.15, gt=0, lt=1, description="Share of a seen person's examples held out."
    )
    min_examples: int = Field(default=4, ge=2, description="People with fewer examples are left out.")
    community: dict[str, int | float] = Field(
        default_factory=dict, description="Options of the generated community."
    )

    @field_validator("community")
    @classmethod
    def _community(cls, value: dict[str, int | float]) -> dict[str, int | float]:
        options: dict[str, Any] = dict(value)
        try:
            CommunityConfig(**options)
        except TypeError as error:
            raise ValueError(str(error).replace("CommunityConfig.__init__() ", "")) from None
        except UmbelError as error:
            raise ValueError("; ".join(error.problems) or error.headline) from None
        return value

    @model_validator(mode="after")
    def _read_or_generated(self) -> Self:
        if self.source == "community" and self.path is not None:
            raise ValueError(
                "source is 'community', which is generated: nothing is read from path (--data); say source = "
                "'file' for a file of examples, or leave path out"
            )
        return self


@final
class RoundsConfig(Strict):
    """[rounds]: federated rounds with seen users."""

    engine: Literal["cohort", "flower", "serial"] = Field(
        default="cohort", description="What runs the devices."
    )
    rounds: int = Field(default=3, ge=0, description="How many rounds.")
    clients: int = Field(default=8, ge=1, description="Devices per round.")
    evaluate_clients: int = Field(
        default=12, ge=0, description="Seen users whose held-out examples are looked at."
    )
    device_examples: int = Field(
        default=16, ge=2, description="Examples that a seen user's device holds, at most."
    )
    device_heldout: int = Field(default=24, ge=1, description="Held-out examples of a seen user, at most.")
    local_steps: int = Field(default=2, ge=1, description="Shared steps on a device.")
    local_rate: float = Field(default=0.01, gt=0, description="Their rate.")
    batch_size: int = Field(default=8, ge=1, description="Examples per shared step.")
    profile_dropout: float = Field(default=0.2, ge=0, le=1, description="Share of them seen without profile.")
    onboarding_steps: int = Field(
        default=4, ge=0, description="Episodes of a device, where rounds train the onboarding network."
    )
    onboarding_rate: float = Field(default=0.05, gt=0, description="The rate of their steps.")
    onboarding_learning_steps: int = Field(
        default=2, ge=0, description="Few-shot steps after which every other episode takes its loss."
    )
    clip: float = Field(default=1.0, gt=0, description="Largest L2 norm of one device's change.")
    min_replies: int = Field(default=1, ge=1, description="A round with fewer changes moves nothing.")
    server_rate: float = Field(default=1.0, gt=0, description="How far the mean change is followed.")
    server_momentum: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the last move that is kept."
    )
    weighting: str = Field(
        default="uniform", description="uniform: devices count the same; examples: by how many they have."
    )
    example_cap: int = Field(default=32, ge=1, description="Examples that a device counts for, at most.")
    noise_multiplier: float = Field(
        default=0.0, ge=0, description="Noise on a round's sum, over the clip; 0: no privacy budget."
    )
    epsilon_budget: float = Field(
        default=0.0, ge=0, description="No round begins that would cost more in all; 0: no end."
    )
    delta: float = Field(default=1e-6, gt=0, lt=1, description="Chance with which epsilon may not hold.")
    clip_quantile: float = Field(
        default=0.0, ge=0, le=1, description="The clip follows this quantile of norms; 0: it stays."
    )
    clip_rate: float = Field(default=0.2, ge=0, description="How fast it follows.")
    rule: str = Field(
        default="mean", description="How changes become one: mean, median, trimmed-mean, krum or multi-krum."
    )
    outlier_share: float = Field(
        default=0.2, ge=0, lt=0.5, description="Share of the devices that a robust rule takes to be liars."
    )

    secure: bool = Field(
        default=False,
        description="Sum by secure aggregation; off, for one process here sees everything anyway.",
    )
    min_devices_in_a_sum: int = Field(
        default=5, ge=3, description="With secure: a sum over fewer devices is not opened."
    )

    @model_validator(mode="after")
    def _usable(self) -> Self:
        try:
            self.settings(0)
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from None
        return self

    def settings(self, seed: int) -> RoundSettings:
        """Returns the settings of the rounds."""
        return RoundSettings(
            rounds=self.rounds,
            clients=self.clients,
            seed=seed,
            local_steps=self.local_steps,
            local_rate=self.local_rate,
            batch_size=self.batch_size,
            profile_dropout=self.profile_dropout,
            onboarding_steps=self.onboarding_steps,
            onboarding_rate=self.onboarding_rate,
            onboarding_learning_steps=self.onboarding_learning_steps,
            clip=self.clip,
            min_replies=self.min_replies,
            server_rate=self.server_rate,
            server_momentum=self.server_momentum,
            weighting=self.weighting,
            example_cap=self.example_cap,
            rule=self.rule,
            noise_multiplier=self.noise_multiplier,
            epsilon_budget=self.epsilon_budget,
            delta=self.delta,
            clip_quantile=self.clip_quantile,
            clip_rate=self.clip_rate,
            noise_source="seed",
            outlier_share=self.outlier_share,
            evaluate_clients=self.evaluate_clients,
            secure=self.secure,
            min_devices_in_a_sum=self.min_devices_in_a_sum,
        )


@final
class EvaluationConfig(Strict):
    """[evaluation]: how unseen people are measured."""

    k: tuple[int, ...] = Field(
        default=(0, 1, 2, 4, 8, 16, 32), min_length=1, description="Counts of own examples."
    )
    users: int | None = Field(default=None, ge=1, description="Unseen people at most; None takes all.")
    query: int = Field(default=40, ge=1, description="Query examples per person, at most.")
    batch_users: int = Field(default=8, ge=1, description="People who learn side by side in one graph run.")

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.k) != sorted(set(self.k)) or self.k[0] < 0:
            raise ValueError("k must be ascending, different and not negative")
        return self


@final
class ExperimentConfig(Strict):
    """A whole experiment."""

    coordinator: CoordinatorConfig
    data: DataConfig
    rounds: RoundsConfig
    evaluation: EvaluationConfig


def experiment_folder(name_or_path: str) -> Path:
    """Finds an experiment: one that comes with umbel by name, or a folder with a config.toml.

    Raises:
        ConfigError: There is neither; the known ones are listed.
    """
    own = Path(name_or_path)
    if (own / CONFIG).is_file():
        return own
    shipped = Path(str(resources.files("umbel.simulations.experiments")))
    if "/" not in name_or_path and (shipped / name_or_path / CONFIG).is_file():
        return shipped / name_or_path
    known = sorted(path.parent.name for path in shipped.glob(f"*/{CONFIG}"))
    raise ConfigError(
        f"there is no experiment '{name_or_path}'",
        hint=f"Known experiments: {', '.join(known)}; or give a folder that holds a {CONFIG}.",
    )


def read_experiment(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> ExperimentConfig:
    """Reads an experiment, with some values changed from the command line.

    Args:
        folder: Where its config.toml lies.
        changes: Section -> key -> value; section "" is the top level.

    Raises:
        ConfigError: Keys are unknown or values out of range, in any section: all are listed.
    """
    row = changed(read_toml(folder / CONFIG), changes)
    sections = {name: row.pop(name, {}) for name in ("data", "rounds", "evaluation")}
    return validated(ExperimentConfig, {"coordinator": row, **sections}, str(folder / CONFIG))


def changed(row: dict[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a configuration that was read, with some values changed in it.

    Args:
        row: What was read.
        changes: Section -> key -> value; section "" is the top level.
    """
    for section, values in changes.items():
        target = row if section == "" else row.setdefault(section, {})
        if isinstance(target, dict):  # anything else is refused when it is validated, with all other problems
            target.update(values)
    return row
