"""`umbel data`, as it is typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from umbel.cli import main
from umbel.shared.examples import Example, read_examples, write_examples
from umbel.simulations.data.commands import summarize
from umbel.simulations.data.importers import FORMATS

FIVE = [
    Example("ann", "one two three", "yes", 1.0),
    Example("ann", "one two", "no", 2.0),
    Example("ann", "one", "no", 3.0),
    Example("bob", "one two three", "no"),
    Example("cem", "one two three four five", "yes"),
]


def test_summary_of_five_examples() -> None:
    assert summarize(FIVE) == {
        "users": 3,
        "examples": 5,
        "distinct_texts": 4,
        "timed": 3,
        "labels": {"no": 3, "yes": 2},
        "examples_per_user": [1, 1, 1, 3, 3],  # of 1, 1, 3: ranks 0, 0.5 (to even: 0), 1, 1.5 (2), 2
        "labels_per_user": [1, 1, 1, 2, 2],
        "words_per_text": [1, 2, 3, 3, 5],
    }


def test_community_then_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "people.csv"
    words = ["--users", "4", "--examples-per-user", "10", "--texts", "20", "--seed", "3", "--out", str(out)]
    assert main(["data", "community", *words, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["file"], written["users"], written["examples"]) == (str(out), 4, 40)
    assert main(["data", "show", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written
    assert main(["data", "show", str(out)]) == 0
    table = capsys.readouterr().out
    assert "examples per user" in table
    assert read_examples(out)[0].text not in table


def test_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts.csv").write_text("ID,Text\nA-1,some words\n")
    (tmp_path / "annotations.csv").write_text("ID,annotator_id,annotation\nA-1,18,1\n")
    out = tmp_path / "new" / "posts.jsonl"
    assert main(["data", "import", "crehate", str(tmp_path), "--out", str(out)]) == 0
    assert "hateful: 1" in capsys.readouterr().out
    assert read_examples(out) == [Example("18", "some words", "hateful")]


def test_show_of_a_file_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "[mine].jsonl"
    path.write_text('{"text": "some words", "label": 1}\n')
    assert main(["data", "show", str(path), "--user", "me"]) == 0
    assert "[mine].jsonl" in capsys.readouterr().out.replace("\n", "")


def test_many_labels_are_cut_in_a_table_and_not_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    write_examples(path, [Example("ann", f"text {i}", str(i)) for i in range(15)])
    assert main(["data", "show", str(path)]) == 0
    assert "and 3 more" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert main(["data", "show", str(path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["labels"]) == 15


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "netflix", ".", "--out", "{out}"], "no format 'netflix'"),
        (["import", "crehate", "{out}", "--out", "{out}"], "is not a folder"),
        (
            ["community", "--users", "0", "--texts", "10", "--out", "{out}"],
            "users is 0; it must be at least 1",
        ),
        (["community", "--users", "2", "--out", "{out}.txt"], "none of .jsonl"),
        (["show", "{out}"], "No such file"),
    ],
)
def test_mistakes_end_with_a_message_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    words = [word.format(out=tmp_path / "a.jsonl") for word in words]
    assert main(["data", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_help_of_import_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "import", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert [name for name in FORMATS if name not in text] == []


@pytest.mark.parametrize("command", ["import", "community", "show"])
def test_help_teaches_by_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", command, "--help"]) == 0
    assert f"For instance: umbel data {command}" in " ".join(capsys.readouterr().out.split())


def test_the_commands_are_light_to_import() -> None:
    code = (
        "import sys, umbel.simulations.data.commands; print({'torch', 'pyarrow', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
