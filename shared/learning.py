"""Few-shot learning itself, whoever computes the gradients: onnxruntime on a device, torch elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from umbel.shared.adamw import AdamW
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe

Gradients = Callable[[Mapping[str, FloatArray]], tuple[FloatArray, dict[str, FloatArray]]]


def minimise(
    gradients_at: Gradients,
    origin: Mapping[str, FloatArray],
    recipe: LearningRecipe,
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, FloatArray]:
    """Minimises, for each user, sum_i nll_i + prior_strength / 2 |profile - origin|^2.

    Args:
        gradients_at: profile -> (nll of every example (batch,), gradient of their sum for every tensor
            (users, *shape)).
        origin: Where to start, and what the prior pulls to: (users, *shape).
        recipe: Steps, rates, prior.
        on_step: Called after every step with its number (from 1) and the mean nll before it.

    Returns:
        name -> (users, *shape) float32.
    """
    optimizer = AdamW(recipe)
    profile = dict(origin)
    for number in range(1, recipe.steps + 1):
        nll, gradients = gradients_at(profile)
        pulled = {
            name: gradient + recipe.prior_of(name) * (profile[name] - origin[name])
            for name, gradient in gradients.items()
        }
        profile = optimizer.step(profile, pulled)
        if on_step is not None:
            on_step(number, float(nll.mean()))
    return profile
