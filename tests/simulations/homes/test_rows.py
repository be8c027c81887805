"""Files of rows: what was written is read, what was not written whole is noticed, another file is refused."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.simulations.homes.rows import RowFile, TornRowError, WrongFileError

SUBJECT = "ab" * 32


def made(folder: Path, rows: int = 5, row_bytes: int = 6, subject: str = SUBJECT) -> RowFile:
    return RowFile(folder / "rows.table", subject, rows, row_bytes)


@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 39), st.binary(min_size=9, max_size=9), st.binary(max_size=3))),
)
def test_each_row_holds_what_was_written_last_and_the_others_nothing(
    tmp_path_factory: pytest.TempPathFactory, rows: int, row_bytes: int,
    written: list[tuple[int, bytes, bytes]],
) -> None:  # fmt: skip
    """Against a dict. Every second write goes through a file that was opened anew."""
    folder, expected = tmp_path_factory.mktemp("rows"), dict[int, tuple[bytes, bytes]]()
    file = made(folder, rows, row_bytes)
    for number, (row, data, bound) in enumerate(written):
        if row >= rows:
            with pytest.raises(IndexError):
                file.write(row, data[:row_bytes], bound)
            continue
        file = made(folder, rows, row_bytes) if number % 2 else file
        file.write(row, data[:row_bytes], bound)
        expected[row] = data[:row_bytes], bound
    again = made(folder, rows, row_bytes)
    for row in range(rows):
        kept = expected.get(row)
        assert again.read(row, kept[1] if kept else b"") == (kept[0] if kept else None)
    mapped = again.mapped()
    assert [row for row in range(rows) if mapped["sum"][row]] == sorted(expected)
    assert all(mapped["data"][row].tobytes() == data for row, (data, _) in expected.items())


@given(st.data())
def test_a_row_of_which_any_part_is_missing_or_of_an_older_one_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    file = made(folder)
    old, new = (data.draw(st.none() | st.binary(min_size=6, max_size=6)) for _ in range(2))
    new = new or b"\1" * 6
    before = (folder / "rows.table").read_bytes()
    if old is not None:
        file.write(2, old)
        before = (folder / "rows.table").read_bytes()
    file.write(2, new)
    after = (folder / "rows.table").read_bytes()
    cut = data.draw(st.integers(0, len(after)))
    for torn in (after[:cut] + before[cut:], before[:cut] + after[cut:]):
        (folder / "rows.table").write_bytes(torn)
        if torn in (before, after):
            assert made(folder).read(2) == (old if torn == before else new)
        else:
            with pytest.raises(TornRowError, match="row 2 was not written whole"):
                made(folder).read(2)
        assert [made(folder).read(row) for row in (0, 1, 3, 4)] == [None] * 4


def test_a_row_is_read_only_by_whoever_names_what_it_is_bound_to(tmp_path: Path) -> None:
    file = made(tmp_path)
    file.write(1, b"abcdef", b"mine")
    assert file.read(1, b"mine") == b"abcdef"
    for other in (b"", b"theirs"):
        with pytest.raises(TornRowError):
            file.read(1, other)
    with pytest.raises(ValueError, match="a row has 6 bytes, not 3"):
        file.write(1, b"abc")


def test_a_row_that_was_copied_elsewhere_is_no_row_there(tmp_path: Path) -> None:
    file = made(tmp_path)
    file.write(1, b"abcdef")
    raw = bytearray((tmp_path / "rows.table").read_bytes())
    raw[64 + 20 : 64 + 30] = raw[64 + 10 : 64 + 20]
    (tmp_path / "rows.table").write_bytes(raw)
    with pytest.raises(TornRowError):
        made(tmp_path).read(2)


def test_a_million_rows_take_the_room_of_those_that_were_written(tmp_path: Path) -> None:
    file = made(tmp_path, 1_000_000, 300)
    file.write(999_999, b"x" * 300)
    found = os.stat(file.path)
    assert found.st_size == 64 + 1_000_000 * 304
    assert found.st_blocks * 512 < 100_000
    assert found.st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"subject": "cd" * 32}, "is of abababababab, expected cdcdcdcdcdcd"),
        ({"rows": 7}, "has 5 rows of 6 bytes, expected 7 of 6"),
        ({"row_bytes": 7}, "has 5 rows of 6 bytes, expected 5 of 7"),
    ],
)
def test_rows_of_something_else_are_refused(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    made(tmp_path)
    with pytest.raises(WrongFileError, match=problem):
        made(tmp_path, **change)  # type: ignore[arg-type]


def test_damaged_files_are_refused_and_one_that_was_not_begun_is_made(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / "rows.table"
    whole = path.read_bytes()
    for broken, problem in (
        (b"something else" * 9, "is no file of rows"),
        (whole[:20], "is no file of rows"),
        (whole[:-1], "is cut off"),
        (whole[:10] + b"\7" + whole[11:], "is damaged"),
    ):
        path.write_bytes(broken)
        with pytest.raises(WrongFileError, match=problem):
            made(tmp_path)
    path.write_bytes(b"")
    assert made(tmp_path).read(4) is None
    assert path.read_bytes() == whole
