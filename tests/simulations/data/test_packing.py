"""Packing: a file's people in its order, a person at a time; what cannot be packed leaves nothing."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from umbel.shared.errors import ConfigError, ExampleError
from umbel.shared.examples import Example, write_examples
from umbel.simulations.data.commands import app
from umbel.simulations.data.packing import pack
from umbel.simulations.data.splits import split_population
from umbel.simulations.homes.table import FILE, MARK, PeopleTable

COUNTS = st.lists(st.integers(1, 5), min_size=1, max_size=6)


def people(counts: list[int]) -> list[Example]:
    return [
        Example(f"user {number}", f"text {row} of {number}", "yes" if row % 2 else "no")
        for number, count in enumerate(counts)
        for row in range(count)
    ]


@settings(deadline=None, max_examples=30)
@given(COUNTS, st.sampled_from([".jsonl", ".csv", ".parquet"]), st.sampled_from([0.0, 0.4]))
def test_everybody_is_there_in_the_files_order_with_some_held_out(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], ending: str, share: float
) -> None:
    folder, rows = tmp_path_factory.mktemp("pack"), people(counts)
    write_examples(folder / f"people{ending}", rows)
    found = pack(folder / f"people{ending}", folder / "table", heldout_share=share, seed=3)
    table = PeopleTable(folder / "table")
    assert (found.people, found.examples, table.people) == (len(counts), len(rows), len(counts))
    held = 0
    for number, count in enumerate(counts):
        support, heldout = (own.examples for own in table.of(number))
        own = [example for example in rows if example.user == f"user {number}"]
        assert sorted(e.text for e in (*support, *heldout)) == sorted(e.text for e in own)
        if share and count > 1:  # as an experiment would split them
            split = split_population(own, seed=3, unseen_share=0, query_share=share, min_examples=2)
            assert (support, heldout) == tuple(map(list, _both(split.seen[f"user {number}"])))
        else:
            assert support == own
        held += len(heldout)
    assert found.heldout == held
    assert found.bytes == sum(path.stat().st_size for path in (folder / "table").iterdir())


def test_long_packing_tells_how_far_it_is(tmp_path: Path) -> None:
    write_examples(tmp_path / "people.jsonl", people([1] * 2100))
    told: list[int] = []
    pack(tmp_path / "people.jsonl", tmp_path / "table", on_people=told.append)
    assert told == [1000, 2000]


def _both(user: object) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    return user.support, user.query  # type: ignore[attr-defined]


def test_what_cannot_be_packed_is_told_at_once_and_an_older_table_stays(tmp_path: Path) -> None:
    file = tmp_path / "people.jsonl"
    write_examples(file, people([1, 1]))
    pack(file, tmp_path / "table")
    with file.open("a") as stream:
        stream.write('{"user": "user 0", "text": "a secret", "label": "no"}\n{"user": "x", "text": "more"}\n')
    with pytest.raises(ExampleError, match="cannot be packed") as error:
        pack(file, tmp_path / "table")
    assert sorted(error.value.problems) == [
        "line 4: label is missing or empty",
        "user user 0: the rows stand apart; each person's must be together",
    ]
    assert "secret" not in str(error.value)
    assert PeopleTable(tmp_path / "table").people == 2
    (tmp_path / "table" / MARK).rename(tmp_path / "table" / "letter.txt")
    write_examples(file, people([1]))
    with pytest.raises(ExampleError, match="holds something else"):
        pack(file, tmp_path / "table")
    with pytest.raises(ConfigError, match="heldout_share is 1"):
        pack(file, tmp_path / "other", heldout_share=1.0)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ExampleError) as error:
        pack(tmp_path / "empty.jsonl", tmp_path / "other")
    assert error.value.problems == ("it holds no examples",)


def test_what_a_table_would_replace_is_only_ever_a_table(tmp_path: Path) -> None:
    """people.json is a common name: somebody's own, and files beside it, are left alone."""
    file, folder = tmp_path / "one.jsonl", tmp_path / "table"
    write_examples(file, people([2]))
    for name, words in (("people.json", '[{"name": "ann"}]'), ("people.json", "{"), ("a.table", "")):
        folder.mkdir()
        (folder / name).write_text(words)
        with pytest.raises(ExampleError, match="holds something else") as error:
            pack(file, folder)
        assert error.value.problems == (name,)
        assert (folder / name).read_text() == words
        (folder / name).unlink()
        folder.rmdir()
    pack(file, folder)
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(ExampleError, match="holds something else"):
        pack(file, folder)
    (folder / "letter.txt").unlink()
    (folder / MARK).write_text("{")  # damaged, but a table's
    assert pack(file, folder).people == 1


@pytest.mark.parametrize(
    "left",
    [[".examples.unfinished"], [FILE, ".people.unfinished"], ["examples.parquet", ".people.unfinished"]],
)
def test_where_an_earlier_one_was_killed_it_is_packed_again(tmp_path: Path, left: list[str]) -> None:
    write_examples(tmp_path / "one.jsonl", people([2]))
    (tmp_path / "table").mkdir()
    for name in left:
        (tmp_path / "table" / name).write_bytes(b"half")
    pack(tmp_path / "one.jsonl", tmp_path / "table")
    assert {path.name for path in (tmp_path / "table").iterdir()} == {MARK, FILE}


def test_a_file_that_is_wrong_all_over_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "wrong.jsonl"
    file.write_text('{"user": "a", "text": "", "label": "b"}\n' * 30_000)
    with pytest.raises(ExampleError, match="cannot be packed") as error:
        pack(file, tmp_path / "table")
    assert 1000 < len(error.value.problems) <= 10_000
    file.write_text("".join(f'{{"user": "{n % 2}", "text": "t", "label": "b"}}\n' for n in range(99)))
    with pytest.raises(ExampleError, match="cannot be packed") as error:
        pack(file, tmp_path / "table")
    assert len(error.value.problems) == 2


def test_a_pipe_that_is_called_parquet_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "people.parquet")
    with pytest.raises(ExampleError, match="Not a plain file"):
        pack(tmp_path / "people.parquet", tmp_path / "table")
    assert not (tmp_path / "table").exists()


def test_the_command_packs_and_says_what(tmp_path: Path) -> None:
    write_examples(tmp_path / "people.csv", people([3, 2]))
    words = ["pack", str(tmp_path / "people.csv"), "--heldout-share", "0.3", "--out", str(tmp_path / "table")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Packed 2 people with 5 examples, 2 of them held out, into ")
    again = CliRunner().invoke(app, [*words, "--json"])
    told = json.loads(again.stdout)
    assert {name: told[name] for name in ("people", "examples", "heldout")} == {
        "people": 2, "examples": 5, "heldout": 2,
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "table").iterdir()} == {MARK, FILE}
