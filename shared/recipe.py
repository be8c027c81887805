"""How a device learns a profile from its owner's examples: chosen on seen users, carried by the release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, final

from umbel.shared.checks import count_problems, key_problems, number_problems, shown
from umbel.shared.errors import ReleaseError

_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0.0, 100.0),
    "prior_strength": (0.0, 1e6),
    "weight_decay": (0.0, 1.0),
    "beta1": (0.0, 0.9999),
    "beta2": (0.0, 0.99999),
    "epsilon": (1e-12, 1.0),
    "bias_prior": (1e-6, 1e6),
    "trust": (-1e3, 1e3),
    "start": (0.0, 1.0),
}
_FACTORS = (0.0, 1e6)
_MOMENTS = ("tensor", "element", "none")
_MOST_TENSORS = 1000
_STAGED = ("learning_rate", "prior_strength", "start")
_MOST_STAGES = 100


@final
@dataclass(frozen=True, slots=True)
class LearningRecipe:
    """Minimises sum_i nll_i + prior_strength / 2 |profile - start|^2 by AdamW, its rate falling to 0.

    Attributes:
        steps: Full-batch steps.
        learning_rate: First step's rate.
        prior_strength: Pull towards the generic profile; 1 is the prior N(0, I) where the method's basis is
            balanced.
        weight_decay: AdamW's decoupled decay.
        beta1: Decay of the mean gradient.
        beta2: Decay of the mean squared gradient.
        epsilon: Added to its root.
        second_moment: "tensor": one squared gradient per private tensor, so that a step keeps the gradient's
            direction; "element": one per value, as in the original AdamW; "none": nothing divides the
            gradient, so that a step is as long as the examples say, and few of them move a profile little.
        bias_prior: Precision of the private bias's prior, for the baseline "generic + private bias".
        rates: Private tensor -> its rate relative to `learning_rate`; 1 where it is not named.
        priors: Private tensor -> its pull relative to `prior_strength`; 1 where it is not named.
        moments: Private tensor -> its own `second_moment`, where it is named.
        folds: Folds of the cross-validation that says how much of a profile is used; 0 uses all of it.
        trust: How many nats speak for using all of a profile before it is cross-validated.
        start: Share of the onboarded profile that learning starts from and is pulled to; where a release has
            no onboarding, it starts from zeros.
        stages: What is otherwise from so many labelled examples on, the fewest first: each an object of
            `examples`, `learning_rate`, `prior_strength` and `start`; see `at`.
    """

    steps: int = 16
    learning_rate: float = 0.3
    prior_strength: float = 1.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    second_moment: str = "tensor"
    bias_prior: float = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)
    priors: Mapping[str, float] = field(default_factory=dict)
    moments: Mapping[str, str] = field(default_factory=dict)
    folds: int = 0
    trust: float = 2.0
    start: float = 1.0
    stages: Sequence[Mapping[str, float]] = field(default_factory=list)

    def at(self, examples: int) -> LearningRecipe:
        """Returns what holds for so many labelled examples: the last stage that they reach."""
        reached = [stage for stage in self.stages if stage["examples"] <= examples]
        if not reached:
            return replace(self, stages=[])
        own = reached[-1]
        return replace(
            self,
            learning_rate=own["learning_rate"],
            prior_strength=own["prior_strength"],
            start=own["start"],
            stages=[],
        )

    def rate_of(self, tensor: str) -> float:
        """Returns the first step's rate of a private tensor."""
        return self.learning_rate * self.rates.get(tensor, 1.0)

    def prior_of(self, tensor: str) -> float:
        """Returns how strongly a private tensor is pulled to where it started."""
        return self.prior_strength * self.priors.get(tensor, 1.0)

    def moment_of(self, tensor: str) -> str:
        """Returns what divides the gradient of a private tensor."""
        return self.moments.get(tensor, self.second_moment)

    def problems(self) -> list[str]:
        """Returns what is out of range, one line each."""
        wrong = count_problems("steps", self.steps, 0, 10_000) + count_problems("folds", self.folds, 0, 100)
        for name, (low, high) in _RANGES.items():
            wrong += number_problems(name, getattr(self, name), low, high)
        wrong += _moment_problems("second_moment", self.second_moment)
        for name in ("rates", "priors"):
            wrong += _factor_problems(name, getattr(self, name))
        return wrong + _own_moment_problems(self.moments) + _stage_problems(self.stages)

    def as_json(self) -> dict[str, Any]:
        """Returns the recipe as the manifest holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: object) -> LearningRecipe:
        """Reads a recipe back; nothing about `row` is taken on trust.

        Raises:
            ReleaseError: It is no object, keys are unknown or missing, or values out of range: all are told.
        """
        if not isinstance(row, dict):
            raise ReleaseError(
                "the learning recipe is malformed", [f"recipe: found {shown(row)}, expected an object"]
            )
        names = {field.name for field in fields(cls)}
        problems = key_problems(row, names)
        recipe = cls(**{name: value for name, value in row.items() if name in names})
        problems += recipe.problems()
        if problems:
            raise ReleaseError(
                "the learning recipe is malformed", [f"recipe: {problem}" for problem in problems]
            )
        return recipe


def _factor_problems(name: str, found: object) -> list[str]:
    if not isinstance(found, dict) or not _names_tensors(found):
        return [f"{name} is {shown(found)}, expected an object: private tensor -> factor"]
    return [
        problem
        for tensor, value in found.items()
        for problem in number_problems(f"{name}, {shown(tensor)}", value, *_FACTORS)
    ]


def _own_moment_problems(found: object) -> list[str]:
    if not isinstance(found, dict) or not _names_tensors(found):
        return [f"moments is {shown(found)}, expected an object: private tensor -> second moment"]
    return [
        problem
        for tensor, value in found.items()
        for problem in _moment_problems(f"moments, {shown(tensor)}", value)
    ]


def _stage_problems(found: object) -> list[str]:
    if not isinstance(found, list) or len(found) > _MOST_STAGES:
        return [f"stages is {shown(found)}, expected a list of at most {_MOST_STAGES} objects"]
    problems: list[str] = []
    last = 0
    for number, stage in enumerate(found, 1):
        if not isinstance(stage, dict) or set(stage) != {"examples", *_STAGED}:
            problems.append(f"stages, {number}: expected an object of examples, {', '.join(_STAGED)}")
            continue
        wrong = count_problems(f"stages, {number}, examples", stage["examples"], last + 1, 10**9)
        last = last if wrong else stage["examples"]
        for name in _STAGED:
            wrong += number_problems(f"stages, {number}, {name}", stage[name], *_RANGES[name])
        problems += wrong
    return problems


def _names_tensors(found: dict[Any, Any]) -> bool:
    return len(found) <= _MOST_TENSORS and all(isinstance(name, str) for name in found)


def _moment_problems(name: str, found: object) -> list[str]:
    if isinstance(found, str) and found in _MOMENTS:
        return []
    return [f"{name} is {shown(found)}, expected 'tensor', 'element' or 'none'"]
