"""The recipe is chosen on calibration users, by torch gradients that are the device's."""

import numpy as np
import pytest
import torch
from tests.coordinator.conftest import VOCABULARY, TinyBackbone
from tests.coordinator.personal import TINY_PLORA, random_users, trained_model
from tests.numeric import assert_close_relative

from umbel.coordinator.config import RecipeConfig
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.training import calibrate
from umbel.coordinator.training.calibrate import TorchGradients, choose_recipe, staged
from umbel.coordinator.training.data import Rows
from umbel.shared.adamw import AdamW
from umbel.shared.bias import softmax
from umbel.shared.learning import minimise
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import generator
from umbel.shared.text import TokenBatch

USERS, EACH = 5, 12


@pytest.fixture(scope="module")
def model(tiny_backbone: TinyBackbone) -> PersonalModel:
    return trained_model(tiny_backbone("bert"), TINY_PLORA)


@pytest.fixture(scope="module")
def tokens() -> TokenBatch:
    rng = generator(0, 0, "", "texts")
    ids = rng.integers(4, len(VOCABULARY), (USERS * EACH, 5))
    return TokenBatch(ids, np.ones_like(ids))


@pytest.fixture(scope="module")
def people(model: PersonalModel, tokens: TokenBatch) -> list[Rows]:
    """People whose labels are drawn from the model itself under a true profile: learning must pay."""
    twin = TorchGradients(model, tokens)
    profile = {"plora.user": random_users(3, USERS, TINY_PLORA.user_size, scale=4.0)}
    found = []
    for user in range(USERS):
        text = np.arange(user * EACH, (user + 1) * EACH)
        rows = Rows(text, np.full(EACH, user), np.zeros(EACH, np.int64))
        label = softmax(8 * twin.logits(rows, profile)).argmax(1)
        found.append(Rows(text, np.zeros(EACH, np.int64), label))
    return found


def recipe_config(**changes: object) -> RecipeConfig:
    return RecipeConfig.model_validate({"k": [4, 8], "steps": [8], "prior_strength": [1.0], **changes})


def test_the_best_of_all_combinations_is_chosen(
    model: PersonalModel, tokens: TokenBatch, people: list[Rows]
) -> None:
    """A rate of 0 learns nothing, and one of 50 with a weak prior overshoots: the one in between must win."""
    told: list[tuple[int, int]] = []
    config = recipe_config(learning_rate=[0.0, 0.3, 50.0], prior_strength=[0.01, 0.1])
    chosen, trials = choose_recipe(model, tokens, people, config, lambda n, of: told.append((n, of)))
    assert chosen.learning_rate == 0.3
    assert told == [(n, 6) for n in range(1, 7)]
    losses = [trial["loss"] for trial in trials]
    best = trials[int(np.argmin(losses))]["recipe"]
    assert {**chosen.as_json(), "bias_prior": 1.0} == best
    assert losses[0] == losses[1]  # nothing learned, whatever the prior
    for trial in trials:
        assert trial["loss"] == pytest.approx(np.mean([trial["nll"]["4"], trial["nll"]["8"]]))


def test_each_k_may_have_its_own(model: PersonalModel, tokens: TokenBatch, people: list[Rows]) -> None:
    """Each k has the best of the trials at that k; between 4 and 8 it changes at their geometric mean."""
    options: dict[str, object] = {"learning_rate": [0.02, 0.1, 0.3, 1.0], "prior_strength": [0.1, 1.0]}
    one, trials = choose_recipe(model, tokens, people, recipe_config(**options))
    own, again = choose_recipe(model, tokens, people, recipe_config(by_k=True, **options))
    assert again == trials
    assert one.stages == []
    for k, count in (("4", 1), ("4", 5), ("8", 6), ("8", 99)):
        best = min(trials, key=lambda trial: float(trial["nll"][k]))["recipe"]
        found = own.at(count)
        wanted = (best["learning_rate"], best["prior_strength"], best["start"])
        assert (found.learning_rate, found.prior_strength, found.start) == wanted
    assert own.bias_prior == one.bias_prior


def test_stages_stand_where_something_changes() -> None:
    recipes = [
        LearningRecipe(learning_rate=rate, steps=steps) for steps, rate in ((8, 0.1), (8, 0.2), (9, 0.3))
    ]
    nll = [{"2": 1.0, "8": 2.0, "32": 1.0}, {"2": 2.0, "8": 1.0, "32": 2.0}, {"2": 0.0, "8": 0.0, "32": 0.0}]
    trials = [{"nll": row} for row in nll]
    # The third has other steps than what was chosen, however good it is at each k.
    found = staged(recipes[0], recipes, trials, (32, 2, 8))
    assert found.learning_rate == 0.1
    assert [(stage["examples"], stage["learning_rate"]) for stage in found.stages] == [(4, 0.2), (16, 0.1)]
    trials[1]["nll"]["8"] = float("nan")
    assert staged(recipes[0], recipes, trials, (2, 8, 32)).stages == []


def test_a_trial_is_what_each_user_would_find_alone(
    model: PersonalModel, tokens: TokenBatch, people: list[Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe_config(learning_rate=[0.1, 0.3])
    _, together = choose_recipe(model, tokens, people, config)
    monkeypatch.setattr(calibrate, "TOGETHER", 1)
    _, alone = choose_recipe(model, tokens, people, config)
    assert [t["loss"] for t in together] == pytest.approx([t["loss"] for t in alone], rel=1e-5)
    twin = TorchGradients(model, tokens)
    nll = []
    for rows in people:
        support, query = rows.take(np.arange(4)), rows.take(np.arange(8, EACH))
        zeros = model.profile_spec().zeros(1)
        recipe = LearningRecipe(steps=8, learning_rate=0.1)
        profile = minimise(lambda p, rows=support: twin.learn(rows, p), zeros, recipe)  # type: ignore[misc]
        nll += (-np.log(softmax(twin.logits(query, profile))[np.arange(4), query.label])).tolist()
    assert together[0]["nll"]["4"] == pytest.approx(np.mean(nll), rel=1e-4)


def test_without_users_to_calibrate_on_the_first_combination_is_taken(
    model: PersonalModel, tokens: TokenBatch, people: list[Rows]
) -> None:
    config = recipe_config(learning_rate=[0.7, 0.1], k=[EACH])
    chosen, trials = choose_recipe(model, tokens, [], config)
    assert (chosen.learning_rate, trials) == (0.7, [])
    # Nobody has more examples than the largest k, so that no query is left.
    chosen, trials = choose_recipe(model, tokens, people, config)
    assert (chosen.learning_rate, trials) == (0.7, [])


def test_a_single_combination_needs_no_trial(
    model: PersonalModel, tokens: TokenBatch, people: list[Rows]
) -> None:
    chosen, trials = choose_recipe(model, tokens, people, recipe_config(bias_prior=[1e6, 0.1]))
    assert trials == []
    assert chosen.bias_prior == 0.1  # a bias that is held at 0 helps nobody


def test_torch_gradients_are_summed_over_each_users_own_examples(
    model: PersonalModel, tokens: TokenBatch, people: list[Rows]
) -> None:
    twin = TorchGradients(model, tokens)
    profile = {"plora.user": random_users(0, 2, TINY_PLORA.user_size)}
    both = Rows(
        np.concatenate([people[0].text[:3], people[1].text[:2]]),
        np.array([0, 0, 0, 1, 1]),
        np.concatenate([people[0].label[:3], people[1].label[:2]]),
    )
    nll, gradient = twin.learn(both, profile)
    for user, rows in enumerate((people[0].take(np.arange(3)), people[1].take(np.arange(2)))):
        own, alone = twin.learn(rows, {"plora.user": profile["plora.user"][user : user + 1]})
        assert_close_relative("nll", nll[both.user == user], own)
        assert_close_relative("gradient", gradient["plora.user"][user], alone["plora.user"][0])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_torchs_where_the_second_moment_is_per_value(decay: float) -> None:
    """torch's rate is set by hand in each step: it falls linearly to 0 in umbel's."""
    recipe = LearningRecipe(steps=12, learning_rate=0.3, weight_decay=decay, second_moment="element")
    rng = generator(0, 0, "", "twin")
    start = rng.normal(0, 1, (3, 4)).astype(np.float32)
    gradients = rng.normal(0, 1, (12, 3, 4)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.tensor(start))
    theirs = torch.optim.AdamW(
        [parameter], betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon, weight_decay=decay
    )
    ours, values = AdamW(recipe), {"p": start}
    for step, gradient in enumerate(gradients):
        theirs.param_groups[0]["lr"] = recipe.learning_rate * (1 - step / 12)
        parameter.grad = torch.tensor(gradient)
        theirs.step()
        values = ours.step(values, {"p": gradient})
        assert_close_relative(f"step {step}", values["p"], parameter.detach().numpy(), 1e-6)
