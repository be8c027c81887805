"""`umbel coordinator` as it is typed: what it prints, what it refuses, and what it never says."""

import json
from pathlib import Path

import pytest
from tests.coordinator.conftest import TinyBackbone
from tests.coordinator.small_training import people

from umbel import cli
from umbel.coordinator.artifacts import load_trained
from umbel.shared.examples import Example, write_examples

CONFIG = """
[backbone]
name = "{folder}"
max_tokens = 16
[methods.plora]
rank = 3
user_size = 5
[training]
max_steps = 4
[recipe]
users = 2
k = [2]
"""


@pytest.fixture(autouse=True)
def _workplace(tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a configuration and examples. Nothing is exported here: the README's tour does that."""
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(CONFIG.format(folder=tiny_backbone("bert").name))
    write_examples(Path("seen.jsonl"), people())


def train(*words: object, config: str = "config.toml", examples: str = "seen.jsonl") -> int:
    command = ["coordinator", "train", config, "-e", examples, "-o", "training", "--threads", "1", *words]
    return cli.main([str(word) for word in command])


def test_train_for_scripts_and_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--json") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    found = json.loads(shown.out)
    trained = load_trained(Path("training"))
    assert found["recipe"] == trained.recipe.as_json()
    assert (found["out"], found["steps"], found["users"]) == ("training", 4, trained.report["users"])
    assert train() == 0  # it is finished, so it is told again
    shown = capsys.readouterr()
    assert shown.out.startswith(f"Trained on {found['train_examples']} examples of {found['users']} people: ")
    assert "Publish it with: umbel coordinator publish training --out release" in shown.out


def test_another_training_does_not_go_on_in_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--json") == 0
    before = {path: path.read_bytes() for path in Path("training").iterdir() if path.is_file()}
    write_examples(Path("seen.jsonl"), people(count=11))
    capsys.readouterr()
    assert train("--json") == 2
    err = capsys.readouterr().err
    assert err.startswith("umbel: training holds a finished training of another configuration or of other ")
    assert err.endswith("Choose another --out, or pass --restart to train again there.\n")
    assert {path: path.read_bytes() for path in Path("training").iterdir() if path.is_file()} == before
    assert train("--json", "--restart") == 0


def test_everything_wrong_with_a_configuration_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.toml").write_text('[training]\nsteps = 3\nmax_steps = 0\n[methods.plora]\nstart = "here"\n')
    assert train() == 2
    err = capsys.readouterr().err
    assert err.startswith("umbel: config.toml cannot be used\n")
    for key in ("training.steps: unknown key", "training.max_steps: ", "methods.plora.start: "):
        assert f"  - {key}" in err
    assert not Path("training").exists()


def test_wrong_examples_are_told_by_line_and_not_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    config = Path("config.toml")
    config.write_text(config.read_text() + '[task]\nlabels = ["no", "yes"]\n')
    secret = "tender secret"
    write_examples(Path("seen.jsonl"), [*people(4, 3), Example("ann", secret, secret)])
    assert train() == 2
    err = capsys.readouterr().err
    assert "  - line 13: the label is not one of no, yes\n" in err
    assert secret not in err
    assert not Path("training").exists()


@pytest.mark.parametrize("words", [("config.toml", "nowhere.jsonl"), ("nowhere.toml", "seen.jsonl")])
def test_files_that_are_not_there(capsys: pytest.CaptureFixture[str], words: tuple[str, str]) -> None:
    assert train(config=words[0], examples=words[1]) == 2
    assert "nowhere" in (err := capsys.readouterr().err)
    assert "this is a bug" not in err


@pytest.mark.parametrize("what", ["missing", "empty", "damaged"])
def test_publishing_what_is_no_finished_training(capsys: pytest.CaptureFixture[str], what: str) -> None:
    if what != "missing":
        Path("training").mkdir()
    if what == "damaged":
        Path("training/training.json").write_text("{")
    assert cli.main(["coordinator", "publish", "training", "--out", "release"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("umbel: ")
    assert "training" in err
    assert not Path("release").exists()


def test_a_channel_is_looked_at_before_the_long_work(capsys: pytest.CaptureFixture[str]) -> None:
    publish = ["coordinator", "publish", "nowhere", "--out", "release"]
    assert cli.main([*publish, "--channel", "channel"]) == 2
    assert "go together" in capsys.readouterr().err
    assert cli.main(["coordinator", "channel", "init", "channel", "--keys", "keys"]) == 0
    for key in Path("keys").glob("targets-*.pem"):
        key.unlink()
    capsys.readouterr()
    assert cli.main([*publish, "--channel", "channel", "--keys", "keys"]) == 2
    assert "keys of the channel are missing\n  - targets: " in capsys.readouterr().err


@pytest.mark.slow
def test_publishing_into_a_channel(capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    assert cli.main(["coordinator", "channel", "init", "channel", "--keys", "keys"]) == 0
    capsys.readouterr()
    publish = [
        "coordinator",
        "publish",
        "training",
        "-o",
        "release",
        "--channel",
        "channel",
        "--keys",
        "keys",
    ]
    assert cli.main([*publish, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert cli.main(["coordinator", "channel", "status", "channel", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["release"] == found["id"]
