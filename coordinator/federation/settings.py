"""The settings of a run of rounds, and how they go through a transport's flat run config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, final

from umbel.coordinator.federation.aggregation import REGISTRY, rule_class
from umbel.coordinator.federation.aggregation.base import RuleOptions
from umbel.coordinator.federation.aggregation.exact import MOST_WEIGHT
from umbel.coordinator.federation.privacy.budget import PrivacySettings
from umbel.coordinator.federation.secure.plan import SecureSettings
from umbel.shared.checks import count_problems, number_problems, parsed_json
from umbel.shared.errors import ConfigError, ReleaseError
from umbel.shared.messages import RATES, LocalSettings
from umbel.shared.norms import largest
from umbel.shared.recipe import LearningRecipe
from umbel.shared.secure.group import MOST_DEVICES

WEIGHTINGS = ("uniform", "examples")
NOISE_SOURCES = ("key", "seed")
SEEDED = (
    "THE NOISE FOLLOWS FROM THE SEED (noise_source = seed): whoever knows the seed can take it off. "
    "This is for simulations, it protects nobody."
)
"""What is said where noise is no secret."""
_PRIVACY = tuple(field.name for field in fields(PrivacySettings))
_NUMBERS = (
    *RATES, *_PRIVACY, "server_rate", "server_momentum", "outlier_share", "timeout_s", "secure_threshold",
    "secure_stage_s",
)  # fmt: skip
_LEAST_NOISE = 0.1
_COUNTS = {
    "rounds": (0, 100_000),
    "clients": (1, 10**7),
    "seed": (-(2**63), 2**63 - 1),
    "evaluate_clients": (0, 10**7),
    "min_replies": (1, 10**7),
    "probation_rounds": (0, 10**4),
}
_FREE = ("rounds", "timeout_s", "secure_stage_s")
"""What may be another when a run goes on."""
_RANGES = {
    "server_rate": (0.0, 1e3),
    "server_momentum": (0.0, 0.999),
    "outlier_share": (0.0, 0.49),
    "noise_multiplier": (0.0, 1e6),
    "epsilon_budget": (0.0, 1e6),
    "delta": (1e-12, 0.1),
    "clip_quantile": (0.0, 1.0),
    "clip_rate": (0.0, 10.0),
    "timeout_s": (0.001, 1e9),
    "secure_stage_s": (0.001, 1e9),
}


@final
@dataclass(frozen=True, slots=True)
class RoundSettings:
    """What happens in a run of rounds.

    Attributes:
        rounds: How many.
        clients: Devices that train in a round; all of them where there are fewer.
        seed: Of all randomness.
        local_steps: Minibatch SGD steps of a device on the shared tensors.
        local_rate: Their rate.
        batch_size: Examples per step.
        clip: Largest L2 norm of a device's change.
        example_cap: Largest number of examples that a device reports.
        profile_dropout: Chance that an example of a shared step is seen without the profile.
        onboarding_steps: Episodes of a device, where rounds train the onboarding network.
        onboarding_rate: The rate of their steps.
        onboarding_learning_steps: Few-shot steps after which every other episode takes its loss; 0: none.
        recipe: How devices learn their profile; the release's own recipe if None.
        server_rate: How far the shared tensors move along the mean change.
        server_momentum: Share of the last move that is kept; 0 for none.
        rule: How the changes become one: a name of `aggregation.REGISTRY`.
        weighting: "uniform": devices count the same; "examples": as much as the examples they report. Only
            the mean can weigh.
        outlier_share: Share of the devices that a robust rule takes to be liars.
        min_replies: A round with fewer usable changes leaves the shared tensors as they are.
        probation_rounds: For how many rounds a device is left out whose answer breaks the contract; twice as
            many each further time. 0 leaves nobody out.
        noise_multiplier: Standard deviation of the noise on a round's sum, over the clip; 0: no noise. With
            noise, each device of the population is sampled by its own chance, clients over the population,
            and the mean is over clients, whoever answers.
        epsilon_budget: No round begins that would cost more than this in all; 0: no end.
        delta: The chance with which the bound of epsilon may fail.
        clip_quantile: With noise: the clip follows this quantile of the devices' norms; 0: it stays.
        clip_rate: How fast it follows.
        noise_source: "key": sample and noise follow from a secret key that is kept in the out folder; "seed":
            from the seed, which protects nobody, for simulations.
        evaluate_clients: Devices of the fixed panel that is evaluated after each round; 0 for none.
        timeout_s: Longest wait for a stage's replies, in seconds.
        secure: Whether changes are summed by secure aggregation, so that no device's is seen by itself.
        min_devices_in_a_sum: A secure sum over fewer is not opened, here and by the devices.
        secure_threshold: Share of a device's peers that must remain for its masks to be taken off.
        secure_peers: The most others that a device has masks with; all of them where there are fewer.
        secure_stage_s: Longest wait for a stage in which a device has next to nothing to do, in seconds.
    """

    rounds: int = 10
    clients: int = 10
    seed: int = 0
    local_steps: int = 4
    local_rate: float = 0.05
    batch_size: int = 8
    clip: float = 1.0
    example_cap: int = 32
    profile_dropout: float = 0.2
    onboarding_steps: int = 4
    onboarding_rate: float = 0.05
    onboarding_learning_steps: int = 2
    recipe: LearningRecipe | None = None
    server_rate: float = 1.0
    server_momentum: float = 0.0
    rule: str = "mean"
    weighting: str = "uniform"
    outlier_share: float = 0.2
    min_replies: int = 1
    probation_rounds: int = 2
    noise_multiplier: float = 0.0
    epsilon_budget: float = 0.0
    delta: float = 1e-6
    clip_quantile: float = 0.0
    clip_rate: float = 0.2
    noise_source: str = "key"
    evaluate_clients: int = 0
    timeout_s: float = 3600.0
    secure: bool = True
    min_devices_in_a_sum: int = 5
    secure_threshold: float = 0.6
    secure_peers: int = 32
    secure_stage_s: float = 60.0

    def __post_init__(self) -> None:
        problems = self.local().problems()
        for name, (low, high) in _COUNTS.items():
            problems += count_problems(name, getattr(self, name), low, high)
        for name, (least, most) in _RANGES.items():
            problems += number_problems(name, getattr(self, name), least, most)
        problems += self._rule_problems() + self._secure_problems()
        problems += [] if problems else self._privacy_problems()
        if problems:
            raise ConfigError("the settings of the rounds cannot be used", problems, "Change these values.")

    def _rule_problems(self) -> list[str]:
        problems = []
        choices = (("rule", tuple(REGISTRY)), ("weighting", WEIGHTINGS), ("noise_source", NOISE_SOURCES))
        for name, known in choices:
            if getattr(self, name) not in known:
                problems.append(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if not problems and self.rule != "mean" and self.weighting != "uniform":
            problems.append(f"weighting is {self.weighting!r}, but rule '{self.rule}' does not weigh devices")
        if not problems and self.weighting == "examples" and self._most_weight() > MOST_WEIGHT:
            problems.append(
                f"clients times example_cap is {self._most_weight()}, at most {MOST_WEIGHT} add up"
            )
        return problems

    def _secure_problems(self) -> list[str]:
        problems = self.secure_settings().problems()
        if self.secure not in (True, False):
            problems.append(f"secure is {self.secure!r}, expected true or false")
        if not self.secure or problems:
            return problems
        clients, least = self.clients, self.secure_settings().least
        counted = not count_problems("clients", clients, *_COUNTS["clients"])
        if counted and not least <= clients <= MOST_DEVICES:
            found = f"clients is {clients}, expected {least} to {MOST_DEVICES}"
            problems.append(f"{found} where changes are summed securely")
        if self.rule in REGISTRY and rule_class(self.rule).sees_each:
            problems.append(
                f"rule '{self.rule}' looks at each change by itself: set secure = false to let it"
            )
        return problems

    def secure_settings(self) -> SecureSettings:
        """Returns the part that a secure sum is told."""
        least = max(self.min_devices_in_a_sum, self.min_replies)
        return SecureSettings(least, self.secure_threshold, self.secure_peers)

    def least_devices(self) -> int:
        """Returns with how many devices a round can come to anything."""
        return self.secure_settings().least if self.secure else self.min_replies

    def _privacy_problems(self) -> list[str]:
        if not self.noise_multiplier:
            needless = [name for name in ("epsilon_budget", "clip_quantile") if getattr(self, name)]
            return [f"{name} is {getattr(self, name)}, but noise_multiplier is 0" for name in needless]
        problems = []
        for name, needed in (("rule", "mean"), ("weighting", "uniform"), ("min_replies", 1)):
            if getattr(self, name) != needed:
                problems.append(f"{name} is {getattr(self, name)!r}, with noise it must be {needed!r}")
        if self.noise_multiplier < _LEAST_NOISE:
            problems.append(
                f"noise_multiplier is {self.noise_multiplier}: below {_LEAST_NOISE} nothing is protected, "
                "and epsilon takes long to compute"
            )
        if self.noise_source == "key" and self.evaluate_clients:
            problems.append(
                "evaluate_clients must be 0 with noise: what devices count right is told without any"
            )
        return problems

    def privacy(self) -> PrivacySettings | None:
        """Returns what is promised of privacy; None without noise."""
        if not self.noise_multiplier:
            return None
        return PrivacySettings(**{name: getattr(self, name) for name in _PRIVACY})

    def _most_weight(self) -> int:
        return self.clients * self.example_cap

    def rule_options(self, clip: float) -> RuleOptions:
        """Returns the part that the rule is told of a round with this clip."""
        return RuleOptions(largest(clip), self.weighting, self.outlier_share)

    def local(self, clip: float | None = None) -> LocalSettings:
        """Returns the part that devices are told; with a clip, that of a round whose clip is another."""
        own = {f.name: getattr(self, f.name) for f in fields(LocalSettings) if hasattr(self, f.name)}
        tells = self.noise_multiplier != 0 and self.clip_quantile != 0
        return LocalSettings(**(own | ({} if clip is None else {"clip": clip})), tell_within=tells)

    def as_run_config(self) -> dict[str, str | int | float | bool]:
        """Returns the settings as scalars, under the keys of a run config."""
        row = asdict(self) | {name: float(getattr(self, name)) for name in _NUMBERS}
        return {**row, "recipe": json.dumps(self.recipe.as_json(), sort_keys=True) if self.recipe else ""}

    @classmethod
    def from_run_config(cls, config: Mapping[str, Any]) -> RoundSettings:
        """Reads the settings out of a run config; what is missing has its default, other keys are left alone.

        Raises:
            ConfigError: Values are of a wrong type or out of range; lists all problems.
        """
        given = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        # Whole numbers are a natural way to write rates, and a command line makes them integers.
        given |= {name: float(given[name]) for name in _NUMBERS if type(given.get(name)) is int}
        given["recipe"] = _recipe(given.get("recipe", ""))
        return cls(**given)

    def identity(self) -> dict[str, Any]:
        """Returns what must be the same for a run to be continued: all but how long it goes on or waits."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}


def _recipe(text: object) -> LearningRecipe | None:
    if text in ("", None):
        return None
    try:
        return LearningRecipe.from_json(parsed_json(str(text)))
    except ReleaseError as error:
        raise ConfigError("the settings of the rounds cannot be used", error.problems, error.hint) from None
    except ValueError:
        problem = "recipe is not the JSON of a learning recipe"
        raise ConfigError("the settings of the rounds cannot be used", [problem]) from None
