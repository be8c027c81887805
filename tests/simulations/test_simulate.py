"""`umbel simulate` and `umbel evaluate` on a tiny experiment: stopped, resumed, refused, restarted."""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tests.builders import random_examples
from tests.coordinator.conftest import tiny_config, write_backbone

from umbel import cli
from umbel.device_client.engine import Engine
from umbel.shared.errors import ConfigError
from umbel.shared.examples import Example, write_examples
from umbel.shared.files import sole_use
from umbel.shared.release import Release
from umbel.simulations import evaluation, progress
from umbel.simulations.clock import Clock
from umbel.simulations.data.splits import UserExamples
from umbel.simulations.evaluation import evaluate_users
from umbel.simulations.experiment import read_experiment
from umbel.simulations.results import read_result, without_times

EXPERIMENT = """
seed = {seed}
[backbone]
name = "{encoder}"
[methods.plora]
rank = 2
user_size = 3
[training]
max_steps = 30
private_rate = 0.1
checkpoint_every = 2
warmup_steps = 1
shared_rate = 0.02
head_rate = 0.1
[recipe]
prior_strength = [1.0]
[data]
source = "file"
path = "{encoder}.jsonl"
[rounds]
engine = "serial"
rounds = 2
clients = 2
[evaluation]
k = [0, 4]
batch_users = 2
"""
NESTED = "[" * 100_000
PHASES = {
    "people": 0,
    "train what everyone shares": 3,
    "publish: export, compare, write": 1,
    "federated rounds": 1,
    "people never met": 1,
    "people seen in training": 1,
}
"""Every phase, and in which of its calls for a bar Ctrl-C is pressed; 0: as it begins."""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny experiment."""
    folder = tmp_path_factory.mktemp("tiny")
    encoder = write_backbone(folder / "encoder", tiny_config("bert"))
    rows = [row for user in range(12) for row in random_examples(1, f"person {user}", 14)]
    write_examples(folder / "encoder.jsonl", rows)
    (folder / "config.toml").write_text(EXPERIMENT.format(encoder=encoder, seed=3))
    return folder


@pytest.fixture(scope="module")
def whole(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert simulate(experiment, out) == 0
    return out


def simulate(experiment: Path, out: Path, *words: object) -> int:
    return cli.main(["simulate", str(experiment), "--out", str(out), "--threads", "1", *map(str, words)])


def figures(folder: Path) -> dict[str, Any]:
    return without_times(read_result(folder / "result.json"))


class Stopping:
    """A progress that presses Ctrl-C in one call of one phase."""

    def __init__(self, phase: str, call: int) -> None:
        self.console = Console(quiet=True)
        self.begun: list[str] = []
        self._phase, self._call, self._calls = phase, call, 0

    @contextmanager
    def phase(self, name: str) -> Iterator["Stopping"]:
        self.begun.append(name)
        self._calls = -1
        self._count()
        yield self

    def say(self, words: str) -> None:
        pytest.fail(words)

    def _count(self) -> None:
        self._calls += 1
        if self.begun[-1] == self._phase and self._calls == self._call:
            signal.raise_signal(signal.SIGINT)

    def step(self, done: int, total: int, words: str = "") -> None:
        self._count()

    def training(self, phase: str, done: int, total: int, words: str) -> None:
        self._count()

    def words(self, text: str) -> None:
        self._count()


def test_stopped_in_every_phase_it_goes_on_to_the_same_figures(
    experiment: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One run, stopped once in each phase; beside it stands a run of the same seed in another folder."""
    for name, call in PHASES.items():
        stopping = Stopping(name, call)
        with monkeypatch.context() as patch:
            patch.setattr(progress, "Progress", lambda quiet, stopping=stopping: stopping)
            assert simulate(experiment, tmp_path / "run") == 130, name
        assert stopping.begun[-1] == name
        assert capsys.readouterr().err == "umbel: interrupted; what was finished is kept\n"
        assert not (tmp_path / "run" / "result.json").exists()
    assert simulate(experiment, tmp_path / "run") == 0
    assert figures(tmp_path / "run") == figures(whole)
    for kind in ("release", "release-after-rounds"):
        manifests = [(folder / kind / "manifest.json").read_bytes() for folder in (whole, tmp_path / "run")]
        assert manifests[0] == manifests[1]


def test_homes_that_were_not_made_to_the_end_are_made_again(
    experiment: Path, whole: Path, tmp_path: Path
) -> None:
    """Stopped between the table's two files."""
    out = unfinished(whole, tmp_path / "run", "rounds", "release-after-rounds", "evaluation")
    assert [path.name for path in (out / "devices").glob("profiles-*")]
    (out / "devices" / "people.json").unlink()
    assert simulate(experiment, out) == 0
    assert figures(out) == figures(whole)


def unfinished(whole: Path, out: Path, *parts: str) -> Path:
    """Copies a run, less some parts and its result."""
    shutil.copytree(whole, out)
    for part in parts:
        shutil.rmtree(out / part)
    (out / "result.json").unlink()
    return out


@pytest.mark.parametrize("kind", ["unseen", "seen"])
def test_a_journal_that_ends_in_the_middle_of_a_line(
    experiment: Path, whole: Path, tmp_path: Path, kind: str
) -> None:
    out = unfinished(whole, tmp_path / "run")
    journal = out / "evaluation" / f"{kind}.jsonl"
    data = journal.read_bytes()
    assert data.count(b"\n") == len(data.splitlines()) >= 4  # who it is, and a row for each person
    for end in (data.index(b"\n") - 5, data.index(b"\n") + 9, len(data) - 9, len(data) - 1):
        journal.write_bytes(data[:end])
        (out / "result.json").unlink(missing_ok=True)
        assert simulate(experiment, out) == 0
        assert figures(out) == figures(whole)
        assert journal.read_bytes() == data


def test_a_finished_run_is_shown_again_and_not_touched(
    experiment: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert simulate(experiment, whole) == 0
    assert "This run was finished before" in capsys.readouterr().out
    assert simulate(experiment, whole, "--json") == 0
    assert capsys.readouterr().out == (whole / "result.json").read_text()
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.parametrize(
    "words", [["--seed", "4"], ["--rounds", "1"], ["--users", "10"], ["--engine", "flower"]]
)
def test_another_configuration_does_not_go_on_in_the_folder(
    experiment: Path, whole: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert simulate(experiment, whole, *words) == 2
    assert capsys.readouterr().err.endswith(
        f"umbel: {whole} holds a run with another configuration\n"
        "Choose another --out, or pass --restart to begin again there (it is overwritten).\n"
    )
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_run_goes_on_with_what_has_computed_it_and_one_that_does_not_say_was_onnxruntimes(
    experiment: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said beside the configuration, which is the same: a machine's matter, but the numbers are others."""
    out = unfinished(whole, tmp_path / "run", "rounds", "release-after-rounds", "evaluation")
    row = json.loads((out / "run.json").read_text())
    assert row.pop("compute") == "onnxruntime"
    (out / "run.json").write_text(json.dumps(row))  # as an earlier version did
    assert simulate(experiment, out, "--compute", "torch:cpu") == 2
    assert capsys.readouterr().err.endswith(
        f"umbel: {out} holds a run whose devices computed by something else\n"
        "  - compute was onnxruntime, is now torch:cpu\n"
        "Choose another --out, or pass --restart to begin again there (it is overwritten).\n"
    )
    assert simulate(experiment, out) == 0
    assert figures(out) == figures(whole)
    text = (out / "result.json").read_text()
    (out / "result.json").write_text(text.replace('  "compute": "onnxruntime",\n', ""))
    assert read_result(out / "result.json").compute == "onnxruntime"


def test_a_result_says_what_has_computed_it(experiment: Path, whole: Path, tmp_path: Path) -> None:
    out = unfinished(whole, tmp_path / "run", "rounds", "release-after-rounds", "evaluation")
    row = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(row | {"compute": "torch:cpu"}))
    assert simulate(experiment, out, "--compute", "torch:cpu") == 0
    assert read_result(out / "result.json").compute == "torch:cpu"
    assert json.loads((out / "rounds" / "rounds.json").read_text())["settings"]["compute"] == "torch:cpu"
    assert "--engine serial --compute torch:cpu" in (out / "report.html").read_text()


def test_other_examples_under_the_same_name_do_not_show_the_old_result(
    experiment: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "tiny"
    own.mkdir()
    rows = (experiment / "encoder.jsonl").read_text().splitlines(keepends=True)
    (own / "encoder.jsonl").write_text("".join(rows[:-1]))
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    command = ["simulate", str(experiment), "--out", str(whole), "--data", str(own / "encoder.jsonl")]
    assert cli.main(command) == 2
    assert "holds a run over other examples: the data have changed since" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_finished_training_is_taken_and_only_its_recipe_is_chosen_anew(
    experiment: Path, whole: Path, tmp_path: Path
) -> None:
    """As for trying recipes: what follows is what a whole run with that recipe gives, the times aside."""
    own = tmp_path / experiment.name
    own.mkdir()
    text = (experiment / "config.toml").read_text()
    (own / "config.toml").write_text(text.replace("prior_strength = [1.0]", "prior_strength = [0.1, 5.0]"))
    assert simulate(own, tmp_path / "wanted") == 0
    assert simulate(own, tmp_path / "found", "--training", whole / "training") == 0
    assert figures(tmp_path / "found") == figures(tmp_path / "wanted")
    assert figures(tmp_path / "found")["unseen"] != figures(whole)["unseen"]


@pytest.mark.parametrize("damage", ["", "[]", '{"train": 1e999}', "\x00", NESTED])
def test_damaged_times_stop_no_run(experiment: Path, whole: Path, tmp_path: Path, damage: str) -> None:
    out = unfinished(whole, tmp_path / "out")
    (out / "seconds.json").write_text(damage)
    assert simulate(experiment, out) == 0
    assert figures(out) == figures(whole)


@pytest.mark.parametrize("words", [(), ("--restart",)])
@pytest.mark.parametrize("training", ["nowhere", "own", "other"])
def test_a_training_that_cannot_be_taken_costs_no_run(
    experiment: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    training: str,
    words: tuple[str, ...],
) -> None:
    """Mistyped, in the folder that --restart clears, or of another configuration."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    given = {"nowhere": tmp_path / "nowhere", "own": out / "training", "other": tmp_path / "other"}[training]
    if training == "other":
        shutil.copytree(whole / "training", given)
        row = json.loads((given / "training.json").read_text())
        (given / "training.json").write_text(json.dumps(row | {"fingerprint": "0" * 64}))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    fine = training == "own" and not words
    assert simulate(experiment, out, "--training", given, *words) == (0 if fine else 2)
    told = {
        "nowhere": "holds no finished training",
        "own": "would remove the training",
        "other": "Name one of",
    }
    assert fine or told[training] in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_no_command_writes_into_what_another_one_has_filled(
    experiment: Path, whole: Path, people: Path, tiny_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    for out, what in ((whole, "a run of 'umbel simulate'"), (whole / "release", "a release")):
        assert evaluate(tiny_release, people, "--out", out) == 2
        assert f"{out} holds {what}" in capsys.readouterr().err
    assert simulate(experiment, whole / "training") == 2
    assert "holds a training" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("section", "key", "value"), [("evaluation", "k", "[50, 60]"), ("rounds", "rounds", "9" * 25)]
)
def test_what_cannot_end_does_not_begin(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], section: str, key: str, value: str
) -> None:
    own = tmp_path / "tiny"
    own.mkdir()
    lines = (experiment / "config.toml").read_text().splitlines()
    changed = [
        f"{key} = {value}" if line.startswith(f"{key} = ") and section != "recipe" else line for line in lines
    ]
    (own / "config.toml").write_text("\n".join(changed))
    assert simulate(own, tmp_path / "out") == 2
    told = {"k": "at most 7 are left", "rounds": "expected an integer from"}
    assert told[key] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "value", ["1e999", "-1e999", "NaN", "-1", "1" + 400 * "0", "true", "null", '"long"', "[]", "{}"]
)
def test_a_time_that_is_none_is_not_taken_up(tmp_path: Path, value: str) -> None:
    """The sound ones beside it are."""
    (tmp_path / "seconds.json").write_text(f'{{"data": 2.5, "train": {value}, "rounds": 3}}')
    clock = Clock(tmp_path / "seconds.json")
    clock.load()
    assert clock.seconds == {"data": 2.5, "rounds": 3.0}


def test_restart_removes_a_runs_own_parts_and_nothing_else(
    experiment: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped as soon as the data is read, so that what was removed can be seen."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("my own")
    (tmp_path / "run" / "plots").mkdir()
    monkeypatch.setattr(progress, "Progress", lambda quiet: Stopping("train what everyone shares", 0))
    assert simulate(experiment, tmp_path / "run", "--restart", "--seed", 9) == 130
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"notes.txt", "plots", "run.json", "seconds.json"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["coordinator"]["seed"] == 9


def test_restart_leaves_a_folder_alone_that_holds_no_run(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "mine").write_text("my own")
    monkeypatch.setattr(progress, "Progress", lambda quiet: Stopping("train what everyone shares", 0))
    assert simulate(experiment, tmp_path, "--restart") == 130
    assert (tmp_path / "release" / "mine").read_text() == "my own"


@pytest.mark.parametrize("words", [(), ("--restart",)])
def test_a_mistyped_data_path_costs_no_run_and_claims_no_folder(
    experiment: Path, whole: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    assert simulate(experiment, tmp_path / "new", "--data", tmp_path / "nowhere.jsonl", *words) == 2
    assert not (tmp_path / "new").exists()
    shutil.copytree(whole, tmp_path / "run")
    assert simulate(experiment, tmp_path / "run", "--data", tmp_path / "nowhere.jsonl", *words) == 2
    assert figures(tmp_path / "run") == figures(whole)


def test_torchrun_is_not_for_simulations(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert simulate(experiment, tmp_path / "run") == 2
    assert "Start it without torchrun" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_data_that_would_not_be_read_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text("")
    assert simulate(tmp_path, tmp_path / "run", "--data", tmp_path / "people.jsonl") == 2
    assert "source = 'file' for a file of examples" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_two_at_once_do_not_work_in_one_folder(
    experiment: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sole_use(whole):
        assert simulate(experiment, whole) == 2
    assert f"umbel: another umbel is at work in {whole}\n" in capsys.readouterr().err
    assert simulate(experiment, whole) == 0


def test_a_persons_examples_are_readable_by_their_owner_only(whole: Path) -> None:
    files = [path for path in (whole / "devices").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".sqlite", ".table"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_an_out_that_cannot_be_written_is_one_line(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert simulate(experiment, tmp_path / place, "--json") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err in {
        f"umbel: {words}: {tmp_path / 'file'}{rest}\n"
        for words in ("File exists", "Not a directory")
        for rest in ("", "/run")
    }


@pytest.mark.parametrize("damage", ["{", "[]", '{"identity": 3}', "null", NESTED])
def test_a_damaged_run_is_not_gone_on_with(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (tmp_path / "run.json").write_text(damage)
    assert simulate(experiment, tmp_path, "--json") == 2
    assert capsys.readouterr().err.startswith("umbel: ")
    assert {path.name for path in tmp_path.iterdir()} == {"run.json"}


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("rounds/rounds.json", '"clients": 2', '"clients": "x"', "round 1: clients is x"),
        ("rounds/rounds.json", '"seen_accuracy": ', '"seen_accuracy": 9', "round 1: seen_accuracy is 9"),
        ("rounds/rounds.json", "{", NESTED, "NestingError"),
        ("training/training.json", '"report": {', '"report": {}, "x": {', "report: missing: curve"),
        ("training/training.json", '"no",\n', '"yes",\n', "labels are not two or more different names"),
        ("training/training.json", "{", NESTED, "NestingError"),
    ],
)
def test_a_damaged_part_of_a_run_is_told_before_the_work_and_nothing_is_lost(
    experiment: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    old: str,
    new: str,
    problem: str,
) -> None:
    out = unfinished(whole, tmp_path / "run", "evaluation")
    text = (out / file).read_text()
    assert old in text
    (out / file).write_text(text.replace(old, new))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert simulate(experiment, out) == 2
    err = capsys.readouterr().err
    assert "this is a bug" not in err
    assert f"  - {problem}" in err
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert after.pop(out / "seconds.json") != before.pop(out / "seconds.json")
    assert after == before


def test_no_such_experiment_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "dmeo"]) == 2
    assert "there is no experiment 'dmeo'" in (err := capsys.readouterr().err)
    assert "demo" in err.splitlines()[-1]


def test_everything_wrong_with_a_configuration_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        "data = 5\n[rounds]\nclient = 3\n[evaluation]\nk = [4, 0]\n[other]\n[training]\nmax_steps = 0\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_experiment(tmp_path, {"data": {"users": 9}, "rounds": {"engine": "warp"}, "": {"seed": 1}})
    assert {problem.split(":")[0] for problem in caught.value.problems} == {
        "data",
        "rounds.client",
        "rounds.engine",
        "evaluation",
        "coordinator.other",
        "coordinator.training.max_steps",
    }


# `umbel evaluate`, and what both measure with.


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of people; one has too few examples."""
    path = tmp_path_factory.mktemp("people") / "people.jsonl"
    counts = {"ann": 12, "ben": 9, "cat": 4, "dan": 30, "eve": 1, "fay": 5}
    write_examples(path, [row for user, count in counts.items() for row in random_examples(2, user, count)])
    return path


def evaluate(release: Release, people: Path, *words: object) -> int:
    command = ["evaluate", "-r", release.folder, "-d", people, "--threads", "1", "--k", "0,2,4", *words]
    return cli.main([str(word) for word in command])


def test_evaluate_measures_people_of_a_file(
    tiny_release: Release, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_release, people, "--out", tmp_path / "out", "--json") == 0
    shown = capsys.readouterr()
    assert shown.out == (tmp_path / "out" / "result.json").read_text()
    found = read_result(tmp_path / "out" / "result.json")
    assert (found.data.users_unseen, found.data.users_skipped, found.data.users_seen) == (5, 1, 0)
    assert found.release == tiny_release.release_id
    assert found.unseen.personal_accuracy["0"] == found.unseen.generic_accuracy["0"]
    assert set(found.unseen.gains) == {"0", "2", "4"}
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
    assert evaluate(tiny_release, people, "--out", tmp_path / "again", "--k", "4,2,0,2") == 0
    assert figures(tmp_path / "again") == figures(tmp_path / "out")
    assert f"Look at {tmp_path / 'again' / 'report.html'}" in capsys.readouterr().out.replace("\n", "")


def test_counts_that_nobody_reaches_are_left_out_and_told(
    tiny_release: Release, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_release, people, "--k", "2,15,16,999", "--out", tmp_path) == 0
    assert set(read_result(tmp_path / "result.json").unseen.gains) == {"2", "15"}
    assert "left out: k = 16, 999, since nobody has so many examples" in capsys.readouterr().err
    assert evaluate(tiny_release, people, "--k", "16,999") == 2
    assert "nobody has so many examples to learn from\n  - k = 16, 999; at most 15" in capsys.readouterr().err


def test_evaluate_in_8_bits(
    int8_release: Release, tiny_release: Release, people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Few answers are others: 8 bits are looked at on more people than these."""
    found = {}
    for precision in ("float32", "int8"):
        assert evaluate(int8_release, people, "--precision", precision, "--json") == 0
        found[precision] = json.loads(capsys.readouterr().out)
        assert found[precision]["config"]["precision"] == precision
    exact, quick = (found[p]["unseen"]["personal_accuracy"] for p in ("float32", "int8"))
    assert all(abs(exact[k] - quick[k]) < 0.2 for k in exact)
    assert (
        evaluate(tiny_release, Path("nowhere"), "--precision", "int4", "--out", "never") == 2
    )  # before all else
    assert "'int4' is no precision" in capsys.readouterr().err
    assert not Path("never").exists()
    assert evaluate(tiny_release, people, "--precision", "int8") == 2
    assert "does not read texts in 8 bits" in capsys.readouterr().err


def test_evaluate_writes_nothing_where_nothing_is_asked_for(
    tiny_release: Release,
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate(tiny_release, people, "--k", "0") == 0
    assert "generic" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_evaluate_tells_of_an_out_that_cannot_be_made_before_it_measures(
    tiny_release: Release,
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluation, "_evaluate_batch", lambda *_: pytest.fail("it measures"))
    (tmp_path / "file").write_text("not a folder")
    assert evaluate(tiny_release, people, "--out", tmp_path / "file" / "out") == 2
    assert capsys.readouterr().err == f"umbel: Not a directory: {tmp_path / 'file' / 'out'}\n"


@pytest.mark.parametrize("k", ["", "a", "1,,2", "-1", "1.5", "1,2000000", "100001", "9" * 5000])
def test_counts_that_are_none(
    tiny_release: Release, people: Path, capsys: pytest.CaptureFixture[str], k: str
) -> None:
    assert evaluate(tiny_release, people, f"--k={k}") == 2
    err = capsys.readouterr().err
    assert err.startswith("umbel: --k cannot be read\n")
    assert err.endswith("Write it like: --k 0,4,16\n")


@pytest.mark.parametrize("what", ["label", "few", "nowhere"])
def test_people_who_cannot_be_measured(
    tiny_release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    path = tmp_path / "people.jsonl"
    secret = "tender secret"
    if what != "nowhere":
        rows = [Example("ann", secret, secret if what == "label" else "yes")]
        write_examples(path, rows * (8 if what == "label" else 1))
    assert evaluate(tiny_release, path, "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "this is a bug" not in err
    assert not {"tender", "secret"} & set(err.replace(".", " ").split())
    if what == "label":
        assert "line 8: the label is not one of no, yes" in err
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.fixture(scope="module")
def engine(tiny_release: Release) -> Engine:
    return Engine(tiny_release)


def crowd(count: int) -> list[UserExamples]:
    return [
        UserExamples(
            str(number),
            tuple(random_examples(4, str(number), 3 + number % 4)),
            tuple(random_examples(4, str(number), 6, "query")),
        )
        for number in range(count)
    ]


def measured(
    engine: Engine, count: int, journal: Path | None, **changes: Any
) -> tuple[dict[str, Any], list[int]]:
    """Every accuracy, and how many people were done after each batch."""
    told: list[int] = []
    options: dict[str, Any] = {"query": 6, "batch_users": 3} | changes
    found = evaluate_users(
        engine, crowd(count), (0, 2), journal=journal, on_users=lambda done, _: told.append(done), **options
    )
    rows = {
        f"{k} {what}": getattr(row, what).tolist()
        for k, row in found.items()
        for what in ("generic", "personal")
    }
    return rows, told


@pytest.mark.parametrize("lines", range(9))
def test_people_are_measured_beside_the_same_people_after_a_stop(
    engine: Engine, tmp_path: Path, lines: int
) -> None:
    """Whole batches of 3 are kept, so that every number comes out the same to the last bit."""
    wanted, told = measured(engine, 7, None)
    assert told == [3, 6, 7]
    journal = tmp_path / "people.jsonl"
    measured(engine, 7, journal)
    data = journal.read_text().splitlines(keepends=True)
    assert len(data) == 8
    journal.write_text("".join(data[:lines]) + '{"generic": {"0"')
    found, told = measured(engine, 7, journal)
    assert found == wanted
    kept = max(lines - 1, 0)
    assert told == [done for done in (3, 6, 7) if done > kept or (done == 3 and kept < 3)]
    assert journal.read_text() == "".join(data)


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[]\n", b"null\n", b"\n", b"3"])
def test_a_journal_that_is_none_is_written_anew(engine: Engine, tmp_path: Path, damage: bytes) -> None:
    journal = tmp_path / "people.jsonl"
    wanted, _ = measured(engine, 4, journal)
    data = journal.read_bytes()
    journal.write_bytes(damage)
    found, told = measured(engine, 4, journal)
    assert (found, told) == (wanted, [3, 4])
    assert journal.read_bytes() == data


@pytest.mark.parametrize(
    "malformed",
    [
        "{}",
        "[]",
        NESTED,
        '{"generic": [], "bias": [], "personal": []}',
        *(
            json.dumps({model: {"0": 0.5, "2": 0.5} for model in ("generic", "bias")} | {"personal": part})
            for part in (
                {"0": 0.5},
                {"0": 0.5, "2": "0.5"},
                {"0": 0.5, "2": True},
                {"0": 0.5, "2": 1.5},
                {"0": 0.5, "2": -0.5},
                {"0": 0.5, "2": float("nan")},
                {"0": 0.5, "2": 10**400},
                {"0": 0.5, "2": 0.5, "4": 0.5},
            )
        ),
    ],
)
def test_whoever_stands_after_a_malformed_line_is_measured_again(
    engine: Engine, tmp_path: Path, malformed: str
) -> None:
    journal = tmp_path / "people.jsonl"
    wanted, _ = measured(engine, 7, journal)
    data = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*data[:5], malformed + "\n", *data[6:]]))
    found, told = measured(engine, 7, journal)
    assert (found, told) == (wanted, [6, 7])
    assert journal.read_text() == "".join(data)


@pytest.mark.parametrize("change", [{"query": 5}, {"batch_users": 2}])
def test_a_journal_of_another_evaluation_is_not_used(
    engine: Engine, tmp_path: Path, change: dict[str, int]
) -> None:
    measured(engine, 4, tmp_path / "people.jsonl")
    wanted, told = measured(engine, 4, None, **change)
    assert measured(engine, 4, tmp_path / "people.jsonl", **change) == (wanted, told)


def test_a_journal_holds_no_text_and_no_person(engine: Engine, tmp_path: Path) -> None:
    measured(engine, 4, tmp_path / "people.jsonl")
    text = (tmp_path / "people.jsonl").read_text()
    words = re.findall('"([a-z ]*)"', text)
    assert set(words) == {"identity", "generic", "bias", "personal"}


def test_each_person_is_measured_as_if_alone(engine: Engine) -> None:
    together, _ = measured(engine, 5, None, batch_users=5)
    alone, _ = measured(engine, 5, None, batch_users=1)
    for name, values in together.items():
        assert np.mean(values) == pytest.approx(np.mean(alone[name]), abs=1 / 6 / 5)  # one answer may tip
