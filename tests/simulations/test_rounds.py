"""`umbel rounds` on a tiny release: run, stopped, gone on with, published, and what it refuses."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.builders import random_examples, write_devices

from umbel import cli
from umbel.coordinator.server_app import release_trainables
from umbel.shared.examples import write_examples
from umbel.shared.files import sole_use
from umbel.shared.release import Release, read_release
from umbel.simulations.data.packing import pack
from umbel.simulations.engines import run_rounds
from umbel.simulations.homes.home import home_of
from umbel.simulations.progress import Bar
from umbel.simulations.rounds.config import read_own

PEOPLE = 7
CONFIG = """
seed = 5
[rounds]
clients = 3
local_rate = 0.5
evaluate_clients = 2
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples of some people, as anybody might have them."""
    path = tmp_path_factory.mktemp("rounds") / "people.jsonl"
    write_examples(path, [row for user in range(PEOPLE) for row in random_examples(2, f"p{user}", 6 + user)])
    return path


@pytest.fixture
def people(file: Path, tmp_path: Path) -> Path:
    pack(file, tmp_path / "people", heldout_share=0.3)
    return tmp_path / "people"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "rounds.toml"
    path.write_text(CONFIG)
    return path


def rounds(release: Path, people: Path, out: Path, *words: object) -> int:
    command = ["rounds", "--release", release, "--people", people, "--out", out, "--workers", 1, *words]
    return cli.main([str(word) for word in command])


def journal(out: Path) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((out / "rounds.json").read_text())
    for record in row["rounds"]:
        del record["seconds"]
    return row


def tensors(out: Path) -> dict[str, Any]:
    (path,) = out.glob("trainables-*")
    return load_file(path)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_packed_people_take_part_and_what_they_reach_becomes_a_release(
    file: Path, config: Path, tiny_release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the commands that each one's last line names; the serial engine reaches the same from Python."""
    folder, out, after = tmp_path / "table", tmp_path / "out", tmp_path / "after"
    assert cli.main(["data", "pack", str(file), "--heldout-share", "0.3", "--out", str(folder)]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == f"Run rounds among them: umbel rounds --release RELEASE --people {folder}"
    words = told.partition("umbel ")[2].replace("RELEASE", str(tiny_release.folder)).split()
    assert cli.main([*words, "--config", str(config), "--rounds", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert [line.split(":")[0].strip() for line in shown.err.splitlines() if " devices, " in line] == [
        "round 1",
        "round 2",
    ]
    first, second, last = shown.out.splitlines()
    assert first == f"2 rounds are done. {out / 'rounds.json'} has a line for each."
    assert second == f"The shared tensors after them are in {next(out.glob('trainables-*'))}."
    words = last.partition("umbel ")[2].replace("NEXT", str(after)).split()
    assert cli.main(words) == 0
    found = read_release(after)
    assert found.manifest.parent == tiny_release.release_id
    twin = run_rounds(
        "serial",
        release_folder=tiny_release.folder,
        devices_folder=folder,
        clients_total=PEOPLE,
        settings=read_own(config, {"rounds": {"rounds": 2}}).settings(),
        out=tmp_path / "twin",
    )
    before, reached = release_trainables(tiny_release), release_trainables(found)
    assert any(np.abs(reached[name] - before[name]).max() > 1e-3 for name in before)
    for name, values in twin.trainables.items():
        np.testing.assert_allclose(reached[name], values, rtol=0, atol=1e-5)
    took_part = [home_of(folder, number).load_profile(tiny_release) for number in range(PEOPLE)]
    assert 3 <= sum(profile is not None for profile in took_part) <= PEOPLE


def test_json_says_all_of_it(
    people: Path, config: Path, tiny_release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--config", config, "--rounds", 2, "--evaluate", 4, "--clients", 5, "--seed", 9, "--json"]
    assert rounds(tiny_release.folder, people, out, *words) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    found = json.loads(shown.out)
    assert [record["clients"] for record in found.pop("rounds")] == [5, 5]
    assert found == {
        "out": str(out),
        "tensors": str(next(out.glob("trainables-*"))),
        "release": tiny_release.release_id,
        "people": PEOPLE,
        "seed": 9,
        "engine": "cohort",
        "compute": "onnxruntime",
        "before": 0,
    }
    settings = journal(out)["settings"]
    assert (settings["seed"], settings["local_rate"], settings["evaluate_clients"]) == (9, 0.5, 4)


def test_stopped_after_a_round_it_goes_on_to_the_same(
    people: Path,
    config: Path,
    tiny_release: Release,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    release, words = tiny_release.folder, ["--config", config, "--rounds", 3]
    assert rounds(release, people, tmp_path / "whole", *words) == 0
    tells, out = Bar.tells, tmp_path / "stopped"

    def stops(bar: Bar, done: int, total: int, lines: list[str]) -> None:
        tells(bar, done, total, lines)
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Bar, "tells", stops)
        assert rounds(release, people, out, *words) == 130
    assert capsys.readouterr().err.endswith("umbel: interrupted; what was finished is kept\n")
    assert len(journal(out)["rounds"]) == 2
    assert rounds(release, people, out, *words) == 0
    shown = capsys.readouterr()
    assert "goes on after round 2" in shown.err
    assert shown.out.startswith("3 rounds are done, 1 of them now. ")
    assert journal(out) == journal(tmp_path / "whole")
    before = files(out)
    assert rounds(release, people, out, *words) == 0
    assert "3 rounds are done since an earlier call; more --rounds would go on. " in capsys.readouterr().out
    assert files(out) == before
    np.testing.assert_equal(tensors(out), tensors(tmp_path / "whole"))


def test_homes_in_folders_take_part_too(
    config: Path, tiny_release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    homes = write_devices(tmp_path / "homes", [4, 5, 6])
    words = ["--config", config, "--rounds", 1, "--json"]
    assert rounds(tiny_release.folder, homes, tmp_path / "out", *words) == 0
    assert json.loads(capsys.readouterr().out)["people"] == 3
    (homes / "000001").rename(homes / "elsewhere")
    assert rounds(tiny_release.folder, homes, tmp_path / "more", *words) == 2
    assert (
        "it has 2 homes, which are to be numbered from 000000 on; 000001 is missing"
        in capsys.readouterr().err
    )
    (homes / "99999999").mkdir()
    assert rounds(tiny_release.folder, homes, tmp_path / "more", *words) == 2


def test_all_that_is_in_the_way_is_told_at_once_and_nothing_is_written(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "rounds.toml"
    config.write_text("[rounds]\ndevice_examples = 3\n[training]\nmax_steps = 3\n")
    words = ["--config", config, "--compute", "abacus", "--engine", "cohort"]
    before = files(tmp_path)
    assert rounds(tmp_path / "nowhere", file, tmp_path / "out", *words) == 2
    told = capsys.readouterr().err
    for problem in (
        "the rounds cannot begin",
        "nowhere",
        f"{file} is no folder of people: it is a file",
        "training: unknown key",
        "torch cannot compute there: found 'abacus'",
        f"umbel data pack {file} --out PEOPLE",
    ):
        assert problem in told
    assert (tmp_path / "out").exists() is False
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[rounds]\ndevice_examples = 3", "device_examples do not apply"),
        ("[rounds]\nrounds = 0", "rounds is 0"),
        ("rounds = 3", "rounds: must be"),
        ("[rounds]\nsecure = true\nclients = 3", "clients is 3, expected 5 to"),
        ("[rounds]\nlocal_rates = 3", "rounds.local_rates: unknown key"),
    ],
)
def test_settings_that_cannot_be_used(
    text: str,
    problem: str,
    people: Path,
    tiny_release: Release,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "own.toml").write_text(text)
    words = ["--config", tmp_path / "own.toml"]
    assert rounds(tiny_release.folder, people, tmp_path / "out", *words) == 2
    told = capsys.readouterr().err
    assert "own.toml cannot be used" in told
    assert problem in told


def test_folders_that_hold_nobody_are_told_how_to_make_one(
    tiny_release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, problem in ((tmp_path, "it holds neither a table"), (tmp_path / "no", "No such file")):
        assert rounds(tiny_release.folder, folder, tmp_path / "out") == 2
        told = capsys.readouterr().err
        assert f"{folder} is no folder of people" in told
        assert problem in told
        assert "umbel data pack FILE --out PEOPLE" in told


def test_nobody_is_evaluated_of_whom_nothing_is_held_out(
    file: Path, config: Path, tiny_release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless it is asked for, nobody is at all."""
    pack(file, tmp_path / "people")
    words = ["--config", config, "--rounds", 1]
    assert rounds(tiny_release.folder, tmp_path / "people", tmp_path / "out", *words) == 2
    assert "none of the 2 people to evaluate has held-out examples" in capsys.readouterr().err
    assert rounds(tiny_release.folder, tmp_path / "people", tmp_path / "out", "--rounds", 1) == 0
    assert journal(tmp_path / "out")["rounds"][0]["seen_accuracy"] is None


def test_rounds_do_not_go_on_among_others_or_by_other_means(
    people: Path, config: Path, tiny_release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many people with as many examples; their texts are others."""
    out, words = tmp_path / "out", ["--config", config, "--rounds", 1]
    assert rounds(tiny_release.folder, people, out, *words) == 0
    before = files(out)
    rows = [row for user in range(PEOPLE) for row in random_examples(3, f"p{user}", 6 + user)]
    write_examples(tmp_path / "others.jsonl", rows)
    pack(tmp_path / "others.jsonl", tmp_path / "others", heldout_share=0.3)
    capsys.readouterr()
    assert rounds(tiny_release.folder, tmp_path / "others", out, "--config", config, "--rounds", 2) == 2
    assert "  - people was '" in capsys.readouterr().err
    assert rounds(tiny_release.folder, people, out, *words, "--compute", "torch:cpu") == 2
    assert "  - compute was 'onnxruntime', is now 'torch:cpu'" in capsys.readouterr().err
    assert rounds(tiny_release.folder, people, out, *words, "--clients", 4) == 2
    assert files(out) == before
    people.rename(tmp_path / "moved")
    assert rounds(tiny_release.folder, tmp_path / "moved", out, "--config", config, "--rounds", 2) == 0
    row = journal(out)
    assert len(row["settings"].pop("people")) == 16  # as an earlier version left it
    (out / "rounds.json").write_text(
        json.dumps({**row, "rounds": [r | {"seconds": 1.0} for r in row["rounds"]]})
    )
    assert rounds(tiny_release.folder, tmp_path / "others", out, "--config", config, "--rounds", 3) == 0


def test_no_command_writes_where_another_has(
    people: Path, config: Path, tiny_release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", config, "--rounds", 1]
    assert rounds(tiny_release.folder, people, people, *words) == 2
    assert f"{people} holds a table of people" in capsys.readouterr().err
    assert rounds(tiny_release.folder, people, tiny_release.folder, *words) == 2
    assert rounds(tiny_release.folder, people, tmp_path / "out", *words) == 0
    command = ["evaluate", "--release", tiny_release.folder, "--data", people, "--out", tmp_path / "out"]
    assert cli.main([str(word) for word in command]) == 2
    assert f"{tmp_path / 'out'} holds what rounds have reached" in capsys.readouterr().err
    with sole_use(tmp_path / "out"):
        assert rounds(tiny_release.folder, people, tmp_path / "out", *words) == 2
    assert "another umbel is at work" in capsys.readouterr().err


def test_where_no_change_could_be_used_it_says_so(
    config: Path, tiny_release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People who give labels that the release does not know."""
    rows = [row for user in range(3) for row in random_examples(2, f"p{user}", 6)]
    homes = [f'{{"user": "{e.user}", "text": "{e.text}", "label": "perhaps"}}' for e in rows]
    (tmp_path / "people.jsonl").write_text("\n".join(homes))
    pack(tmp_path / "people.jsonl", tmp_path / "people", heldout_share=0.3)
    assert rounds(tiny_release.folder, tmp_path / "people", tmp_path / "out", "--rounds", 1) == 0
    shown = capsys.readouterr()
    assert "round 1: 0 devices, 3 failed" in shown.err
    assert "round 1, train, device 000000: " in shown.err
    assert "Nobody's change could be used, so nothing has moved" in shown.out
