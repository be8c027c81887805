"""AdamW for one user in plain Python, one value after another, in the order of the paper's algorithm."""

from collections.abc import Sequence

from umbel.shared.recipe import LearningRecipe


def adamw_oracle(
    start: Sequence[float], gradients: Sequence[Sequence[float]], recipe: LearningRecipe
) -> list[float]:
    """Returns the values of one tensor of one user after a step for each row of gradients.

    Args:
        start: The values of the tensor, in any fixed order.
        gradients: For each step, the gradient of every value.
        recipe: Rates and moments; step t of T has the rate (1 - (t - 1) / T) times the first one.
    """
    x, m, v = list(start), [0.0] * len(start), [0.0] * len(start)
    for t, g in enumerate(gradients, 1):
        rate = recipe.learning_rate * (1 - (t - 1) / recipe.steps)
        square = [value * value for value in g]
        if recipe.second_moment == "tensor":
            square = [sum(square) / len(square)] * len(square)
        for i in range(len(x)):
            m[i] = recipe.beta1 * m[i] + (1 - recipe.beta1) * g[i]
            v[i] = recipe.beta2 * v[i] + (1 - recipe.beta2) * square[i]
            m_hat = m[i] / (1 - recipe.beta1**t)
            v_hat = v[i] / (1 - recipe.beta2**t)
            divisor = 1.0 if recipe.second_moment == "none" else v_hat**0.5 + recipe.epsilon
            x[i] -= rate * m_hat / divisor + rate * recipe.weight_decay * x[i]
    return x
