"""How a device learns a profile from its owner's examples: chosen on seen users, carried by the release."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, final

from umbel.shared.errors import ReleaseError


@final
@dataclass(frozen=True, slots=True)
class LearningRecipe:
    """Minimises sum_i nll_i + prior_strength / 2 |profile|^2 from zeros with AdamW, the rate falling linearly to 0.

    Attributes:
        steps: Full-batch steps.
        learning_rate: First step's rate.
        prior_strength: Pull towards the generic profile; 1 is the prior N(0, I) where the method's basis is balanced.
        weight_decay: AdamW's decoupled decay.
        beta1: Decay of the mean gradient.
        beta2: Decay of the mean squared gradient.
        epsilon: Added to its root.
        second_moment: "tensor": one squared gradient per private tensor, so that a step keeps the gradient's direction;
            "element": one per value, as in the original AdamW.
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
        wrong = []
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 0 <= self.steps <= 10_000:
            wrong.append(f"steps is {self.steps!r}, expected an integer from 0 to 10000")
        for name, low, high in (
            ("learning_rate", 0.0, 100.0),
            ("prior_strength", 0.0, 1e6),
            ("weight_decay", 0.0, 1.0),
            ("beta1", 0.0, 0.9999),
            ("beta2", 0.0, 0.99999),
            ("epsilon", 0.0, 1.0),
            ("bias_prior", 0.0, 1e6),
        ):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not low <= value <= high:
                wrong.append(f"{name} is {value!r}, expected a number from {low} to {high}")
        if self.second_moment not in ("tensor", "element"):
            wrong.append(f"second_moment is {self.second_moment!r}, expected 'tensor' or 'element'")
        return wrong

    def as_json(self) -> dict[str, Any]:
        """Returns the recipe as the manifest holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> LearningRecipe:
        """Reads a recipe back.

        Raises:
            ReleaseError: Keys are unknown or missing, or values out of range.
        """
        names = {field.name for field in fields(cls)}
        problems = [f"recipe: unknown key '{name}'" for name in sorted(set(row) - names)]
        problems += [f"recipe: missing key '{name}'" for name in sorted(names - set(row))]
        if not problems:
            recipe = cls(**row)
            problems = [f"recipe: {problem}" for problem in recipe.problems()]
        if problems:
            raise ReleaseError("the learning recipe is malformed", problems)
        return recipe
