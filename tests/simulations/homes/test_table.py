"""Tables of people: what was written is read, one person at a time; what is no whole table is refused."""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.shared.errors import BusyError, ExampleError
from umbel.shared.examples import Example
from umbel.simulations.homes.person import row_of, row_of_nobody
from umbel.simulations.homes.table import FILE, MARK, PeopleTable
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
Everybody: TypeAlias = list[tuple[list[Example], list[Example]]]
ANN = [Example("ann", "a slow film", "yes"), Example("ann", "a loud film", "no", 3.0)]


@settings(deadline=None, max_examples=40)
@given(PEOPLE, st.booleans())
def test_everybody_gets_their_own_back(
    tmp_path_factory: pytest.TempPathFactory,
    people: Everybody,
    checked: bool,
) -> None:
    folder = tmp_path_factory.mktemp("people")
    with TableWriter(folder) as writer:
        for support, heldout in people:
            writer.add(support, heldout, checked=checked)
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


def test_people_without_examples_have_their_places(tmp_path: Path) -> None:
    with TableWriter(tmp_path) as writer:
        writer.add_nobodies(3)
        writer.add(ANN, ANN[:1])
        writer.add_nobodies(2)
    table = PeopleTable(tmp_path)
    assert (table.people, table.rows) == (6, 3)
    assert [[len(own.examples) for own in table.of(number)] for number in range(6)] == [
        [0, 0], [0, 0], [0, 0], [2, 1], [0, 0], [0, 0],
    ]  # fmt: skip
    assert [row_of_nobody(2, 9), row_of_nobody(0, 0)] == [row_of(2, 9, [], []), row_of(0, 0, (), ())]


def test_tables_of_the_same_people_have_one_digest_and_any_other_text_another_one(tmp_path: Path) -> None:
    """Few enough people that everybody is looked at; also among many, somebody else at the end is told."""
    other = [Example("ann", "a slow film", "yes"), Example("ann", "a loud song", "no", 3.0)]
    everybody: dict[str, Everybody] = {name: [(ANN, []), ([], ANN)] for name in "ab"}
    everybody |= {"c": [(ANN, []), ([], other)]}
    everybody |= {"many": [(ANN, [])] * 500, "more": [*[(ANN, [])] * 499, (other, [])]}
    for name, people in everybody.items():
        write_people(tmp_path / name, people)
    digests = {name: PeopleTable(tmp_path / name).digest() for name in everybody}
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == 4


def test_threads_read_one_table_at_a_time(tmp_path: Path) -> None:
    people: Everybody = [([Example(f"u{n}", f"text {n}", "yes")] * (n % 3 + 1), []) for n in range(300)]
    write_people(tmp_path, people)
    table = PeopleTable(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: table.of(n)[0].examples, range(300)))
    assert found == [own for own, _ in people]


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
    (tmp_path / "file").write_text("")
    with pytest.raises(ExampleError, match="file cannot be written"):
        TableWriter(tmp_path / "file")


def test_a_table_that_is_written_anew_forgets_what_was_kept_of_the_old_people(tmp_path: Path) -> None:
    write_people(tmp_path, [(ANN, [])])
    (tmp_path / "profiles-0123456789ab.table").write_bytes(b"of ann")
    (tmp_path / "examples.parquet").write_bytes(b"of a table that an older umbel wrote")
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


def _changed(*words: str) -> Callable[[Path], None]:
    """Changes the file behind umbel's back."""

    def change(folder: Path) -> None:
        with closing(sqlite3.connect(folder / FILE)) as connection:
            for own in words:
                connection.execute(own)
            connection.commit()
        _marked(bytes=(folder / FILE).stat().st_size)(folder)

    return change


def _no_database(folder: Path) -> None:
    (folder / FILE).write_bytes(b"film " * 1000)
    _marked(bytes=5000)(folder)


def _pipe(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def _marked(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / MARK).write_text(json.dumps(json.loads((folder / MARK).read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (lambda folder: (folder / FILE).unlink(), [f"{FILE} is missing"]),
        (_cut, [f"{FILE} has "]),
        (_no_database, [f"{FILE} cannot be read: SQLITE_NOTADB"]),
        (_changed("DROP TABLE person"), [f"{FILE} cannot be read: SQLITE_ERROR"]),
        (_changed("DELETE FROM person"), [f"{FILE} ends with person None, expected 1"]),
        (_changed("DELETE FROM person WHERE number = 1"), [f"{FILE} ends with person 0, expected 1"]),
        (_changed("UPDATE person SET first = first + 1"), [f"{FILE} cannot be read: it is not as it was"]),
        (_changed("UPDATE person SET first = 'film'"), [f"{FILE} cannot be read: it is not as it was"]),
        (_changed("UPDATE person SET examples = 7"), [f"{FILE} cannot be read: it is not as it was"]),
        (_marked(people=1), [f"{FILE} ends with person 1, expected 0"]),
        (_marked(examples=7), [f"{FILE} has 3 examples, expected 7"]),
        (
            _marked(schema="umbel.people/9", more=1),
            [f"{MARK}: schema is umbel.people/9, expected umbel.people/3"],
        ),
        (
            _marked(schema="umbel.people/2", sha256="0"),
            [f"{MARK}: schema is umbel.people/2, expected umbel.people/3"],
        ),
        (_pipe(MARK), [f"{MARK}: OSError"]),
        (_pipe(FILE), [f"{FILE} cannot be read: Not a plain file"]),
        (_marked(people=0, examples=-1), [f"{MARK}: people is 0", f"{MARK}: examples is -1"]),
        (_marked(more=1), [f"{MARK}: unknown key 'more'"]),
        (lambda folder: (folder / MARK).write_text("[1]"), [f"{MARK}: it is no object"]),
        (lambda folder: (folder / MARK).write_text("{"), [f"{MARK}: JSONDecodeError"]),
    ],
)
def test_what_is_no_whole_table_is_refused_with_all_that_is_wrong(
    tmp_path: Path, damage: Callable[[Path], object], problems: list[str]
) -> None:
    write_people(tmp_path, [(ANN, []), (ANN[1:], [])])
    damage(tmp_path)
    with pytest.raises(ExampleError, match="no whole table of people") as error:
        PeopleTable(tmp_path)
    assert len(error.value.problems) == len(problems)
    assert all(found.startswith(p) for found, p in zip(error.value.problems, problems, strict=True))
    assert "film" not in str(error.value)
    assert "umbel data pack" in str(error.value.hint)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("UPDATE person SET examples = replace(examples, 'bob', 'eve')", "it is not as it was written"),
        ("UPDATE person SET checksum = checksum + 1 WHERE number = 1", "it is not as it was written"),
        ("DELETE FROM person WHERE number = 1", "its row is missing"),
        (
            "UPDATE person SET examples = (SELECT examples FROM person WHERE number = 0) WHERE number = 1",
            "it is not as it was written",
        ),
    ],
)
def test_a_person_whose_row_is_another_is_told_and_the_others_are_read(
    tmp_path: Path, damage: str, told: str
) -> None:
    people: Everybody = [
        ([Example(name, f"a secret of {name}", "yes")], []) for name in ("ann", "bob", "cem")
    ]
    write_people(tmp_path, people)
    _changed(damage)(tmp_path)
    table = PeopleTable(tmp_path)
    assert [table.of(number)[0].examples for number in (0, 2)] == [people[0][0], people[2][0]]
    with pytest.raises(ExampleError, match=r"person 000001 of .* cannot be read") as error:
        table.of(1)
    assert error.value.problems == (told,)
    assert "secret" not in str(error.value)


def test_a_bit_flipped_anywhere_is_refused_or_changes_nobody(tmp_path: Path) -> None:
    """Whatever it is a part of: people.json, SQLite's own pages, a person's place, or their examples."""
    people = [([Example(f"u{n}", f"text {n} " + "of many" * 9, "yes")] * (n % 3), ANN[:1]) for n in range(60)]
    write_people(tmp_path, people)
    refused = 0
    for name in (MARK, FILE):
        whole = (tmp_path / name).read_bytes()
        for place in range(0, len(whole), 7):
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
