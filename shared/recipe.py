"""How a device learns a profile from its owner's examples: chosen on seen users, carried by the release."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, final

from umbel.shared.checks import count_problems, number_problems, shown
from umbel.shared.errors import ReleaseError

_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0.0, 100.0),
    "prior_strength": (0.0, 1e6),
    "weight_decay": (0.0, 1.0),
    "beta1": (0.0, 0.9999),
    "beta2": (0.0, 0.99999),
    "epsilon": (1e-12, 1.0),
    "bias_prior": (1e-6, 1e6),
}


@final
@dataclass(frozen=True, slots=True)
class LearningRecipe:
    """Minimises sum_i nll_i + prior_strength / 2 |profile|^2 from zeros by AdamW, its rate falling to 0.

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
            direction; "element": one per value, as in the original AdamW.
        bias_prior: Precision of the private bias's prior, for the baseline "generic + private bias".
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

    def problems(self) -> list[str]:
        """Returns what is out of range, one line each."""
        wrong = count_problems("steps", self.steps, 0, 10_000)
        for name, (low, high) in _RANGES.items():
            wrong += number_problems(name, getattr(self, name), low, high)
        if self.second_moment not in ("tensor", "element"):
            wrong.append(f"second_moment is {shown(self.second_moment)}, expected 'tensor' or 'element'")
        return wrong

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
        problems = [f"unknown key '{shown(name)}'" for name in sorted(set(row) - names)]
        problems += [f"missing key '{name}'" for name in sorted(names - set(row))]
        recipe = cls(**{name: value for name, value in row.items() if name in names})
        problems += recipe.problems()
        if problems:
            raise ReleaseError(
                "the learning recipe is malformed", [f"recipe: {problem}" for problem in problems]
            )
        return recipe
