"""What an operator is told of a coordinator, and what `enroll` and `publish-rounds` keep and say."""

import json
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from umbel.cli import main
from umbel.coordinator.federation.gains import LEAST, Gains
from umbel.coordinator.federation.journal import ROUNDS, Journal, RoundRecord, RoundsResult
from umbel.coordinator.federation.settings import RoundSettings
from umbel.coordinator.server_app import release_trainables
from umbel.coordinator.service import roster as roster_module
from umbel.coordinator.service.folder import Address, Folder
from umbel.coordinator.service.roster import Roster
from umbel.coordinator.service.status import status_of, words_of
from umbel.shared import files as shared_files
from umbel.shared.errors import ConfigError
from umbel.shared.release import Release

RELEASE = "4c7df1b6b4b2" + "0" * 52
PRIVATE = RoundSettings(noise_multiplier=0.8, epsilon_budget=2.0, delta=1e-6)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.make(tmp_path / "fed", Address("127.0.0.1", 8443))[0]


def keep(
    folder: Folder, settings: RoundSettings, epsilons: list[float | None], release_id: str = RELEASE
) -> None:
    rounds = [
        RoundRecord(number, 7, 1, 0.5, 10, 10, None, epsilon=epsilon)
        for number, epsilon in enumerate(epsilons, 1)
    ]
    Journal(folder.rounds(release_id), release_id, 50, settings).write(RoundsResult(rounds, {}))


def test_the_privacy_budget_is_told(folder: Folder) -> None:
    keep(folder, PRIVATE, [0.4, 0.55])
    found = status_of(folder.path)
    (run,) = found["runs"]
    expected = {"noise_multiplier": 0.8, "epsilon_budget": 2.0, "delta": 1e-6, "epsilon": 0.55}
    assert (run["rounds"], run["changes"], run["privacy"], run["gain"]) == (2, 14, expected, None)
    assert words_of(found).splitlines()[-1] == (
        "  Privacy: epsilon 0.550 of 2 is spent by these rounds, at delta 1e-06; the noise multiplier is 0.8."
    )


def test_what_several_releases_cost_together_is_told(folder: Folder) -> None:
    keep(folder, PRIVATE, [0.4, 0.55])
    assert status_of(folder.path)["privacy"] is None  # it is told with its release
    keep(folder, PRIVATE, [0.7], "b" * 64)
    found = status_of(folder.path)
    assert found["privacy"] == {"epsilon": pytest.approx(1.25), "delta": pytest.approx(2e-6)}
    assert words_of(found).splitlines()[-1].startswith("Together: epsilon 1.250 at delta 2e-06 for a device")
    keep(folder, RoundSettings(), [None], "c" * 64)
    found = status_of(folder.path)
    assert found["privacy"] == {"epsilon": None, "delta": None}
    assert words_of(found).splitlines()[-1].startswith("Together: no bound")


def test_without_noise_there_is_no_budget(folder: Folder) -> None:
    keep(folder, RoundSettings(), [None])
    found = status_of(folder.path)
    assert found["runs"][0]["privacy"] is None
    assert "rivacy" not in words_of(found)


def test_a_journal_that_lost_its_settings_is_named(folder: Folder) -> None:
    keep(folder, PRIVATE, [0.4])
    path = folder.rounds(RELEASE) / ROUNDS
    row = json.loads(path.read_text())
    del row["settings"]["delta"]
    path.write_text(json.dumps(row))
    with pytest.raises(ConfigError, match="is not a journal"):
        status_of(folder.path)


def test_a_copy_that_a_round_ended_in_is_named(folder: Folder) -> None:
    keep(folder, RoundSettings(), [None])
    (tensors,) = folder.rounds(RELEASE).glob("trainables-*")
    tensors.unlink()
    with pytest.raises(ConfigError, match="is not whole") as error:
        status_of(folder.path)
    assert "if this is a copy, a round ended while it was made" in error.value.problems[0]


def test_a_device_is_told_and_shut_out_by_the_number_that_notes_call_it_by(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    with Roster.open(folder.roster) as roster:
        for code, key in zip(roster.new_codes(2, timedelta(days=1)), (b"one", b"two"), strict=True):
            roster.redeem(code, key)
        roster.claim(b"two", 2092556891612741863)
    numbers = {own["number"]: own["name"] for own in status_of(folder.path)["devices"]}
    assert set(numbers) == {None, 2092556891612741863}
    assert words_of(status_of(folder.path)).count("number 2092556891612741863") == 1
    assert main(["coordinator", "bar", str(folder.path), "2092556891612741863"]) == 0
    barred = [own["name"] for own in status_of(folder.path)["devices"] if own["barred"]]
    assert barred == [numbers[2092556891612741863]]
    assert f"{barred[0]} is shut out" in capsys.readouterr().out
    assert main(["coordinator", "bar", str(folder.path), "None"]) != 0


def test_a_gain_is_told_before_the_first_round_is_done(folder: Folder) -> None:
    gains = Gains(folder.rounds(RELEASE), RELEASE)
    for client in range(LEAST):
        gains.add(client, 512)
    gains.keep()
    found = status_of(folder.path)
    (run,) = found["runs"]
    assert (run["release"], run["rounds"], run["gain"]["reports"]) == (RELEASE[:12], 0, LEAST)
    assert run["gain"]["mean"] == 0.5
    assert words_of(found).endswith(
        "Gain: +0.500, give or take 1.265 (one standard error), as 5 devices told it, each with noise of "
        "its own."
    )


def test_codes_are_open_only_once_their_files_are_written(
    folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "invitations"
    files: list[Path] = []
    real = shared_files.atomic_write

    def full(path: Path, data: bytes, mode: int = 0o644) -> None:
        if len(files) == 2:
            raise OSError(28, "No space left on device")
        files.append(path)
        real(path, data, mode=mode)

    monkeypatch.setattr(shared_files, "atomic_write", full)
    assert main(["coordinator", "enroll", str(folder.path), "-n", "3", "--out", str(out)]) != 0
    assert "Traceback" not in capsys.readouterr().err
    assert list(out.iterdir()) == []
    with Roster.open(folder.roster) as roster:
        assert roster.codes() == {"open": 0, "used": 0, "expired": 0}
    monkeypatch.undo()
    assert main(["coordinator", "enroll", str(folder.path), "-n", "3", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["invitations"]
    assert sorted(told) == sorted(map(str, out.iterdir()))
    with Roster.open(folder.roster) as roster:
        assert roster.codes()["open"] == 3


def test_days_that_are_no_number_are_refused(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coordinator", "enroll", str(folder.path), "--days", "nan"]) == 2
    assert "--days is nan" in capsys.readouterr().err


def test_files_do_not_stay_where_their_codes_could_not_be_opened(
    folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster_module, "_WAIT_S", 0.1)
    writing = sqlite3.connect(folder.roster, isolation_level=None)
    writing.execute("BEGIN IMMEDIATE")
    assert main(["coordinator", "enroll", str(folder.path), "--out", str(tmp_path / "out")]) == 2
    writing.close()
    said = capsys.readouterr().err
    assert "devices.sqlite cannot be used" in said
    assert "Another umbel is writing to it: try again." in said
    assert list((tmp_path / "out").iterdir()) == []


def test_the_old_name_stays_in_a_certificate_when_a_coordinator_moves(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["coordinator", "renew", str(folder.path), "--host", "new.example.org", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["names"] == ["new.example.org", "127.0.0.1"]
    assert Folder.read(folder.path).address.url == "https://new.example.org:8443"


@pytest.mark.full
def test_publishing_says_what_the_rounds_have_cost(
    folder: Folder, tiny_release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tiny_release.release_id
    record = RoundRecord(1, 7, 0, 0.5, 10, 10, None, epsilon=0.4)
    reached = RoundsResult([record], release_trainables(tiny_release))
    Journal(folder.rounds(own), own, 50, PRIVATE).write(reached)
    words = ["coordinator", "publish-rounds", str(folder.path), "-r", str(tiny_release.folder), "--out"]
    assert main([*words, str(tmp_path / "next")]) == 0
    assert "They cost each device epsilon 0.400 at delta 1e-06." in capsys.readouterr().out
    assert main([*words, str(tmp_path / "again"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["privacy"]["epsilon"] == 0.4
