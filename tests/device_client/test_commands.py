"""`umbel device` as its owner types it: what it prints, what it writes, and what it never says."""

import io
import json
import os
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.builders import random_examples
from tests.terminal import umbel

from umbel.shared.examples import write_examples
from umbel.shared.files import sha256_bytes
from umbel.shared.release import Release, write_release

SECRET = "tender secret"  # stands in every text and label that an error message must not quote
MINE = [
    {"text": "a slow film", "label": "yes"},
    {"text": "a good book", "label": "no"},
    {"text": "not very good", "label": "no"},
    {"text": "slow slow slow", "label": "yes"},
]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)


def examples(*rows: dict[str, Any], name: str = "mine.jsonl") -> Path:
    path = Path(name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learned(capsys: pytest.CaptureFixture[str], release: Release, *rows: dict[str, Any]) -> dict[str, Any]:
    status, out, err = umbel(capsys, "learn", "-r", release.folder, "-e", examples(*rows), "--json")
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


@pytest.mark.full
def test_learn_and_predict_for_scripts(tiny_release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    found = learned(capsys, tiny_release, *MINE)
    seconds = found.pop("seconds")
    assert 0 < seconds < 60
    assert all(0 < found.pop(f"nll_{kind}") < 2 for kind in ("personal", "generic"))
    assert found == {
        "profile": "profile.umbel",
        "bytes": tiny_release.manifest.profile.file_bytes,
        "release": tiny_release.release_id,
        "examples": 4,
        "steps": 6,
        "precision": "float32",
        "strength": 1.0,
        "held_out": None,
        "finished": True,
        "changed": True,
        "resumed": False,
        "notes": [],
    }
    status, out, err = umbel(capsys, "predict", "-r", tiny_release.folder, "slow film", "good book", "--json")
    assert (status, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    names = {"text", "label", "probability", "probabilities", "generic_label"}
    assert ([set(row) for row in rows], rows[1]["text"]) == ([names] * 2, "good book")
    for row in rows:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=2e-6)
        assert row["probability"] == row["probabilities"][row["label"]] == max(row["probabilities"].values())


@pytest.mark.full
def test_learn_and_predict_in_words(tiny_release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = umbel(
        capsys, "learn", "-r", tiny_release.folder, "-e", examples(*MINE), "-p", "p.umbel"
    )
    assert (status, err) == (0, "")
    assert out.startswith("Learned from 4 examples in ")
    size = tiny_release.manifest.profile.file_bytes
    assert re.search(r"On them the loss went from \d\.\d{3} to \d\.\d{3}\.$", out, re.MULTILINE)
    assert f"The profile is in p.umbel ({size} bytes)." in out
    told = re.search(r"Use it: umbel device (predict.*)", out)
    assert told is not None
    status, out, err = umbel(capsys, *told.group(1).replace('"', "").split())  # what it says to type works
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["label", "probability", "generic", "text"]


@pytest.mark.full
def test_the_profile_is_its_owners_alone_and_the_same_again(
    tiny_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0)
    try:
        learned(capsys, tiny_release, *MINE)
    finally:
        os.umask(before)
    path = Path("profile.umbel")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_bytes()
    learned(capsys, tiny_release, *MINE)
    assert path.read_bytes() == first
    assert {entry.name for entry in Path().iterdir()} == {"mine.jsonl", "profile.umbel"}


@pytest.mark.full
def test_the_same_examples_as_csv(tiny_release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    learned(capsys, tiny_release, *MINE)
    first = Path("profile.umbel").read_bytes()
    Path("mine.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in MINE))
    status, _, err = umbel(capsys, "learn", "-r", tiny_release.folder, "-e", "mine.csv")
    assert (status, err) == (0, "")
    assert Path("profile.umbel").read_bytes() == first


@pytest.mark.full
@pytest.mark.parametrize(
    ("rows", "note"),
    [(MINE[:1], "there is only one example"), ([MINE[0], MINE[3]], "all examples have the same label")],
)
def test_little_to_learn_from_is_said(
    tiny_release: Release, capsys: pytest.CaptureFixture[str], rows: list[dict[str, str]], note: str
) -> None:
    (told,) = learned(capsys, tiny_release, *rows)["notes"]
    assert told.startswith(note)
    status, out, _ = umbel(capsys, "learn", "-r", tiny_release.folder, "-e", "mine.jsonl")
    assert (status, out.splitlines()[0]) == (0, f"Note: {told}")


@pytest.mark.full
@pytest.mark.parametrize("command", ["learn", "onboard"])
def test_nothing_but_a_profile_is_written_over(
    onboarding_release: Release, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    mine = examples(*MINE)
    before = mine.read_bytes()
    status, out, err = umbel(capsys, command, "-r", onboarding_release.folder, "-e", mine, "-p", mine)
    assert (status, out) == (2, "")
    assert "no profile" in err
    assert mine.read_bytes() == before


@pytest.mark.full
def test_texts_of_a_file_are_as_examples_texts_are(
    onboarding_release: Release, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = onboarding_release.folder

    def onboarded(data: bytes, name: str = "t.txt") -> tuple[int, str, str]:
        Path(name).write_bytes(data)
        return umbel(capsys, "onboard", "-r", folder, "-t", name, "--json")

    status, out, _ = onboarded(b"a slow film\n\n  \na good book\n")
    assert (status, json.loads(out)["texts"]) == (0, 2)
    stdin(monkeypatch, b"a slow film\na good book\n")
    again = json.loads(umbel(capsys, "onboard", "-r", folder, "-t", "-", "--json")[1])
    assert again["texts"] == 2
    status, _, err = onboarded(b"x" * 20_001 + b"\n" + SECRET.encode() + b"\0\n")
    assert (status, SECRET in err) == (2, False)
    assert "line 1: text is 20,001 characters long" in err
    assert "line 2: text holds a NUL character" in err
    assert "there are no texts" in onboarded(b"\n\n")[2]
    assert "--examples" in onboarded(b'{"text": "x"}', "t.jsonl")[2]


@pytest.mark.full
def test_a_release_does_not_steer_the_terminal(
    onboarding_release: Release, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = onboarding_release.manifest.onboarding
    assert shown is not None
    hostile = replace(shown.prototypes[0][0], label="\x1b]0;PWNED\x07", text="\x1b[31mred")
    manifest = replace(
        onboarding_release.manifest,
        onboarding=replace(shown, prototypes=tuple((hostile,) for _ in shown.prototypes)),
    )
    release = Release(onboarding_release.folder, manifest, onboarding_release.release_id)
    monkeypatch.setattr("umbel.device_client.work.read_release", lambda _folder: release)
    status, out, _ = umbel(capsys, "onboard", "-r", "release", "-e", examples(*MINE), "--explain")
    assert status == 0
    assert "red" in out
    assert "\x1b" not in out


@pytest.mark.full
def test_every_wrong_line_is_told_and_none_is_quoted(
    tiny_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        json.dumps({"text": SECRET, "label": "yes"}),
        json.dumps({"text": SECRET, "label": SECRET}),
        f'{{"text": "{SECRET}", "label": ',
        json.dumps({"text": SECRET}),
        "",
        json.dumps([SECRET]),
        json.dumps({"text": "", "label": "no"}),
        json.dumps({"text": 7, "label": "no", SECRET: 1}),
    ]
    Path("mine.jsonl").write_text("\n".join(lines))
    status, out, err = umbel(capsys, "learn", "-r", tiny_release.folder, "-e", "mine.jsonl")
    assert (status, out) == (2, "")
    assert err.splitlines()[1:-1] == [
        "  - line 2: the label is not one of no, yes",
        "  - line 3: malformed JSON at column 36",
        "  - line 4: label is missing or empty",
        "  - line 6: not a JSON object",
        "  - line 7: text is missing or empty",
        "  - line 8: text is of a wrong type (int)",
    ]
    assert not set(SECRET.split()) & set(re.findall(r"\w+", err))
    assert {path.name for path in Path().iterdir()} == {"mine.jsonl"}


@pytest.mark.full
def test_several_people_in_one_file(tiny_release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    write_examples(Path("all.jsonl"), [*random_examples(0, "ann", 2), *random_examples(0, "ben", 2)])
    status, out, err = umbel(capsys, "learn", "-r", tiny_release.folder, "-e", "all.jsonl")
    assert (status, out) == (2, "")
    assert err == (
        "umbel: a profile is learned from one person's examples\n"
        "  - found 2 users\n"
        "Give a file with one user, or without a user column.\n"
    )
    assert not Path("profile.umbel").exists()


@pytest.mark.full
def test_failure_keeps_the_older_profile(tiny_release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    learned(capsys, tiny_release, *MINE)
    before = Path("profile.umbel").read_bytes()
    bad = examples({"text": SECRET, "label": "maybe"}, name="bad.jsonl")
    assert umbel(capsys, "learn", "-r", tiny_release.folder, "-e", bad)[0] == 2
    assert Path("profile.umbel").read_bytes() == before


@pytest.mark.full
@pytest.mark.parametrize("place", ["mine.jsonl/profile.umbel", "."])
def test_a_profile_that_cannot_be_written(
    tiny_release: Release, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    status, out, err = umbel(capsys, "learn", "-r", tiny_release.folder, "-e", examples(*MINE), "-p", place)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"umbel: [^\n]*\n([^\n]+\n)?", err)
    assert {path.name for path in Path().iterdir()} == {"mine.jsonl"}


@pytest.mark.full
def test_a_profile_of_another_release(
    tiny_release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned(capsys, tiny_release, *MINE)
    other = another(tiny_release, tmp_path / "other")
    status, out, err = umbel(capsys, "predict", "-r", other.folder, SECRET)
    assert (status, out) == (2, "")
    assert err.splitlines()[:2] == [
        "umbel: the profile does not fit this release",
        f"  - it belongs to release {tiny_release.release_id[:12]}, not to {other.release_id[:12]}",
    ]
    assert SECRET not in err
    assert umbel(capsys, "predict", "-r", other.folder, "--generic", "good film")[0] == 0


def another(release: Release, folder: Path) -> Release:
    """The same release but for one number of its recipe."""
    manifest = release.manifest
    blobs = {name: release.blob_path(name).read_bytes() for name in manifest.blobs}
    assert all(sha256_bytes(data) == manifest.blobs[name].sha256 for name, data in blobs.items())
    recipe = replace(manifest.recipe, steps=manifest.recipe.steps + 1)
    return write_release(folder, replace(manifest, recipe=recipe), blobs)


@pytest.mark.full
@pytest.mark.parametrize("damage", ["cut", "long", "other", "empty"])
def test_a_damaged_profile(tiny_release: Release, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    learned(capsys, tiny_release, *MINE)
    path = Path("profile.umbel")
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-1], "long": data + b"x", "other": b"x" + data[1:], "empty": b""}[damage])
    status, out, err = umbel(capsys, "predict", "-r", tiny_release.folder, SECRET)
    assert (status, out) == (2, "")
    assert err.startswith(("umbel: the profile does not fit", "umbel: this is not an umbel profile"))
    assert SECRET not in err


@pytest.mark.full
def test_no_profile_yet(tiny_release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = umbel(capsys, "predict", "-r", tiny_release.folder, SECRET)
    assert (status, out) == (2, "")
    assert err == (
        "umbel: there is no profile at profile.umbel\n"
        "Make one with: umbel device learn, or onboard; or pass --generic to predict without.\n"
    )


@pytest.mark.full
def test_without_a_profile_everybody_gets_the_generic_label(
    tiny_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [example.text for example in random_examples(3, "ann", 9)]
    _, out, _ = umbel(capsys, "predict", "-r", tiny_release.folder, "--generic", "--json", *texts)
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 9
    assert all(row["label"] == row["generic_label"] for row in rows)


@pytest.mark.full
def test_texts_from_everywhere_are_the_same_texts(
    tiny_release: Release, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words, stdin and a file: one text a line, whoever ended it, with a byte-order mark or not."""
    texts = ["good film", "slow \u2028 book", "a very bad film"]
    _, wanted, _ = umbel(capsys, "predict", "-r", tiny_release.folder, "--generic", "--json", *texts)
    assert len(wanted.splitlines()) == 3
    for end, last, mark in (("\n", "\n", ""), ("\r\n", "", ""), ("\n", "", "\ufeff")):
        data = (mark + end.join(texts) + last).encode()
        Path("texts.txt").write_bytes(data)
        stdin(monkeypatch, data)
        for words in (["-"], ["--texts", "texts.txt"]):
            status, out, err = umbel(
                capsys, "predict", "-r", tiny_release.folder, "--generic", "--json", *words
            )
            assert (status, out, err) == (0, wanted, "")


@pytest.mark.full
def test_a_text_is_shown_as_it_is_in_the_table(
    tiny_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = umbel(capsys, "predict", "-r", tiny_release.folder, "--generic", "[bold]good[/bold]")
    assert "[bold]good[/bold]" in out.splitlines()[1]


@pytest.mark.parametrize(
    ("words", "data", "expected"),
    [
        ([], b"", ["umbel: there is nothing to predict"]),
        (["-"], b"", ["umbel: there is nothing to predict"]),
        (
            [SECRET, "", " "],
            b"",
            [
                "umbel: some of these texts cannot be used",
                *(f"  - text {n}: text is missing or empty" for n in (2, 3)),
            ],
        ),
        (
            ["-"],
            b" \n\n",
            ["umbel: there is nothing to predict"],
        ),
        (["-"], b"tender secret\n\xff", ["umbel: what stdin gives is not UTF-8 text", "  - byte 15"]),
        (["-t", "texts.txt"], b"\xfftender secret", ["umbel: texts.txt is not UTF-8 text", "  - byte 1"]),
        (["-t", "nowhere.txt"], b"", ["umbel: No such file or directory: nowhere.txt"]),
    ],
)
def test_texts_that_are_none(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    data: bytes,
    expected: list[str],
) -> None:
    """Told before the release is looked at."""
    stdin(monkeypatch, data)
    Path("texts.txt").write_bytes(data)
    status, out, err = umbel(capsys, "predict", "-r", "nowhere", *words)
    assert (status, out) == (2, "")
    assert err.splitlines()[: len(expected)] == expected
    assert SECRET not in err


@pytest.mark.parametrize("what", ["missing", "empty", "file", "damaged"])
@pytest.mark.parametrize("words", [("learn", "-e", "mine.jsonl"), ("predict", SECRET)])
def test_a_release_that_is_none(
    capsys: pytest.CaptureFixture[str], what: str, words: tuple[str, ...]
) -> None:
    examples({"text": SECRET, "label": "yes"})
    folder = Path("release")
    if what == "file":
        folder.write_text("not a folder")
    elif what != "missing":
        folder.mkdir()
    if what == "damaged":
        (folder / "manifest.json").write_text('{"schema": ')
    command, *rest = words
    status, out, err = umbel(capsys, command, "-r", folder, *rest)
    assert (status, out) == (2, "")
    assert err.startswith("umbel: ")
    assert "release" in err
    assert "this is a bug" not in err
    assert SECRET not in err
    assert not Path("profile.umbel").exists()


@pytest.mark.full
def test_examples_that_are_not_there(tiny_release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = umbel(capsys, "learn", "-r", tiny_release.folder, "-e", "nowhere.jsonl")
    assert (status, out) == (2, "")
    assert err == "umbel: Cannot read nowhere.jsonl: No such file or directory.\n"


@pytest.mark.full
def test_endless_files_are_refused(tiny_release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong file is read no further than a right one could reach, so that it cannot fill the memory."""
    words = ("predict", "-r", tiny_release.folder)
    status, _, err = umbel(capsys, *words, "-p", "/dev/zero", "a slow film")
    assert (status, err) == (2, "umbel: Not a plain file: /dev/zero\n")
    status, _, err = umbel(capsys, *words, "--generic", "-t", "/dev/zero")
    assert (status, err) == (2, "umbel: /dev/zero has more than 67,108,864 bytes\nGive it in parts.\n")


@pytest.mark.full
def test_a_text_does_not_steer_the_terminal(
    tiny_release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = umbel(capsys, "predict", "-r", tiny_release.folder, "--generic", "\x1b[31mred\nline")
    assert status == 0
    assert "\ufffd[31mred\ufffdline" in out
    assert "\x1b[31mred" not in out


@pytest.mark.full
def test_a_narrow_terminal_cuts_the_texts_and_not_the_labels(
    tiny_release: Release, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = umbel(capsys, "predict", "-r", tiny_release.folder, "--generic", "a slow film " * 9)
    heading, row = out.splitlines()
    assert heading.split()[0] == "label"
    assert row.split()[0] == row.split()[2] != ""
    assert row.split()[0] in tiny_release.manifest.labels
    assert row.rstrip().endswith("\u2026")


@pytest.mark.full
@pytest.mark.parametrize(("trust", "words"), [(-1000.0, "did not help"), (0.0, "% of it is used")])
def test_a_cautious_release_says_how_much_of_a_profile_is_used(
    tiny_release: Release,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    trust: float,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = replace(tiny_release.manifest.recipe, folds=2, trust=trust)
    manifest = replace(tiny_release.manifest, recipe=recipe)
    cautious = Release(tiny_release.folder, manifest, tiny_release.release_id)
    monkeypatch.setattr("umbel.device_client.work.read_release", lambda _folder: cautious)
    status, out, _ = umbel(capsys, "learn", "-r", tiny_release.folder, "-e", examples(*MINE))
    assert status == 0
    assert words in out
    strength = learned(capsys, tiny_release, *MINE)["strength"]
    assert strength == 0.0 if trust < 0 else 0.0 < strength < 1.0
