"""A device with a home, as its owner types it: enrolled, fed, asked, moved to another machine, forgotten."""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.terminal import told, umbel

from umbel.device_client.own_learning import OwnLearning
from umbel.device_client.owner import Device
from umbel.device_client.profile_file import read_profile
from umbel.device_client.releases.installed import install
from umbel.device_client.vault.portable import Exported, write_export
from umbel.device_client.vault.store import Entry
from umbel.shared.errors import BusyError, ExampleError, ReleaseError, StoreError
from umbel.shared.examples import Example
from umbel.shared.files import sole_use
from umbel.shared.release import Release

CANARY = "a canary sang in the mine at noon"
MINE = [("a slow film", "yes"), ("a good book", "no"), ("not very good", "no"), (CANARY, "yes")]


pytestmark = pytest.mark.full  # a release is made, by torch


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in an empty folder of its own, with a home in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UMBEL_EXPORT_PASSPHRASE", "correct horse battery")
    monkeypatch.delenv("UMBEL_PASSPHRASE", raising=False)


def mine() -> Path:
    path = Path("mine.jsonl")
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in MINE))
    return path


def enrolled(release: Release, home: Path, **options: Any) -> Device:
    return Device.enroll(home, release.folder, **options)


def test_from_enrolment_to_forgetting(tiny_release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "enroll", "--release", tiny_release.folder)
    assert (found["release"], found["key"], found["profile"]) == (tiny_release.release_id, "file", None)
    added = told(capsys, "add", "--examples", mine())
    assert added == {"new": 4, "changed": 0, "known": 0, "kept": 0, "examples": 4, "texts": 0}
    assert told(capsys, "add", "--text", MINE[0][0], "--label", "no")["changed"] == 1
    assert told(capsys, "add", "--text", "only read")["texts"] == 1
    generic = umbel(capsys, "predict", CANARY, "--json")[1]
    learned = told(capsys, "learn")
    assert learned["examples"] == 4
    assert learned["profile"] == str(Path("home").resolve())
    assert umbel(capsys, "predict", CANARY, "--json")[1] != generic
    assert umbel(capsys, "predict", CANARY, "--generic", "--json")[1] == generic
    status = told(capsys, "status")
    assert (status["examples"], status["texts"]) == (4, 1)
    assert status["profile"]["current"] is True
    assert status["profile"]["examples"] == 4
    told(capsys, "add", "--text", "new since", "--label", "no")
    assert told(capsys, "status")["profile"]["current"] is False
    assert "umbel device learn" in umbel(capsys, "status")[1]
    erased = told(capsys, "forget", "--text", "CANARY", "--yes", "--no-learn")
    assert erased == {
        "erased": {"examples": 1, "texts": 0, "profiles": 1, "runs": 0, "readings": 0},
        "again": None,
    }
    status = told(capsys, "status")
    assert (status["examples"], status["profile"]) == (4, None)
    assert [row["what"] for row in told(capsys, "log")] == ["enrolled", "learned", "forgot"]
    assert told(capsys, "forget", "--everything", "--yes") == {"everything": True}
    assert umbel(capsys, "status")[0] == 2
    assert not list(Path("home").glob("store*")) + list(Path("home").glob("key"))


def test_what_is_learned_at_home_is_what_is_learned_from_files(
    tiny_release: Release, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with enrolled(tiny_release, tmp_path / "home") as device:
        device.add([Example("owner", text, label) for text, label in MINE])
        device.learn()
        own = device.profile()
    assert own is not None
    assert umbel(capsys, "learn", "-r", tiny_release.folder, "-e", mine())[0] == 0
    files = read_profile(tiny_release, Path("profile.umbel"))
    assert {name: value.tolist() for name, value in own.items()} == {
        name: value.tolist() for name, value in files.items()
    }


def test_no_file_of_the_home_and_no_log_holds_a_canary(
    tiny_release: Release, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with enrolled(tiny_release, tmp_path / "home") as device:
        device.add([Example("owner", text, label) for text, label in MINE], ["unlabelled " + CANARY])
        device.learn()
        device.export(tmp_path / "home" / "releases" / "export", lambda: "correct horse battery")
        assert CANARY not in json.dumps(device.log()) + json.dumps(device.status())
        for file in (tmp_path / "home").rglob("*"):
            assert not file.is_file() or CANARY.encode() not in file.read_bytes()


def test_a_move_to_another_machine(
    tiny_release: Release, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told(capsys, "enroll", "-r", tiny_release.folder)
    told(capsys, "add", "-e", mine())
    told(capsys, "learn")
    before = umbel(capsys, "predict", CANARY, "--json")[1]
    assert told(capsys, "export", "me.export")["bytes"] == Path("me.export").stat().st_size
    monkeypatch.setenv("UMBEL_HOME", "new")
    monkeypatch.setenv("UMBEL_PASSPHRASE", "another horse battery")
    told(capsys, "enroll", "-r", tiny_release.folder, "--key", "passphrase")
    monkeypatch.setenv("UMBEL_EXPORT_PASSPHRASE", "wrong horse battery")
    status, _, err = umbel(capsys, "import", "me.export")
    assert (status, "the export does not open: the passphrase is wrong" in err) == (2, True)
    assert told(capsys, "status")["examples"] == 0
    monkeypatch.setenv("UMBEL_EXPORT_PASSPHRASE", "correct horse battery")
    assert told(capsys, "import", "me.export") == {
        **{"new": 4, "changed": 0, "known": 0, "kept": 0},
        **{"profile_came": True, "profile_current": True},
    }
    assert umbel(capsys, "predict", CANARY, "--json")[1] == before
    assert told(capsys, "status")["profile"]["current"] is True
    assert told(capsys, "import", "me.export") == {
        **{"new": 0, "changed": 0, "known": 4, "kept": 0},
        **{"profile_came": False, "profile_current": True},
    }
    monkeypatch.delenv("UMBEL_PASSPHRASE")
    status, _, err = umbel(capsys, "status")
    assert (status, "UMBEL_PASSPHRASE" in err) == (2, True)


def test_the_key_changes_hands(
    tiny_release: Release, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told(capsys, "enroll", "-r", tiny_release.folder)
    told(capsys, "add", "-e", mine())
    assert "already: file" in umbel(capsys, "rekey", "--key", "file")[2]
    monkeypatch.setenv("UMBEL_NEW_PASSPHRASE", "short")
    assert "too short" in umbel(capsys, "rekey", "--key", "passphrase")[2]
    assert told(capsys, "status")["key"] == "file"
    monkeypatch.setenv("UMBEL_NEW_PASSPHRASE", "first horse battery")
    assert told(capsys, "rekey", "--key", "passphrase") == {"key": "passphrase"}
    monkeypatch.setenv("UMBEL_PASSPHRASE", "first horse battery")
    monkeypatch.setenv("UMBEL_NEW_PASSPHRASE", "second horse battery")
    told(capsys, "rekey", "--key", "passphrase")
    assert "passphrase is wrong" in umbel(capsys, "status")[2]
    monkeypatch.setenv("UMBEL_PASSPHRASE", "second horse battery")
    status = told(capsys, "status")
    assert (status["key"], status["examples"]) == ("passphrase", 4)


def test_of_two_who_change_the_holder_one_waits(tiny_release: Release, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with enrolled(tiny_release, home) as device:
        with sole_use(home), pytest.raises(BusyError):
            device.rekey("passphrase", lambda: "correct horse battery")
        assert (device.status()["key"], (home / "key").exists()) == ("file", True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status"], "umbel device enroll"),
        (["learn"], "umbel device enroll"),
        (["predict", "x"], "umbel device enroll"),
        (["forget", "--everything", "--yes"], "no store"),
        (["learn", "--examples", "mine.jsonl"], "umbel device add"),
        (["predict", "x", "--profile", "p"], "--release"),
    ],
)
def test_without_a_home_one_is_told_what_to_do(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = umbel(capsys, *words)
    assert (status, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add"], "nothing to add"),
        (["add", "--label", "yes"], "--text"),
        (["add", "mine.jsonl", "--examples", "mine.jsonl"], "given twice"),
        (["add", "--text", "x", "--label", "strange"], "not one of the release's"),
        (["add", "--text", " "], "text 1: text is missing or empty"),
        (["add", "--text", "half \ud83d", "--label", "yes"], "half of a surrogate pair"),
        (["learn"], "umbel device add"),
        (["onboard"], "nothing to begin with"),
        (["forget"], "say what to forget"),
        (["forget", "--text", " ", "--yes"], "say what to forget"),
        (["export", "home/key"], "among the files of the home"),
        (["export", "mine.jsonl"], "no export"),
        (["forget", "--number", "1", "--everything"], "say what to forget"),
        (["enroll", "--key", "stone", "--release", "."], "file, keyring, passphrase"),
        (["import", "nowhere"], "cannot read"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], said: str, tiny_release: Release, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    enrolled(tiny_release, tmp_path / "home").close()
    before = mine().read_bytes()
    status, out, err = umbel(capsys, *words)
    assert mine().read_bytes() == before
    assert (status, out) == (2, "")
    assert said in err


def test_what_is_learned_while_something_is_forgotten_is_not_kept(
    tiny_release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = OwnLearning.advance
    with enrolled(tiny_release, tmp_path / "home") as device:
        device.add([Example("owner", text, label) for text, label in MINE])

        def meanwhile(*words: Any, **options: Any) -> Any:
            with Device.open(tmp_path / "home") as other:
                other.forget([1])
            return plain(*words, **options)

        monkeypatch.setattr(OwnLearning, "advance", meanwhile)
        with pytest.raises(StoreError, match="forgotten"):
            device.learn()
        assert device.profile() is None
        assert len(device.entries()) == 3


def test_what_is_kept_is_listed_before_it_is_forgotten(
    tiny_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, "enroll", "-r", tiny_release.folder)
    told(capsys, "add", "-e", mine())
    rows = told(capsys, "list")
    assert [(row["number"], row["text"], row["label"]) for row in rows] == [
        (number, *row) for number, row in enumerate(MINE, 1)
    ]
    assert CANARY in umbel(capsys, "list")[1]
    status, _, err = umbel(capsys, "forget", "--number", "4")
    assert status == 1  # nobody answered
    assert CANARY in err
    assert len(told(capsys, "list")) == 4


def test_a_file_is_added_by_its_name_alone_and_what_is_listed_stands_in_columns(
    tiny_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, "enroll", "-r", tiny_release.folder)
    assert told(capsys, "add", mine())["new"] == 4
    told(capsys, "add", "--text", "only read")
    assert umbel(capsys, "list")[1].splitlines() == [
        "    1  yes  a slow film",
        "    2  no   a good book",
        "    3  no   not very good",
        f"    4  yes  {CANARY}",
        "    5  -    only read",
    ]


def test_of_a_long_log_a_page_is_shown(tiny_release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "enroll", "-r", tiny_release.folder)
    with Device.open(Path("home")) as device:
        for number in range(55):
            device._store.note({"at": "2026", "what": f"event {number}"})
    assert len(told(capsys, "log")) == 56
    assert [row["what"] for row in told(capsys, "log", "--last", 2)] == ["event 53", "event 54"]
    _, out, err = umbel(capsys, "log")
    assert (len(out.splitlines()), out.splitlines()[0]) == (50, "2026  event 5")
    assert err == "(the last 50; more of them: --last N)\n"
    _, out, err = umbel(capsys, "log", "--last", 56)
    assert (len(out.splitlines()), err) == (56, "")


def test_what_was_erased_is_told_though_learning_again_fails(
    tiny_release: Release, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with enrolled(tiny_release, tmp_path / "home") as device:
        device.add([Example("owner", text, label) for text, label in MINE])
        device.learn()
        device.release.blob_path("tokenizer.json").write_bytes(b"{}")
    status, out, err = umbel(capsys, "forget", "--number", 1, "--yes", "--json")
    assert (status, "tokenizer" in err) == (2, True)
    found = json.loads(out)
    assert (found["erased"]["examples"], found["erased"]["profiles"], found["again"]) == (1, 1, None)


def test_labels_from_here_stay_when_an_export_has_others(
    tiny_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, "enroll", "-r", tiny_release.folder)
    told(capsys, "add", "-e", mine())
    told(capsys, "export", "me.export")
    told(capsys, "add", "--text", CANARY, "--label", "no")  # newer than the export
    out = umbel(capsys, "import", "me.export")[1]
    assert "1 text has another label there; the one from here stayed." in out
    assert "No profile for your release came over.\nLearn from them: umbel device learn\n" in out
    assert told(capsys, "import", "me.export")["kept"] == 1
    assert told(capsys, "list")[3]["label"] == "no"


def test_no_is_an_answer_and_nothing_is_erased(
    tiny_release: Release, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, err = umbel(capsys, "forget", "--everything")
    assert (status, "there is no store" in err, "Erase" in err) == (2, True, False)
    told(capsys, "enroll", "-r", tiny_release.folder)
    told(capsys, "add", "-e", mine())
    for words in (["--number", "4"], ["--everything"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
        status, out, err = umbel(capsys, "forget", *words)
        assert (status, out, "Nothing was erased." in err) == (1, "", True)
        assert "not answered" not in err
    assert len(told(capsys, "list")) == 4


def test_what_is_to_be_done_with_what_was_added_is_said(
    tiny_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, "enroll", "-r", tiny_release.folder)
    onboards = tiny_release.manifest.onboarding is not None
    out = umbel(capsys, "add", "--text", "a slow film")[1]
    assert "0 examples and 1 text without a label." in out
    assert ("umbel device onboard" in out, "umbel device learn" in out) == (onboards, False)
    assert "umbel device" not in umbel(capsys, "add", "--text", "a slow film")[1]
    assert "umbel device learn" in umbel(capsys, "add", "-e", mine())[1]


@pytest.mark.parametrize("words", [["add", "--texts"], ["predict"], ["predict", "--texts"]])
def test_examples_are_not_taken_for_texts(
    words: list[str],
    tiny_release: Release,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told(capsys, "enroll", "-r", tiny_release.folder)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n" + mine().read_bytes())))
    status, out, err = umbel(capsys, *words, "-")
    assert (status, out, "stdin holds examples, not texts" in err) == (2, "", True)
    assert CANARY not in err
    assert told(capsys, "list") == []
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'a film\n\n \n{"text": 1}\n')))
    status, out, err = umbel(capsys, *words, "-", "--json")
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 2 or json.loads(out)["new"] == 2  # a text may look like JSON


def test_labels_of_another_release_are_not_imported(tiny_release: Release, tmp_path: Path) -> None:
    kept = Exported("other", (Entry("one", "strange", "2026"),), {})
    write_export(tmp_path / "export", kept, lambda: "correct horse battery")
    with enrolled(tiny_release, tmp_path / "home") as device:
        with pytest.raises(ExampleError, match="not one of the release's"):
            device.import_(tmp_path / "export", lambda: "correct horse battery")
        assert device.entries() == []


def test_a_damaged_copy_of_a_release_is_made_anew(tiny_release: Release, tmp_path: Path) -> None:
    first = install(tiny_release.folder, tmp_path / "releases")
    blob = first.blob_path("predict.onnx")
    blob.write_bytes(b"damaged")
    again = install(tiny_release.folder, tmp_path / "releases")
    assert again.blob_path("predict.onnx").read_bytes() == tiny_release.blob_path("predict.onnx").read_bytes()
    assert [file.name for file in (tmp_path / "releases").iterdir()] == [tiny_release.release_id]


def test_one_enrols_once(tiny_release: Release, tmp_path: Path) -> None:
    enrolled(tiny_release, tmp_path / "home").close()
    with pytest.raises(StoreError, match="there is a store"):
        enrolled(tiny_release, tmp_path / "home")


def test_all_wrong_examples_are_told_and_none_is_kept(tiny_release: Release, tmp_path: Path) -> None:
    with enrolled(tiny_release, tmp_path / "home") as device:
        wrong = [Example("a", "one", "yes"), Example("b", "two", "x"), Example("b", "three", "y")]
        with pytest.raises(ExampleError) as caught:
            device.add(wrong)
        assert len(caught.value.problems) == 3
        assert device.entries() == []


def test_a_damaged_release_is_not_taken_over(tiny_release: Release, tmp_path: Path) -> None:
    shutil.copytree(tiny_release.folder, tmp_path / "release")
    blob = next((tmp_path / "release" / "blobs").iterdir())
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(ReleaseError):
        Device.enroll(tmp_path / "home", tmp_path / "release")
    assert not list((tmp_path / "home").rglob("*.sqlite"))


def test_a_release_is_taken_over_whole_and_its_blobs_once(tiny_release: Release, tmp_path: Path) -> None:
    folder = tmp_path / "releases"
    folder.mkdir()
    (folder / ".unfinished-old").mkdir()
    first = install(tiny_release.folder, folder)
    assert first.folder == folder / tiny_release.release_id
    assert [file.name for file in folder.iterdir()] == [tiny_release.release_id]
    other = tmp_path / "other"
    shutil.copytree(tiny_release.folder, other)
    manifest = replace(tiny_release.manifest, parent=tiny_release.release_id)
    (other / "manifest.json").write_bytes(manifest.to_bytes())
    second = install(other, folder)
    assert second.release_id != first.release_id
    for name in first.manifest.blobs:
        assert first.blob_path(name).samefile(second.blob_path(name))
