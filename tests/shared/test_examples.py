"""Examples: what is read is what was written; all problems of a bad file are told, without its texts."""

import importlib
import json
import math
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from umbel.shared.checks import has_controls
from umbel.shared.errors import ExampleError, MissingExtraError
from umbel.shared.examples import MAX_TEXT_CHARACTERS, Example, labels_of, read_examples, write_examples

# A device reads Parquet only where pyarrow is installed besides its own extra.
SUFFIXES = [".jsonl", ".json-lines", ".csv", pytest.param(".parquet", marks=pytest.mark.full)]

_words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
_texts = _words.filter(str.strip)
_letters = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]).filter(
    lambda character: not has_controls(character)  # such as those that turn the direction of writing
)
_names = st.text(_letters, min_size=1, max_size=30).filter(str.strip)
_times = st.none() | st.floats(allow_nan=False, allow_infinity=False)
_examples = st.builds(Example, _names, _texts, _names, _times)


def problems_of(path: Path, **options: Any) -> list[str]:
    with pytest.raises(ExampleError) as caught:
        read_examples(path, **options)
    return list(caught.value.problems)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(examples=st.lists(_examples, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_is_exact(tmp_path: Path, suffix: str, examples: list[Example]) -> None:
    path = tmp_path / f"examples{suffix}"
    write_examples(path, examples)
    assert read_examples(path) == examples


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_of_awkward_texts(tmp_path: Path, suffix: str) -> None:
    texts = [
        "a\rb",
        "a\r\nb\n",
        ' "quoted", text ',
        "\ufeffmark",
        "\u2028 line",
        "null",
        "1",
        "=1+1",
        "\x1cend",
        "'",
        "\\",
    ]
    examples = [Example("ann", text, "yes", 0.1) for text in texts]
    path = tmp_path / f"examples{suffix}"
    write_examples(path, examples)
    assert read_examples(path) == examples


def test_repr_hides_the_text_and_the_label() -> None:
    assert repr(Example("ann", "my secret", "private", 3.0)) == "Example(user='ann', time=3.0)"


def test_scalars_become_canonical_text(tmp_path: Path) -> None:
    cells = ["1", "1.0", "4.5", "true", "false", '"yes"', "-2"]
    rows = "".join(f'{{"user": {i}, "text": "a text", "label": {cell}}}\n' for i, cell in enumerate(cells))
    examples = read_examples(write(tmp_path, "a.jsonl", rows))
    assert [e.label for e in examples] == ["1", "1", "4.5", "true", "false", "yes", "-2"]
    assert [e.user for e in examples] == ["0", "1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '\ufeff{"text": "some text", "label": 1, "time": 3, "more": []}\r\n\n'),
        ("a.csv", "\ufefflabel, text ,time,more\r\n1,some text,3,x\r\n\r\n"),
        ("a.CSV", "user,text,label,time\n ,some text,1,3.0\n"),
    ],
)
def test_mark_blank_lines_other_columns_and_the_default_user(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, content)
    assert read_examples(path, default_user="me") == [Example("me", "some text", "1", 3.0)]


def test_default_user_keeps_users_that_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "user,text,label\nann,some text,1\n,some text,1\n")
    assert [e.user for e in read_examples(path, default_user="me")] == ["ann", "me"]


BAD_JSONL = [
    ("[1]", "not a JSON object"),
    ('{"user": "ann", "text": "private words"', "malformed JSON at column 40"),
    (
        '{"user": "ann", "text": "private words", "text": "b", "label": "x"}',
        "malformed JSON: a key is given twice",
    ),
    ('{"user": "ann", "text": " \\t", "label": "yes"}', "text is missing or empty"),
    ('{"user": "ann", "text": "private words"}', "label is missing or empty"),
    ('{"text": "private words", "label": "yes"}', "user is missing or empty"),
    ('{"user": "ann", "text": "private words", "label": "private"}', "the label is not one of yes, no"),
    ('{"user": "ann", "text": ["private"], "label": "yes"}', "text is of a wrong type (list)"),
    ('{"user": "ann", "text": "private", "label": {"a": 1}}', "label is of a wrong type (dict)"),
    ('{"user": "ann", "text": "private", "label": NaN}', "label is of a wrong type (float)"),
    ('{"user": "ann", "text": "priv\\u0000ate", "label": "yes"}', "text holds a NUL character"),
    ('{"user": "ann", "text": "priv\\ud800ate", "label": "yes"}', "text holds half of a surrogate pair"),
    ('{"user": "ann", "text": "private", "label": "yes", "time": "1"}', "time is not a finite number"),
    ('{"user": "ann", "text": "private", "label": "yes", "time": true}', "time is not a finite number"),
    ('{"user": "ann", "text": "private", "label": "yes", "time": 1e999}', "time is not a finite number"),
    (
        f'{{"user": "ann", "text": "private", "label": "yes", "time": 1{"0" * 400}}}',
        "time is not a finite number",
    ),
    (
        f'{{"user": "ann", "text": "private", "label": 1{"0" * 5000}}}',
        "malformed JSON: a key is given twice, or a num",
    ),
    ("[" * 100_000, "malformed JSON: nested too deeply"),
    (
        f'{{"user": "ann", "text": "{"private" * 3000}", "label": "yes"}}',
        "text is 21,000 characters long; at most 20,000 are allowed",
    ),
    (
        f'{{"user": "{"a" * 201}", "text": "private", "label": "yes"}}',
        "user is 201 characters long; at most 200",
    ),
    ('"' + "private" * 200_000, "longer than 1,048,576 bytes"),
]


def test_every_problem_of_a_jsonl_file_is_told_at_once_and_nothing_private(tmp_path: Path) -> None:
    good = '{"user": "ann", "text": "private words", "label": "yes"}'
    path = write(tmp_path, "a.jsonl", "\n".join([good, *(line for line, _ in BAD_JSONL), good]))
    problems = problems_of(path, labels=["yes", "no"])
    assert len(problems) == len(BAD_JSONL)
    for number, (problem, (_, expected)) in enumerate(zip(problems, BAD_JSONL, strict=True), 2):
        assert problem.startswith(f"line {number}: {expected}")
        assert "priv" not in problem


def test_two_problems_of_one_line(tmp_path: Path) -> None:
    assert problems_of(write(tmp_path, "a.jsonl", "{}"), default_user="me") == [
        "line 1: text is missing or empty",
        "line 1: label is missing or empty",
    ]


def test_lines_that_are_not_utf8(tmp_path: Path) -> None:
    rows = [b'{"user": "a", "text": "caf\xe9", "label": 1}', b"\xff\xfe"]
    assert problems_of(write(tmp_path, "a.jsonl", b"\n".join(rows))) == [
        "line 1: not UTF-8 (byte 27 of the line)",
        "line 2: not UTF-8 (byte 1 of the line)",
    ]
    path = write(tmp_path, "a.csv", b"user,text,label\na,caf\xe9,1\na,,1\n")
    assert problems_of(path) == ["line 2: not UTF-8 (byte 6 of the line)", "line 3: text is missing or empty"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", pytest.param("a.parquet", marks=pytest.mark.full)])
def test_empty_file(tmp_path: Path, name: str) -> None:
    assert len(problems_of(write(tmp_path, name, ""))) == 1


def test_header_without_rows(tmp_path: Path) -> None:
    assert problems_of(write(tmp_path, "a.csv", "user,text,label\n")) == [
        "line 1: the file holds no examples"
    ]


def test_headers(tmp_path: Path) -> None:
    assert problems_of(write(tmp_path, "a.csv", "user,my private text,text,text\n1,2,3,4\n")) == [
        "line 1: missing column label",
        "line 1: column 4 has the same name as column 3",
    ]
    assert problems_of(write(tmp_path, "b.csv", "a private text,yes\n")) == [
        "line 1: missing columns user, text, label"
    ]


def test_csv_problems_have_the_lines_of_an_editor(tmp_path: Path) -> None:
    rows = 'user,text,label,time\nann,"two\nlines",yes,\nann,b\nuser,text,label,time\nann,c,yes,soon\n'
    rows += 'ann,"private'
    assert problems_of(write(tmp_path, "a.csv", rows)) == [
        "line 4: 2 cells, but the header has 4",
        "line 5: the header is repeated",
        "line 6: time is not a finite number",
        "line 7: malformed CSV (a quote that is not closed or not doubled); not read further",
    ]


def test_csv_takes_the_longest_text_and_no_longer_one(tmp_path: Path) -> None:
    def rows(n: int) -> str:
        return f"user,text,label\nann,{'é' * n},1\n"

    assert len(read_examples(write(tmp_path, "a.csv", rows(MAX_TEXT_CHARACTERS)))) == 1
    assert "20,001 characters" in problems_of(write(tmp_path, "b.csv", rows(MAX_TEXT_CHARACTERS + 1)))[0]
    assert "malformed CSV" in problems_of(write(tmp_path, "c.csv", rows(200_000)))[0]


@pytest.mark.full
def test_parquet_with_other_types(tmp_path: Path) -> None:
    pa = importlib.import_module("pyarrow")
    table = pa.table({"user": [1, 2], "text": ["a", None], "label": [True, None], "time": [1, None]})
    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    assert problems_of(tmp_path / "a.parquet") == [
        "row 2: text is missing or empty",
        "row 2: label is missing or empty",
    ]
    importlib.import_module("pyarrow.parquet").write_table(table.slice(0, 1), tmp_path / "b.parquet")
    assert read_examples(tmp_path / "b.parquet") == [Example("1", "a", "true", 1.0)]


@pytest.mark.full
def test_parquet_without_its_columns(tmp_path: Path) -> None:
    table = importlib.import_module("pyarrow").table({"text": ["a"]})
    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    assert problems_of(tmp_path / "a.parquet") == ["schema: missing columns user, label"]


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pip install pyarrow"):
        read_examples(write(tmp_path, "a.parquet", ""))
    with pytest.raises(MissingExtraError, match="pip install pyarrow"):
        write_examples(tmp_path / "b.parquet", [Example("ann", "a", "1")])
    assert not (tmp_path / "b.parquet").exists()


@pytest.mark.full
def test_reading_what_is_no_file(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.csv", "none.parquet"):
        with pytest.raises(ExampleError, match=r"Cannot read .*none.*No such file"):
            read_examples(tmp_path / name)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ExampleError, match="Is a directory"):
        read_examples(tmp_path / "folder.csv")
    with pytest.raises(
        ExampleError, match=r"ending '.txt', which is none of .jsonl, .json-lines, .csv, .parquet"
    ):
        read_examples(tmp_path / "a.txt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_writing_something_bad_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    old = [Example("ann", "a", "1")]
    write_examples(path, old)
    with pytest.raises(ExampleError, match="example 2: text holds a NUL") as caught:
        write_examples(path, [*old, Example("ann", "private\0", "1"), Example("ann", "", "1", math.nan)])
    assert len(caught.value.problems) == 3
    assert "private" not in str(caught.value)
    with pytest.raises(ExampleError, match="no examples"):
        write_examples(path, [])
    assert read_examples(path) == old
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_writing_where_a_folder_is(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(ExampleError, match="Cannot write"):
        write_examples(tmp_path / "a.csv", [Example("ann", "a", "1")])


def test_reading_streams(tmp_path: Path) -> None:
    """A file of 40 MB is read within a few MB: no more than one line of it is held at a time."""
    path = tmp_path / "a.jsonl"
    line = json.dumps({"user": "a", "text": " " * 400_000, "label": "c"}) + "\n"
    with path.open("w") as stream:
        stream.writelines(line for _ in range(100))
    tracemalloc.start()
    try:
        assert len(problems_of(path)) == 100
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_labels_are_sorted_by_value_where_all_are_numbers() -> None:
    def of(*labels: str) -> tuple[str, ...]:
        return labels_of(Example("ann", "a", label) for label in labels)

    assert of("10", "2", "2", "-1", "4.5") == ("-1", "2", "4.5", "10")
    assert of("10", "2", "nan") == ("10", "2", "nan")
    assert of("yes", "no") == ("no", "yes")
    assert of() == ()


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "tab\there", "\u2028", "\x85next"])
@pytest.mark.parametrize("column", ["user", "label"])
def test_names_do_not_steer_a_terminal(tmp_path: Path, column: str, name: str) -> None:
    row = {"user": "ann", "text": "two\nlines are fine", "label": "yes", column: f"a{name}b"}
    path = write(tmp_path, "examples.jsonl", json.dumps(row))
    assert problems_of(path) == [f"line 1: {column} holds a control character, such as a line's end"]


def test_of_many_labels_only_some_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, "examples.jsonl", '{"user": "ann", "text": "words", "label": "private"}')
    labels = [f"intent {number}" for number in range(150)]
    assert problems_of(path, labels=labels) == [
        "line 1: the label is not one of 150 names: intent 0, intent 1, intent 2, intent 3, ..."
    ]


@pytest.mark.full
def test_a_parquet_file_with_a_damaged_foot(tmp_path: Path) -> None:
    """pyarrow reports it as an error of the system, whose words could quote the file."""
    content = b"PAR1" + b"\xff" * 16 + (16).to_bytes(4, "little") + b"PAR1"
    assert problems_of(write(tmp_path, "examples.parquet", content)) == ["not a readable Parquet file"]


@pytest.mark.parametrize("data", [b'"user', b"us\rer,text,label\n", b'"a"b,text,label\nann,x,y\n'])
def test_a_header_that_is_no_csv_is_one_typed_error(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_bytes(data)
    with pytest.raises(ExampleError):
        read_examples(tmp_path / "mine.csv")


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_a_pipe_is_no_file_of_examples(ending: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"mine{ending}")
    with pytest.raises(ExampleError, match="Not a plain file"):
        read_examples(tmp_path / f"mine{ending}")
