"""README.md says what is so: its commands run, its tables have the real columns, its links lead somewhere.

`make demo` and `make test` cannot run inside a test (minutes, recursion): what they run is read from make.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.coordinator.conftest import tiny_config, write_backbone

from umbel import cli
from umbel.simulations.experiment import experiment_folder

SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What makes the tour small enough for the quick tests: the random encoder of the other tests, a few steps.
TINY = {
    "all-MiniLM-L6-v2": "tiny-encoder",
    "max_steps = 400": "max_steps = 8",
    "--users 60": "--users 8",
    "train config.toml": "train config.toml --threads 1",
}
EXPERIMENT = """
[backbone]
name = "tiny-encoder"
[methods.plora]
rank = 2
user_size = 3
[training]
max_steps = 4
[recipe]
prior_strength = [1.0]
[onboarding]
steps = 1
warm_steps = 1
[data.community]
users = 10
examples_per_user = 12
texts = 200
[rounds]
engine = "serial"
rounds = 1
clients = 2
[evaluation]
k = [0, 4]
"""


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def blocks(readme: str) -> list[str]:
    return SHELL.findall(readme)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, which holds a tiny encoder and, as after `make`, an environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    write_backbone(tmp_path / "tiny-encoder", tiny_config("bert"))
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").write_text(f'PATH="{folder}:$PATH"\n')
    (folder / "umbel").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m umbel "$@"\n')
    (folder / "umbel").chmod(0o755)
    return tmp_path


def commands(block: str) -> Iterator[str]:
    """Yields the commands of a block; one with a here-document is one command."""
    lines = iter(block.splitlines())
    for line in lines:
        command = [line]
        if here := re.search(r"<<'(\w+)'$", line):
            while command[-1] != here.group(1):
                command.append(next(lines))
        yield "\n".join(command)


def run_here(command: str) -> None:
    """Runs `umbel` in this process, which has torch already, and anything else in a shell."""
    words = shlex.split(command)
    if words[0] == "umbel":
        assert cli.main(words[1:]) == 0, command
    else:
        subprocess.run(["bash", "-euc", command], check=True, timeout=60)


def expanded(repository: Path, target: str) -> list[str]:
    """What make would run for a target once its environment stands."""
    command = ["make", "--dry-run", "--old-file=.venv/ready", target]
    # Under `make test` this make would be a child, told so by these, and print which folder it works in.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    run = subprocess.run(
        command, cwd=repository, env=env, capture_output=True, text=True, check=True, timeout=60
    )
    return run.stdout.splitlines()


def columns(line: str) -> list[str]:
    """The headings of a table that rich drew."""
    return [cell.strip() for cell in re.split("[┃│|]", line)[1:-1]]


def test_the_two_commands_come_first(blocks: list[str]) -> None:
    assert blocks[0].splitlines() == ["make demo", "make test"]


def test_make_demo_and_make_test_run_what_they_say(repository: Path) -> None:
    assert expanded(repository, "demo") == [".venv/bin/umbel simulate demo"]
    assert expanded(repository, "test") == [".venv/bin/python -m pytest --numprocesses auto --dist loadfile"]


def test_the_demo_prints_what_is_described_and_the_tour_goes_on_from_it(
    readme: str, blocks: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo and every command of every other block, in order, in one folder, on a tiny encoder."""
    experiment = workplace / "demo"
    experiment.mkdir()
    (experiment / "config.toml").write_text(EXPERIMENT)
    assert cli.main(["simulate", str(experiment), "--threads", "1"]) == 0
    check_description(readme, capsys.readouterr().out.splitlines(), workplace)
    text = "".join(blocks[1:])
    assert all(text.count(given) == 1 for given in TINY)
    for given, small in TINY.items():
        text = text.replace(given, small)
    for command in commands(text):
        run_here(command)
    printed = capsys.readouterr().out
    assert [word in printed for word in ("probability", "12 people", "torch and onnxruntime agree")] == [
        True
    ] * 3


def check_description(readme: str, printed: list[str], workplace: Path) -> None:
    """Every column is described, in order; the files that the last line names are there and are described."""
    headings = next(columns(line) for line in printed if "personal" in line)
    described = readme[readme.index("ends with a table") : readme.index("<!-- demo output -->")]
    assert re.findall(r"`([^`]+)`", " ".join(described.split())) == headings
    named = set(re.findall(r"runs/demo/\S+\.(?:html|json)", printed[-1]))
    assert named == {"runs/demo/report.html", "runs/demo/result.json"}
    assert all((workplace / path).is_file() and f"`{path}`" in readme for path in named)


@pytest.mark.parametrize("name", ["demo", "movielens"])
def test_printed_tables_have_the_columns_of_real_ones(readme: str, name: str) -> None:
    begin, end = f"<!-- {name} output -->", f"<!-- end of {name} output -->"
    assert readme.count(begin) == readme.count(end) == 1
    shown = readme[readme.index(begin) + len(begin) : readme.index(end)]
    for line in shown.splitlines():
        if "personal" in line and "generic" in line and re.search("[┃│|]", line):
            wanted = ["k", "generic", "+ bias", "personal", "gain [95 %]"]
            assert columns(line) == [*wanted, "Bayes-optimal"] if name == "demo" else wanted


def test_every_experiment_that_is_named_exists(readme: str) -> None:
    named = set(re.findall(r"umbel simulate (\w+)", readme)) | {"demo"}
    assert all((experiment_folder(name) / "config.toml").is_file() for name in named)


@pytest.mark.slow
def test_the_demo_and_the_tour_run_as_they_stand(blocks: list[str], workplace: Path) -> None:
    """With the real encoder, in a shell of its own; minutes."""
    script = "set -eu\n. .venv/bin/activate\numbel simulate demo\n" + "".join(blocks[1:])
    run = subprocess.run(
        ["bash", "-c", script], cwd=workplace, capture_output=True, text=True, timeout=3000, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [line.rstrip() for line in run.stdout.splitlines()]
    answers = [line.split()[0] for line in lines if line.endswith((" comedy.", " hope."))]
    assert len(answers) == 2
    assert set(answers) <= {"yes", "no"}


def test_every_umbel_command_that_is_mentioned_exists(readme: str) -> None:
    for part, word in set(
        re.findall(
            r"\bumbel (simulate|rounds|evaluate|data|device|coordinator|methods)(?: ([a-z]+))?", readme
        )
    ):
        command = cli.load(part)
        if word and hasattr(command, "commands") and part != "simulate":
            assert word in command.commands


def links(text: str) -> list[str]:
    found = re.findall(r"\]\(([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    return [link for link in found if "://" not in link]


def test_links_between_documents_lead_somewhere(repository: Path) -> None:
    documents = [
        *repository.glob("*.md"),
        *repository.glob("docs/**/*.md"),
        *repository.glob("simulations/**/*.md"),
    ]
    dead = [
        f"{path.relative_to(repository)}: {link}"
        for path in documents
        for link in links(path.read_text(encoding="utf-8"))
        if not (path.parent / link).exists()
    ]
    assert dead == []


def test_the_readme_is_one_page(readme: str) -> None:
    assert len(readme.splitlines()) <= 120


def test_no_document_is_empty(repository: Path) -> None:
    documents = [*repository.glob("*.md"), *repository.glob("docs/**/*.md")]
    assert len(documents) > 30
    for document in documents:
        assert re.match(r"# .+\n\n?.", document.read_text(encoding="utf-8")), document
