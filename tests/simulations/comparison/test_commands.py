"""`umbel simulate` on a comparison, and `umbel results`, as people call them."""

import json
from pathlib import Path

import pytest
from tests.coordinator.conftest import tiny_config, write_backbone

from umbel.cli import main
from umbel.simulations.comparison.studies import STUDIES


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that takes a few seconds: a tiny encoder, made-up people, one seed."""
    bert = write_backbone(tmp_path_factory.mktemp("bert"), tiny_config("bert"))
    folder = tmp_path_factory.mktemp("experiments") / "small"
    folder.mkdir()
    (folder / "config.toml").write_text(
        f"""
        seeds = [0]
        batch_size = 8
        rivals = ["generic", "headbias"]
        [backbone]
        name = "{bert}"
        [data.made-up]
        source = "community"
        users = 24
        people = 3
        query = 6
        k = [2, 8]
        personal_layers = 1
        max_tokens = 16
        calibration_share = 0.2
        generic_steps = 2
        steps = 2
        learning_steps = 2
        [contestants.plora.methods.plora]
        rank = 2
        user_size = 2
        """,
        encoding="utf-8",
    )
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_comparison_from_the_command_line(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("simulate", experiment, "--out", out, "--only", "plora", "--threads", 1) == 0
    shown = capsys.readouterr()
    assert "[1/1] made-up, seed 0: plora" in shown.err
    assert "made-up" in shown.out
    assert "…" not in shown.out  # no figure is cut off, however narrow the terminal
    assert str(out / STUDIES["methods"].page) in shown.out
    assert run("simulate", experiment, "--out", out, "--threads", 1, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [cell["contestant"] for cell in found["cells"]] == ["generic", "headbias", "plora"]
    page = (out / STUDIES["methods"].page).read_text(encoding="utf-8")
    assert run("results", out / "result.json", "--out", tmp_path / "page") == 0
    assert (tmp_path / "page" / STUDIES["methods"].page).read_text(encoding="utf-8") == page
    capsys.readouterr()
    assert run("results", out / "result.json", "--out", tmp_path / "page", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {told["page"], *told["figures"]} == {str(path) for path in (tmp_path / "page").iterdir()}
    (out / "result.json").write_text("{}", encoding="utf-8")
    assert run("results", out / "result.json", "--out", tmp_path / "page") == 2
    assert "is not a comparison" in capsys.readouterr().err


def test_options_of_the_other_kind_of_experiment_are_refused(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("simulate", experiment, "--out", out, "--users", 8, "--rounds", 1) == 2
    told = capsys.readouterr().err
    assert "--users does not apply" in told
    assert "--rounds does not apply" in told
    assert run("simulate", "demo", "--out", out, "--only", "plora", "--take", "result.json") == 2
    told = capsys.readouterr().err
    assert "--only does not apply" in told
    assert "--take does not apply" in told
    assert run("simulate", experiment, "--out", out, "--only", "nobody") == 2
    assert "there is no 'nobody'" in capsys.readouterr().err
    assert not out.exists()
