"""A configuration is checked as a whole: every problem is told at once, by its path in the file."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from umbel.coordinator import methods
from umbel.coordinator.config import CoordinatorConfig, read_config, validated
from umbel.coordinator.methods.plora import PLoRAConfig
from umbel.shared.errors import ConfigError


def problems_of(text: str, folder: Path) -> list[str]:
    (folder / "config.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(folder / "config.toml")
    assert "pydantic" not in str(caught.value)
    return sorted(caught.value.problems)


def test_an_empty_file_takes_every_default(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    config = read_config(tmp_path / "config.toml")
    assert config.method_configs() == {"plora": PLoRAConfig()}
    assert config.trainables == ("task.*", "methods.plora.*.A")
    assert config.backbone.train == "none"


def test_every_problem_at_once_each_by_its_path(tmp_path: Path) -> None:
    text = """
        seed = "three"
        colour = 1
        [backbone]
        train = "top:0"
        [task]
        kind = "poetry"
        labels = ["yes", "yes"]
        [methods.plora]
        rank = 0
        user_size = "x"
        colour = 2
        [methods.nothing]
        [training]
        batch_size = 0
        shared_rate = inf
        personalised_dropout = 1.0
        precision = "float8"
        steps = 3
        [recipe]
        k = []
        bias_prior = [1.0, 0.0]
        second_moment = ["row"]
    """
    known = ", ".join(sorted(methods.REGISTRY))
    assert problems_of(text, tmp_path) == [
        "backbone.train: expected 'none', 'all' or 'top:N' with N of at least 1 (found 'top:0')",
        "colour: unknown key",
        f"methods.nothing: no such method, expected some of {known} (found 'nothing')",
        "methods.plora.colour: unknown key (found 2)",
        "methods.plora.rank: must be greater than or equal to 1 (found 0)",
        "methods.plora.user_size: must be a valid integer, unable to parse string as an integer (found 'x')",
        "recipe.bias_prior.1: must be greater than or equal to 0.000001 (found 0.0)",
        "recipe.k: expected at least one value to try (found [])",
        "recipe.second_moment.0: must be 'tensor', 'element' or 'none' (found 'row')",
        "seed: must be a valid integer, unable to parse string as an integer (found 'three')",
        "task.kind: unknown task, expected one of classification (found 'poetry')",
        "task.labels: expected two or more different names (found ['yes', 'yes'])",
        "training.batch_size: must be greater than or equal to 1 (found 0)",
        "training.personalised_dropout: must be less than 1 (found 1.0)",
        "training.precision: must be 'auto', 'float32' or 'bfloat16' (found 'float8')",
        "training.shared_rate: must be a finite number (found inf)",
        "training.steps: unknown key",
    ]


@pytest.mark.parametrize("train", ["top:", "top:-1", "top:1.5", "top:²", "some", "", "TOP:1"])
def test_what_of_the_backbone_is_trained_is_spelled_exactly(tmp_path: Path, train: str) -> None:
    (problem,) = problems_of(f'backbone.train = "{train}"', tmp_path)
    assert problem.startswith("backbone.train: expected 'none', 'all' or 'top:N'")


@pytest.mark.parametrize("text", ["methods = 3", "methods = {}", "[[methods]]"])
def test_at_least_one_method(tmp_path: Path, text: str) -> None:
    (problem,) = problems_of(text, tmp_path)
    assert problem.startswith("methods: expected at least one section [methods.NAME]")


def test_a_file_that_is_not_toml_names_the_line(tmp_path: Path) -> None:
    (problem,) = problems_of("seed = 1\nseed 2", tmp_path)
    assert "line 2" in problem
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_config(tmp_path / "binary.toml")


def test_a_configuration_survives_json_with_its_defaults() -> None:
    config = validated(CoordinatorConfig, {"methods": {"plora": {"rank": 4}}}, "here")
    row = config.model_dump(mode="json")
    assert row["methods"]["plora"] == PLoRAConfig(rank=4).model_dump(mode="json")
    assert validated(CoordinatorConfig, row, "there") == config


def test_a_configuration_does_not_change_after_reading() -> None:
    config: Any = validated(CoordinatorConfig, {}, "here")
    with pytest.raises(ValidationError):
        config.seed = 1
    with pytest.raises(TypeError):
        config.methods["other"] = PLoRAConfig()
    with pytest.raises(ValidationError):
        config.methods["plora"].rank = 3


def test_a_method_registered_later_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.REGISTRY, "twin", methods.REGISTRY["plora"])
    config = validated(CoordinatorConfig, {"methods": {"twin": {"rank": 3}, "plora": {}}}, "here")
    assert list(config.method_configs()) == ["twin", "plora"]
    assert config.method_configs()["twin"] == PLoRAConfig(rank=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[training]\nadapt_steps = 5", "backbone.train = 'none'"),
        ("[onboarding]\nrounds = true", "steps = 0"),
    ],
)
def test_steps_that_would_train_nothing_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (problem,) = problems_of(text, tmp_path)
    assert words in problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('trainables = ["onboarding.*"]\n[onboarding]\nsteps = 3', "names onboarding tensors"),
        ('trainables = ["task.*"]\n[onboarding]\nsteps = 3\nrounds = true', "names no onboarding tensors"),
    ],
)
def test_rounds_of_onboarding_and_trainables_agree(tmp_path: Path, text: str, words: str) -> None:
    (problem,) = problems_of(text, tmp_path)
    assert words in problem


@pytest.mark.parametrize("text", ["seed = " + "9" * 5000, "a = " + "[" * 5000])
def test_toml_without_end_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match="is not TOML"):
        read_config(tmp_path / "config.toml")


def test_every_problem_of_a_method_is_told(tmp_path: Path) -> None:
    (problem,) = problems_of("[methods.xpeft]\nkept = 100\ndead_zone = 0.1234567", tmp_path)
    assert "kept is 100" in problem
    assert "six decimal places" in problem


def test_a_head_that_stays_is_no_trainable_by_default() -> None:
    def trainables(head: str) -> tuple[str, ...]:
        row = {"training": {"head": head, "adapt_steps": 3}, "backbone": {"train": "top:1"}}
        return validated(CoordinatorConfig, row, "here").trainables

    assert trainables("trained") == ("task.*", "methods.plora.*.A")
    assert trainables("adapted") == ("methods.plora.*.A",)
