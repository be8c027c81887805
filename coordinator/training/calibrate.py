"""Chooses the learning recipe on calibration users: seen users whose examples nothing was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch

from umbel.coordinator.config import RecipeConfig
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.training.data import Rows
from umbel.shared.bias import fit_bias, softmax
from umbel.shared.learning import minimise
from umbel.shared.profile import FloatArray
from umbel.shared.recipe import LearningRecipe
from umbel.shared.text import TokenBatch

Starts = Callable[[Rows, int], Mapping[str, FloatArray]]
"""What is known of some users (`Rows.user` counts them), and how many -> their first profiles."""

_QUERY = 24
TOGETHER = 16
"""Users whose examples share a batch: memory grows with it."""


@final
class TorchGradients:
    """The torch twin of the device's learn and predict graphs; the only torch <-> numpy door of learning."""

    def __init__(self, model: PersonalModel, tokens: TokenBatch, *, bfloat16: bool = False):
        self.model = model.eval()
        self.tokens = tokens
        self.bfloat16 = bfloat16
        self.device = next(model.parameters()).device

    def learn(
        self, rows: Rows, profile: Mapping[str, FloatArray]
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Returns each example's nll and the gradient of their sum, by private tensor (users, *shape).

        `rows.user` indexes the leading axis of the profile.
        """
        leaves = {n: torch.from_numpy(v).to(self.device).requires_grad_() for n, v in profile.items()}
        nll = self.model.task.nll(self._logits(rows, leaves), torch.from_numpy(rows.label).to(self.device))
        # Without private tensors, as a generic baseline is trained, there is nothing to differentiate by.
        gradients = torch.autograd.grad(nll.sum(), list(leaves.values())) if leaves else ()
        return nll.detach().cpu().numpy(), {
            name: gradient.cpu().numpy() for name, gradient in zip(leaves, gradients, strict=True)
        }

    @torch.no_grad()
    def logits(self, rows: Rows, profile: Mapping[str, FloatArray]) -> FloatArray:
        """Returns logits (batch, labels)."""
        tensors = {name: torch.from_numpy(values).to(self.device) for name, values in profile.items()}
        return np.asarray(self._logits(rows, tensors).cpu().numpy(), np.float32)

    def _logits(self, rows: Rows, profile: Mapping[str, Any]) -> Any:
        tokens = self.tokens.rows(rows.text)
        arrays = (tokens.ids, tokens.mask, rows.user)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits = self.model(*(torch.from_numpy(array).to(self.device) for array in arrays), profile)
        return logits.float()


def choose_recipe(
    model: PersonalModel,
    tokens: TokenBatch,
    users: Sequence[Rows],
    config: RecipeConfig,
    on_trial: Callable[[int, int], None] | None = None,
    starts: Starts | None = None,
) -> tuple[LearningRecipe, list[dict[str, Any]]]:
    """Tries every combination and returns the one with the lowest query loss, averaged over support sizes.

    With `config.by_k` each support size then has its own rate, prior and start: see `staged`.

    Args:
        model: The trained model.
        tokens: Every text.
        users: Calibration users' rows; the first ones of each are support, the next ones query.
        config: What to try. Without calibration users nothing is run, and the first combination is taken;
            a single combination is taken untried.
        on_trial: Called with (trials done, trials in all).
        starts: Where users start who are known by some rows; zeros if None.

    Returns:
        The recipe, and a row for each combination: its options, nll and accuracy by k.
    """
    own = relative(model)
    recipes = [
        LearningRecipe(
            steps=s,
            learning_rate=rate,
            prior_strength=prior,
            second_moment=moment,
            folds=config.folds,
            trust=config.trust,
            start=start,
            **own,
        )
        for s, rate, prior, moment, start in product(
            config.steps,
            config.learning_rate,
            config.prior_strength,
            config.second_moment,
            config.start if starts is not None else (1.0,),
        )
    ]
    able = able_users(users, config)
    if not able:
        return recipes[0], []
    twin = TorchGradients(model, tokens)
    trials = []
    for number, recipe in enumerate(recipes if len(recipes) > 1 else ()):
        trials.append({"recipe": recipe.as_json(), **_trial(twin, able, recipe, config.k, starts)})
        if on_trial is not None:
            on_trial(number + 1, len(recipes))
    best = min(range(len(trials)), key=lambda number: float(trials[number]["loss"]), default=0)
    bias_prior = _choose_bias_prior(twin, able, config)
    chosen = replace(recipes[best], bias_prior=bias_prior)
    return staged(chosen, recipes, trials, config.k) if config.by_k and trials else chosen, trials


def staged(
    chosen: LearningRecipe,
    recipes: Sequence[LearningRecipe],
    trials: Sequence[Mapping[str, Any]],
    ks: Sequence[int],
) -> LearningRecipe:
    """Returns a recipe that learns from each k as went best for it, steps and second moment being the same.

    What was best for the smallest k holds for fewer examples, too; from one k to the next it changes at their
    geometric mean.

    Args:
        chosen: The best for all k together.
        recipes: What was tried.
        trials: What came of each, with its nll by k.
        ks: The k for which it was tried.
    """
    able = [
        number
        for number, recipe in enumerate(recipes)
        if (recipe.steps, recipe.second_moment) == (chosen.steps, chosen.second_moment)
    ]
    ordered = sorted(set(ks))
    best = [recipes[min((_nll_at(trials[n], k), n) for n in able)[1]] for k in ordered]
    rows = [(own.learning_rate, own.prior_strength, own.start) for own in best]
    stages = [
        {
            "examples": math.ceil((low * high) ** 0.5),
            "learning_rate": row[0],
            "prior_strength": row[1],
            "start": row[2],
        }
        for low, high, before, row in zip(ordered, ordered[1:], rows, rows[1:], strict=False)
        if row != before
    ]
    rate, prior, start = rows[0]
    return replace(chosen, learning_rate=rate, prior_strength=prior, start=start, stages=stages)


def _nll_at(trial: Mapping[str, Any], k: int) -> float:
    found = float(trial["nll"][str(k)])
    return found if math.isfinite(found) else math.inf


def relative(model: PersonalModel) -> dict[str, Any]:
    """Returns what methods want of a recipe for their private tensors: `rates`, `priors` and `moments`."""
    own: dict[str, Any] = {"rates": {}, "priors": {}, "moments": {}}
    for method in model.method_list():
        config = method.config
        for tensor in method.profile_tensors():
            if config.device_rate != 1.0:
                own["rates"][tensor.name] = config.device_rate
            if config.device_prior != 1.0:
                own["priors"][tensor.name] = config.device_prior
            if config.device_moment != "recipe":
                own["moments"][tensor.name] = config.device_moment
    return own


def _trial(
    twin: TorchGradients,
    users: Sequence[Rows],
    recipe: LearningRecipe,
    ks: Sequence[int],
    starts: Starts | None,
) -> dict[str, Any]:
    """Returns the query loss over all k, with nll and accuracy for each k; inf if it is not finite."""
    most = max(ks)
    found: dict[str, Any] = {"nll": {}, "accuracy": {}}
    for k in ks:
        parts = [
            _learn_some(twin, users[at : at + TOGETHER], recipe, k, most, starts)
            for at in range(0, len(users), TOGETHER)
        ]
        nll = np.concatenate([part[0] for part in parts])
        found["nll"][str(k)] = float(nll.mean())
        found["accuracy"][str(k)] = float(np.concatenate([part[1] for part in parts]).mean())
    loss = float(np.mean(list(found["nll"].values())))
    return {"loss": loss if np.isfinite(loss) else float("inf"), **found}


def _learn_some(
    twin: TorchGradients,
    users: Sequence[Rows],
    recipe: LearningRecipe,
    k: int,
    most: int,
    starts: Starts | None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Learns some users' profiles side by side; returns nll and hits of their query examples."""
    support = side_by_side([rows.take(np.arange(k)) for rows in users])
    query = side_by_side([query_rows(rows, most) for rows in users])
    origin = twin.model.profile_spec().zeros(len(users))
    if starts is not None and recipe.start:
        found = starts(support, len(users))
        origin = {name: values * np.float32(recipe.start) for name, values in found.items()}
    logits = twin.logits(query, minimise(lambda profile: twin.learn(support, profile), origin, recipe))
    return _nll(logits, query), logits.argmax(1) == query.label


def able_users(users: Sequence[Rows], config: RecipeConfig) -> list[Rows]:
    """Returns the calibration users who have something to ask them beside the largest k."""
    return [rows for rows in users if len(rows) > max(config.k)][: config.users]


def query_rows(rows: Rows, most: int) -> Rows:
    """Returns the examples that a calibration user is asked, behind the `most` that are learned from."""
    return rows.take(np.arange(most, min(len(rows), most + _QUERY)))


def _choose_bias_prior(twin: TorchGradients, users: Sequence[Rows], config: RecipeConfig) -> float:
    """Gives the baseline the same care: its prior is chosen on the same users."""
    most = max(config.k)
    zeros = twin.model.profile_spec().zeros(1)
    logits = [twin.logits(rows.take(np.arange(min(len(rows), most + _QUERY))), zeros) for rows in users]
    losses = []
    for prior in config.bias_prior:
        total = []
        for rows, z in zip(users, logits, strict=True):
            for k in config.k:
                bias = fit_bias(z[:k], rows.label[:k], prior)
                total.append(_nll(z[most:] + bias, query_rows(rows, most)).mean())
        losses.append(float(np.mean(total)))
    return float(config.bias_prior[int(np.argmin(losses))])


def side_by_side(parts: Sequence[Rows]) -> Rows:
    """Stacks people's rows, numbering the people as they come."""
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Rows(np.concatenate([p.text for p in parts]), owner, np.concatenate([p.label for p in parts]))


def _nll(logits: Any, rows: Rows) -> npt.NDArray[np.float64]:
    probability = softmax(logits)[np.arange(len(rows)), rows.label]
    return np.asarray(-np.log(np.maximum(probability, 1e-12)))
