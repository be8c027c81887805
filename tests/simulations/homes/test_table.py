"""Tables of people: what was written is read, one person at a time; what is no whole table is refused."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.shared.errors import BusyError, ExampleError
from umbel.shared.examples import Example
from umbel.simulations.homes import writing
from umbel.simulations.homes.table import COLUMNS, FILE, MARK, PeopleTable, described
from umbel.simulations.homes.writing import TableWriter, write_people

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    str.strip
)
NAMES = st.sampled_from(["yes", "no", "vielleicht, später", "可能", "1"])
EXAMPLES = st.lists(
    st.builds(Example, NAMES, TEXTS, NAMES, st.none() | st.floats(allow_nan=False, allow_infinity=False)),
    max_size=4,
)
PEOPLE = st.lists(st.tuples(EXAMPLES, EXAMPLES), min_size=1, max_size=8)
ANN = [Example("ann", "a slow film", "yes"), Example("ann", "a loud film", "no", 3.0)]


@settings(deadline=None, max_examples=40)
@given(PEOPLE, st.integers(1, 5))
def test_everybody_gets_their_own_back_whatever_a_row_group_holds(
    tmp_path_factory: pytest.TempPathFactory,
    people: list[tuple[list[Example], list[Example]]],
    group_rows: int,
) -> None:
    folder = tmp_path_factory.mktemp("people")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "GROUP_ROWS", group_rows)
        write_people(folder, people)
    table = PeopleTable(folder)
    assert (table.people, table.rows) == (len(people), sum(len(a) + len(b) for a, b in people))
    seen: list[int] = []
    for number, (support, heldout) in enumerate(people):
        found = table.of(number)
        assert [own.examples for own in found] == [support, heldout]
        seen += [*found[0].rows.tolist(), *found[1].rows.tolist()]
    assert seen == list(range(table.rows))
    assert {path.name for path in folder.iterdir()} == {MARK, FILE}
    for beyond in (-1, len(people)):
        with pytest.raises(ExampleError, match=f"there is no person {beyond} in"):
            table.of(beyond)


def test_people_in_batches_and_across_row_groups_are_as_people_one_by_one(tmp_path: Path) -> None:
    """Row groups of 4,096 rows, cut anywhere: person 1365 has rows in two of them."""
    count, each = 2000, 3
    columns = {
        "person": pa.array([row // each for row in range(count * each)], pa.int32()),
        "user": pa.array([f"u{row // each}" for row in range(count * each)]),
        "text": pa.array([f"text {row}" for row in range(count * each)]),
        "label": pa.array(["yes"] * count * each),
        "time": pa.nulls(count * each, pa.float64()),
        "heldout": pa.array([row % each == 2 for row in range(count * each)]),
    }
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    with TableWriter(tmp_path) as writer:
        writer.add_batch(batch, count + 5)  # the last five have nothing
        writer.add(ANN, ANN[:1])
    table = PeopleTable(tmp_path)
    assert pq.ParquetFile(tmp_path / FILE).num_row_groups > 2
    for number in (0, 1365, 1999):
        support, heldout = table.of(number)
        texts = [f"text {row}" for row in range(3 * number, 3 * number + 3)]
        assert [own.text for own in (*support.examples, *heldout.examples)] == texts
        assert [*support.rows, *heldout.rows] == [3 * number, 3 * number + 1, 3 * number + 2]
    assert [own.examples for own in table.of(2003)] == [[], []]
    assert [own.examples for own in table.of(count + 5)] == [ANN, ANN[:1]]


def test_a_table_that_another_program_has_sorted_is_read(tmp_path: Path) -> None:
    write_people(tmp_path, [(ANN, []), ([], []), (ANN[1:], ANN[:1])])
    rows = pq.read_table(tmp_path / FILE)
    rows = rows.select(list(reversed(rows.column_names)))
    with pq.ParquetWriter(tmp_path / FILE, rows.schema) as writer:
        for part in (rows[:0], rows[:1], rows[1:1], rows[1:]):  # some row groups have no rows
            writer.write_table(part)
    (tmp_path / MARK).write_bytes(described(3, 4, tmp_path / FILE))
    table = PeopleTable(tmp_path)
    assert [[own.examples for own in table.of(number)] for number in range(3)] == [
        [ANN, []],
        [[], []],
        [ANN[1:], ANN[:1]],
    ]


def test_what_cannot_be_used_is_told_for_everybody_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="was not written") as error:
        write_people(tmp_path, [(ANN, [Example("ann", " ", "no")]), ([Example("bob", "a\0", "")], [])])
    assert list(error.value.problems) == [
        "person 000000, example 3: text is missing or empty",
        "person 000001, example 1: text holds a NUL character",
        "person 000001, example 1: label is missing or empty",
    ]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ExampleError, match="there are 0 people"):
        write_people(tmp_path, [])
    batch = pa.RecordBatch.from_pylist([{"person": 1}], schema=pa.schema([("person", pa.int32())]))
    with (
        pytest.raises(ExampleError, match="expected rows of people 0 to 1, sorted"),
        TableWriter(tmp_path) as w,
    ):
        w.add_batch(batch, 2)


def test_a_table_that_is_written_anew_forgets_what_was_kept_of_the_old_people(tmp_path: Path) -> None:
    write_people(tmp_path, [(ANN, [])])
    (tmp_path / "profiles-0123456789ab.table").write_bytes(b"of ann")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        write_people(tmp_path, interrupted())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write_people(tmp_path, [(ANN[1:], [])])
    assert {path.name for path in tmp_path.iterdir()} == {MARK, FILE}
    assert PeopleTable(tmp_path).of(0)[0].examples == ANN[1:]
    (tmp_path / MARK).unlink()
    with pytest.raises(ExampleError, match="no whole table") as error:
        PeopleTable(tmp_path)
    assert error.value.problems == (f"{MARK}: it is missing: the table was not written to its end",)


def interrupted() -> Iterator[tuple[list[Example], list[Example]]]:
    yield ANN, []
    raise KeyboardInterrupt


def _cut(folder: Path) -> None:
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[:-9])


def _other_rows(folder: Path) -> None:
    """Puts three people in another order, and one that is not there, into the file."""
    rows = [
        {"person": person, "user": "u", "text": "t", "label": "l", "time": None, "heldout": False}
        for person in (5, 4, 9)
    ]
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    _replaced(folder, pa.Table.from_pylist(rows, schema=schema))


def _replaced(folder: Path, rows: pa.Table, **more: object) -> None:
    pq.write_table(rows, folder / FILE, row_group_size=1, **more)
    (folder / MARK).write_bytes(described(1, 2, folder / FILE))


def _no_label(folder: Path) -> None:
    rows = pq.read_table(folder / FILE).drop_columns(["label"])
    _replaced(folder, rows.set_column(0, "person", rows["person"].cast(pa.string())))


def _no_statistics(folder: Path) -> None:
    _replaced(folder, pq.read_table(folder / FILE), write_statistics=False)


def _pipe(folder: Path) -> None:
    (folder / MARK).unlink()
    os.mkfifo(folder / MARK)


def _marked(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / MARK).write_text(json.dumps(json.loads((folder / MARK).read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (lambda folder: (folder / FILE).unlink(), [f"{FILE} is missing"]),
        (_cut, [f"{FILE} has "]),
        (
            _other_rows,
            [f"{FILE} has 3 rows, expected 2", f"{FILE} has people beyond", f"{FILE} is not sorted"],
        ),
        (
            _no_label,
            [
                f"{FILE}: column person is string, expected int32",
                f"{FILE}: column label is missing, expected",
            ],
        ),
        (
            _no_statistics,
            [f"{FILE}: row group 0 does not say whose", f"{FILE}: row group 1 does not say whose"],
        ),
        (
            _marked(schema="umbel.people/9", more=1),
            [f"{MARK}: schema is umbel.people/9, expected umbel.people/2"],
        ),
        (_marked(people=2), [f"{FILE} is not the file that {MARK} was written for"]),
        (_pipe, [f"{MARK}: OSError"]),
        (_marked(people=0, examples=-1), [f"{MARK}: people is 0", f"{MARK}: examples is -1"]),
        (_marked(more=1), [f"{MARK}: unknown key 'more'"]),
        (lambda folder: (folder / MARK).write_text("[1]"), [f"{MARK}: it is no object"]),
        (lambda folder: (folder / MARK).write_text("{"), [f"{MARK}: JSONDecodeError"]),
    ],
)
def test_what_is_no_whole_table_is_refused_with_all_that_is_wrong(
    tmp_path: Path, damage: Callable[[Path], object], problems: list[str]
) -> None:
    write_people(tmp_path, [(ANN, [])])
    damage(tmp_path)
    with pytest.raises(ExampleError, match="no whole table of people") as error:
        PeopleTable(tmp_path)
    assert len(error.value.problems) == len(problems)
    assert all(found.startswith(p) for found, p in zip(error.value.problems, problems, strict=True))
    assert "film" not in str(error.value)


def test_a_bit_flipped_anywhere_is_refused_or_changes_nobody(tmp_path: Path) -> None:
    """The footer has no checksum of its own, and a damaged one may end the process within Arrow."""
    people = [([Example(f"u{n}", f"text {n}", "yes")] * (n % 3), ANN[:1]) for n in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "GROUP_ROWS", 3)
        write_people(tmp_path, people)
    refused = 0
    for name in (MARK, FILE):
        whole = (tmp_path / name).read_bytes()
        for place in range(0, len(whole), 3):
            changed = bytearray(whole)
            changed[place] ^= 1 << (place % 8)
            (tmp_path / name).write_bytes(changed)
            try:
                table = PeopleTable(tmp_path)
                found = [tuple(own.examples for own in table.of(n)) for n in range(table.people)]
            except ExampleError:
                refused += 1
            else:
                assert found == people, (name, place)
        (tmp_path / name).write_bytes(whole)
    assert refused > 300


def test_two_writers_of_one_table_keep_out_of_each_others_way(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "table") as first:
        first.add(ANN)
        with pytest.raises(BusyError, match="another umbel is at work in"):
            write_people(tmp_path / "table", [([], [])])
    assert PeopleTable(tmp_path / "table").of(0)[0].examples == ANN
    write_people(tmp_path / "table", [(ANN[:1], [])])
    assert PeopleTable(tmp_path / "table").of(0)[0].examples == ANN[:1]


def test_a_folder_that_was_made_in_vain_is_removed_and_one_that_was_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(ExampleError, match="there are 0 people"):
            write_people(tmp_path / name, [])
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_rows_that_are_damaged_on_the_disk_are_noticed(tmp_path: Path) -> None:
    """Each page of the file has a checksum: a byte of the texts is another."""
    texts = [Example("ann", f"{number} " + "abcdefgh" * 40, "yes") for number in range(3)]
    write_people(tmp_path, [(texts, [])])
    raw = bytearray((tmp_path / FILE).read_bytes())
    raw[raw.index(b"abcdefgh") + 1] ^= 255
    (tmp_path / FILE).write_bytes(raw)
    with pytest.raises(ExampleError, match="cannot be read") as error:
        PeopleTable(tmp_path).of(0)
    assert "abcdefgh" not in str(error.value)
