"""No file, and no word that a command says, holds what an owner entrusted to their device."""

import base64
import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.robustness.canaries import forms_of_profile, forms_of_text, found_in, found_in_bytes

from umbel import cli
from umbel.device_client.owner import Device
from umbel.shared.release import Release

CANARY = "der Kanarienvogel sänge um zwölf € in der Grube"
OTHER = "ein zweiter Vögelchen-Text ohne Urteil"
MINE = [("a slow film", "yes"), ("a good book", "no"), ("not very good", "no"), (CANARY, "yes")]
PASSPHRASES = {
    "UMBEL_PASSPHRASE": "correct horse battery",
    "UMBEL_NEW_PASSPHRASE": "purple monkey dishwasher",
    "UMBEL_EXPORT_PASSPHRASE": "an export of mine",
}
FORMS = {
    f"{name}: {form}": data
    for name, text in {"text": CANARY, "other": OTHER, **PASSPHRASES}.items()
    for form, data in forms_of_text(text).items()
}


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    """Turns every place where a device might write to places of the test; gives those to search."""
    kept = set(Path("/dev/shm").glob("*")) if Path("/dev/shm").is_dir() else set()
    for name, folder in {"TMPDIR": "tmp", "HOME": "user", "XDG_CACHE_HOME": "cache"}.items():
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name, words in PASSPHRASES.items():
        monkeypatch.setenv(name, words)

    def places() -> list[Path]:
        shared = set(Path("/dev/shm").glob("umbel*")) - kept if Path("/dev/shm").is_dir() else set()
        return [*(tmp_path / name for name in ("home", "tmp", "user", "cache", "work", "exports")), *shared]

    return places


def own_files(folder: Path) -> tuple[Path, Path]:
    """Writes what the owner has in plain form; it is theirs, and lies where nothing is searched."""
    folder.mkdir()
    rows = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in MINE)
    (folder / "mine.jsonl").write_text(rows)
    (folder / "mine.txt").write_text(OTHER + "\n")
    return folder / "mine.jsonl", folder / "mine.txt"


@pytest.mark.parametrize("key", ["file", "passphrase"])
def test_after_every_command_nothing_is_there_in_plain_form(
    key: str,
    embedded_release: Release,
    searched: Callable[[], list[Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    examples, texts = own_files(tmp_path / "mine")
    export = tmp_path / "exports" / "me.umbel"
    export.parent.mkdir()
    forms = dict(FORMS)
    release = str(embedded_release.folder)

    def umbel(*words: str, code: int = 0, tells: bool = False) -> None:
        status = cli.main(["device", *words])
        shown = capsys.readouterr()
        assert status == code, shown.err
        assert found_in(searched(), forms) == [], words
        if not tells:
            assert found_in_bytes((shown.out + shown.err).encode(), forms) == [], words

    umbel("enroll", "--release", release, "--key", key)
    umbel("add", "--examples", str(examples), "--texts", str(texts))
    umbel("add", "--text", CANARY, "--label", "no")
    umbel("onboard")
    umbel("learn", "--max-seconds", "0.001")
    umbel("learn")
    with Device.open(tmp_path / "home", ask=lambda: PASSPHRASES["UMBEL_PASSPHRASE"]) as device:
        own = device.profile()
        assert own is not None
        packed = device._store.profiles()[embedded_release.release_id].packed
    profile = forms_of_profile(own, packed)
    assert {"packed", "packed hex"} <= set(profile)
    assert any(name.endswith("<f4") for name in profile)
    assert found_in_bytes(packed, profile)
    forms |= profile
    umbel("predict", CANARY, tells=True)
    umbel("list", tells=True)
    umbel("status")
    umbel("log", "--json")
    umbel("egress", "--json")
    umbel("export", str(export))
    umbel("update", "--release", release)
    umbel("import", str(export))
    umbel("rekey", "--key", "passphrase")
    os.environ["UMBEL_PASSPHRASE"] = PASSPHRASES["UMBEL_NEW_PASSPHRASE"]
    umbel("rekey", "--key", "file")
    umbel("add", "--text", "\ud800" + CANARY, "--label", "yes", code=2)
    umbel("add", "--text", "more " + CANARY, "--label", "another label", code=2)
    umbel("forget", "--number", "4", "--yes")
    umbel("forget", "--everything", "--yes")


@pytest.mark.parametrize("after_s", [0.4, 0.8, 1.2])
def test_a_learning_that_is_killed_leaves_nothing_in_plain_form(
    after_s: float, embedded_release: Release, searched: Callable[[], list[Path]], tmp_path: Path
) -> None:
    with Device.enroll(tmp_path / "home", embedded_release.folder) as device:
        from umbel.shared.examples import Example

        device.add([Example("owner", text, label) for text, label in MINE], [OTHER])
    command = [sys.executable, "-m", "umbel", "device", "learn", "--anew"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    time.sleep(after_s)
    arguments = Path(f"/proc/{process.pid}/cmdline")
    told = arguments.read_bytes() if arguments.exists() else b""
    process.send_signal(signal.SIGKILL)
    shown, _ = process.communicate()
    assert found_in(searched(), FORMS) == []
    assert found_in_bytes(shown + told, FORMS) == []


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    for name, form in FORMS.items():
        (tmp_path / "file").write_bytes(b"before" + form + b"after")
        assert f"file: {name}" in found_in([tmp_path], FORMS)
    plain = CANARY.encode()
    packed = {
        "zlib": b"x" + zlib.compress(b"a" * 50 + plain),
        "gzip": gzip.compress(plain + b"b" * 50),
        "base64": base64.b64encode(b"12345" + plain + b"67890"),
        "json": json.dumps({"text": CANARY}).encode(),
    }
    for data in packed.values():
        (tmp_path / "file").write_bytes(data)
        assert found_in([tmp_path], FORMS)
    (tmp_path / "file").write_bytes(b"nothing of the kind" * 100)
    assert found_in([tmp_path], FORMS) == []
