"""Files are wholly there or not at all, and as private as was asked."""

import errno
import fcntl
import hashlib
import os
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umbel.shared import files
from umbel.shared.errors import BusyError
from umbel.shared.files import (
    atomic_write,
    clear_unfinished,
    first_bytes,
    plain_bytes,
    plain_file,
    sha256_bytes,
    sha256_file,
    sole_use,
)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fail(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: object, **__: object) -> Any:
        raise error

    return raise_it


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.bin"
    for content in (b"first", b"", b"\0second\n"):
        atomic_write(path, content)
        assert path.read_bytes() == content
        assert os.listdir(path.parent) == ["file.bin"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_mode_is_the_one_asked_for_whatever_was_there(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    old_mask = os.umask(0o077)
    try:
        atomic_write(path, b"new", mode=mode)
        assert mode_of(path) == mode
        path.chmod(0o666)
        atomic_write(path, b"newer", mode=mode)
    finally:
        os.umask(old_mask)
    assert mode_of(path) == mode


def test_a_private_file_is_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even under its temporary name: its mode when the first byte is written is 0600."""
    modes = []
    real = os.fsync

    def look(handle: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        real(handle)

    monkeypatch.setattr(os, "fsync", look)
    atomic_write(tmp_path / "private", b"secret", mode=0o600)
    assert modes[0] == 0o600


@pytest.mark.parametrize("step", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, step, fail(error))
    with pytest.raises(type(error)):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic_write(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_no_plain_file_is_not_replaced(tmp_path: Path) -> None:
    """As root, a rename would put a file where /dev/null was."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        with pytest.raises(OSError, match="Not a plain file") as caught:
            atomic_write(path, b"new")
        assert caught.value.filename == str(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_full_disk_is_told_with_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", fail(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left") as caught:
        atomic_write(tmp_path / "file", b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))


def test_a_folder_is_used_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with sole_use(folder):
        with pytest.raises(BusyError, match="another umbel is at work in"), sole_use(folder):
            pass
        with sole_use(tmp_path / "other"):
            pass
    with pytest.raises(KeyError), sole_use(folder):
        raise KeyError
    with sole_use(folder):
        assert os.listdir(folder) == []


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    def work(folder: Path, content: bytes) -> None:
        with sole_use(folder):
            if content:
                atomic_write(folder / "file", content)
            raise KeyError

    (tmp_path / "there before").mkdir()
    for name, content in (("empty", b""), ("kept", b"half of the work"), ("there before", b"")):
        with pytest.raises(KeyError):
            work(tmp_path / name, content)
    assert sorted(os.listdir(tmp_path)) == ["kept", "there before"]


def test_a_disk_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", fail(OSError(errno.ENOLCK, "No locks available")))
    with sole_use(tmp_path), sole_use(tmp_path):
        assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        atomic_write(tmp_path / "file" / "inner", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", fail(PermissionError(13, "Permission denied")))
    files.sync_folder(tmp_path)


def test_content_is_durable_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that survives a power loss: sync the content, rename it, sync the folder."""
    order: list[str] = []
    for step in ("fsync", "replace"):
        real = getattr(os, step)

        def note(*arguments: Any, _real: Callable[..., Any] = real, _step: str = step) -> None:
            order.append(_step)
            _real(*arguments)

        monkeypatch.setattr(os, step, note)
    atomic_write(tmp_path / "file", b"new")
    assert order == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_around_the_piece_that_is_read_at_once(tmp_path: Path, size: int) -> None:
    content = b"umbel" * (size // 5) + b"x" * (size % 5)
    path = tmp_path / "file"
    path.write_bytes(content)
    assert sha256_file(path) == sha256_bytes(content) == hashlib.sha256(content).hexdigest()


def test_sha256_of_nothing_is_the_well_known_one() -> None:
    # printf '' | sha256sum
    assert sha256_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_sha256_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sha256_file(tmp_path / "nowhere")


def test_what_a_killed_writer_left_is_cleared_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    left, other = tmp_path / ".mine.abcdefgh.unfinished", tmp_path / ".yours.abcdefgh.unfinished"
    own = tmp_path / ".mine.original"
    for path in (left, other, own):
        path.write_bytes(b"half")
    handle, busy = files._unfinished(tmp_path / "mine")
    atomic_write(tmp_path / "mine", b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "mine", other, own, Path(busy)])
    os.close(handle)
    clear_unfinished(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "mine", own])


def test_a_writer_whose_new_file_is_cleared_away_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[int] = []

    def hold(handle: int, held: Callable[[int], bool | None] = files._hold) -> bool | None:
        if not cleared:
            cleared.append(handle)
            next(tmp_path.glob(".mine.*")).unlink()
        return held(handle)

    monkeypatch.setattr(files, "_hold", hold)
    atomic_write(tmp_path / "mine", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert cleared


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (plain_file, sha256_file, lambda path: plain_bytes(path, 9)):
        with pytest.raises(OSError, match="Not a plain file"):
            read(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        plain_file(tmp_path)
    with pytest.raises(OSError, match="Not a plain file"):
        plain_file(Path("/dev/zero"))
    assert first_bytes(tmp_path / "pipe", 4) is None


def test_reading_a_small_file_takes_little_memory_however_much_it_might_be(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"12345")
    tracemalloc.start()
    try:
        assert plain_bytes(tmp_path / "mine", 1 << 30) == b"12345"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert plain_bytes(tmp_path / "mine", 5) == b"12345"
    assert plain_bytes(tmp_path / "mine", 3) == b"1234"
    assert plain_bytes(tmp_path / "mine", 0) == b"1"
