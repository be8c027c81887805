"""A recipe tells everything that is wrong with it, and survives a manifest."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.shared.errors import ReleaseError
from umbel.shared.recipe import LearningRecipe

NAMES = sorted(LearningRecipe().as_json())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def test_a_recipe_survives_json() -> None:
    recipe = LearningRecipe(steps=3, learning_rate=0.1, second_moment="element")
    assert LearningRecipe.from_json(json.loads(json.dumps(recipe.as_json()))) == recipe
    assert LearningRecipe().problems() == []


def stage(examples: object, **changes: object) -> dict[str, object]:
    return {"examples": examples, "learning_rate": 0.1, "prior_strength": 2.0, "start": 0.5, **changes}


def test_the_last_stage_that_is_reached_holds() -> None:
    row = LearningRecipe(steps=3, learning_rate=0.7, folds=2).as_json()
    row["stages"] = [stage(4), stage(9, learning_rate=0.2, start=1.0)]
    recipe = LearningRecipe.from_json(json.loads(json.dumps(row)))
    found = {count: recipe.at(count) for count in (0, 3, 4, 8, 9, 100)}
    assert [own.learning_rate for own in found.values()] == [0.7, 0.7, 0.1, 0.1, 0.2, 0.2]
    assert [own.prior_strength for own in found.values()] == [1.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    assert [own.start for own in found.values()] == [1.0, 1.0, 0.5, 0.5, 1.0, 1.0]
    assert all((own.steps, own.folds, own.at(100)) == (3, 2, own) for own in found.values())
    assert LearningRecipe().at(5) == LearningRecipe()


@pytest.mark.parametrize(
    ("stages", "problems"),
    [
        ({}, ["stages is {}, expected a list of at most 100 objects"]),
        ([stage(1)] * 101, ["expected a list of at most 100 objects"]),
        ([3], ["stages, 1: expected an object of examples, learning_rate, prior_strength, start"]),
        ([{"examples": 3}], ["stages, 1: expected an object"]),
        ([stage(0)], ["stages, 1, examples is 0, expected an integer from 1"]),
        (
            [stage(4), stage(4, start=2), stage("5")],
            [
                "stages, 2, examples is 4, expected an integer from 5",
                "stages, 2, start is 2, expected a number from 0 to 1",
                "stages, 3, examples is 5, expected an integer from 5",
            ],
        ),
    ],
)
def test_stages_that_are_none_are_refused(stages: object, problems: list[str]) -> None:
    with pytest.raises(ReleaseError) as caught:
        LearningRecipe.from_json(LearningRecipe().as_json() | {"stages": stages})
    assert len(caught.value.problems) == len(problems)
    for found, wanted in zip(caught.value.problems, problems, strict=True):
        assert wanted in found


def test_all_problems_at_once() -> None:
    row = LearningRecipe().as_json() | {
        "steps": -1,
        "beta1": "0.9",
        "epsilon": 0,
        "second_moment": "row",
        "x": 1,
    }
    del row["prior_strength"]
    with pytest.raises(ReleaseError) as caught:
        LearningRecipe.from_json(row)
    assert list(caught.value.problems) == [
        "recipe: unknown key 'x'",
        "recipe: missing key 'prior_strength'",
        "recipe: steps is -1, expected an integer from 0 to 10000",
        "recipe: beta1 is 0.9, expected a number from 0 to 0.9999",
        "recipe: epsilon is 0, expected a number from 1e-12 to 1",
        "recipe: second_moment is row, expected 'tensor', 'element' or 'none'",
    ]


@given(name=st.sampled_from(NAMES), value=json_values)
def test_whatever_a_field_holds_is_a_recipe_or_one_error(name: str, value: Any) -> None:
    row = LearningRecipe().as_json() | {name: value}
    wrong = LearningRecipe(**row).problems()
    if wrong:
        with pytest.raises(ReleaseError, match=name):
            LearningRecipe.from_json(row)
    else:
        assert LearningRecipe.from_json(row).as_json() == row


@pytest.mark.parametrize("row", [None, 3, "steps", NAMES, []])
def test_anything_but_an_object_is_refused(row: object) -> None:
    with pytest.raises(ReleaseError, match="expected an object"):
        LearningRecipe.from_json(row)
