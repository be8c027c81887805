"""Examples: what a person wrote or read, and the label that they gave it; as JSONL, CSV or Parquet."""

import csv
import importlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, final

from umbel.shared.checks import NestingError, has_controls, listed, parsed_json
from umbel.shared.errors import ExampleError, MissingExtraError
from umbel.shared.files import atomic_write, plain_file

MAX_TEXT_CHARACTERS = 20_000
MAX_NAME_CHARACTERS = 200
_MAX_LINE_BYTES = 1 << 20
_ENOUGH = 10_000  # problems, after which a file is not read further
_MALFORMED_CSV = "malformed CSV (a quote that is not closed or not doubled); not read further"
_COLUMNS = ("user", "text", "label", "time")
_HINT = "Each example needs user, text and label; time (a number) may be given. Mend these and try again."

_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")

_F = TypeVar("_F")
_Row = tuple[str, Mapping[str, object]]  # a place such as "line 3", and the row's cells by column


@final
@dataclass(frozen=True, slots=True)
class Example:
    """One text with the label that a user gave it.

    Its text and label are private: they are left out of `repr`, so that no log or traceback shows them.

    Attributes:
        user: Who gave the label.
        text: What was judged or written.
        label: The label's name; numbers are held as text.
        time: When, in any unit that grows, such as seconds; None if unknown.

    Example:
        >>> Example("ann", "a slow, tender film", "like")
        Example(user='ann', time=None)
    """

    user: str
    text: str = field(repr=False)
    label: str = field(repr=False)
    time: float | None = None


def read_examples(
    path: Path, *, labels: Sequence[str] | None = None, default_user: str | None = None
) -> list[Example]:
    """Reads examples from .jsonl, .json-lines, .csv or .parquet, by the file's ending.

    Labels and users that are JSON or Parquet numbers or booleans become text ("1", "4.5", "true"). Unknown
    columns are ignored, and so are blank lines and a byte-order mark.

    Args:
        path: The file.
        labels: The labels that may occur; None allows any.
        default_user: The user of rows that name none, as in a device owner's own file.

    Raises:
        ExampleError: Something is wrong; all problems are listed with their lines.
        MissingExtraError: The file is Parquet and pyarrow is not installed.
    """
    problems: list[str] = []
    examples = list(iter_examples(path, problems, labels=labels, default_user=default_user))
    if not examples and not problems:
        problems.append("line 1: the file holds no examples")
    if problems:
        raise ExampleError(
            f"{path} holds examples that cannot be used ({len(problems)} found):",
            problems,
            _HINT if default_user is None else _HINT.replace("user, ", ""),
        )
    return examples


def iter_examples(
    path: Path,
    problems: list[str],
    *,
    labels: Sequence[str] | None = None,
    default_user: str | None = None,
) -> Iterator[Example]:
    """Yields the examples of a file as they are read; none is held.

    Args:
        path: The file, as in `read_examples`.
        problems: Gets a line for each row that cannot be used, and is left out; after thousands of them the
            rest is not read.
        labels: The labels that may occur; None allows any.
        default_user: The user of rows that name none.

    Raises:
        ExampleError: The file cannot be read at all.
        MissingExtraError: The file is Parquet and pyarrow is not installed.
    """
    open_rows = _format(path, _READERS)
    try:
        for place, row in open_rows(path, default_user is not None, problems):
            example = checked_example(place, row, labels, default_user, problems)
            if example is not None:
                yield example
    except OSError as error:
        raise ExampleError(f"Cannot read {path}: {error.strerror or error}.") from None


def write_examples(path: Path, examples: Iterable[Example], *, mode: int = 0o644) -> None:
    """Writes examples as JSONL, CSV or Parquet, by the file's ending; `read_examples` gives them back.

    Args:
        path: The file.
        examples: What to write.
        mode: Permission bits of the file; a person's own examples use 0o600.

    Raises:
        ExampleError: There is nothing to write, an example could not be read back, or the file cannot be
            written; an older file is then untouched.
        MissingExtraError: The file is Parquet and pyarrow is not installed.
    """
    encode = _format(path, _WRITERS)
    examples = list(examples)
    problems: list[str] = [] if examples else ["there are no examples"]
    for number, example in enumerate(examples, 1):
        row = {name: getattr(example, name) for name in _COLUMNS}
        checked_example(f"example {number}", row, None, None, problems)
    if problems:
        raise ExampleError(f"{path} was not written:", problems, _HINT)
    try:
        atomic_write(path, encode(examples), mode=mode)
    except OSError as error:
        raise ExampleError(f"Cannot write {path}: {error.strerror or error}.") from None


def labels_of(examples: Iterable[Example]) -> tuple[str, ...]:
    """Returns the labels that occur, sorted; by value if all are numbers.

    Example:
        >>> labels_of(Example("ann", "some text", label) for label in ("10", "9", "10"))
        ('9', '10')
    """
    labels = sorted({example.label for example in examples})
    values = {label: _number(label) for label in labels}
    if all(isinstance(value, float) and math.isfinite(value) for value in values.values()):
        labels.sort(key=float)
    return tuple(labels)


def checked_example(
    place: str,
    row: Mapping[str, object],
    labels: Sequence[str] | None,
    default_user: str | None,
    problems: list[str],
) -> Example | None:
    """Returns a row as an example, or None after adding its problems.

    Args:
        place: Where it stands, such as "line 3".
        row: Its cells by column.
        labels: The labels that may occur; None allows any.
        default_user: The user of a row that names none.
        problems: Gets a line for each problem; it quotes nothing.
    """
    found: list[str] = []
    cell = row.get("user")
    user = default_user if default_user is not None and _is_missing(cell) else _name("user", cell, found)
    text = _text(row.get("text"), found)
    label = _name("label", row.get("label"), found)
    if label and labels is not None and label not in labels:
        found.append(f"the label is not one of {listed(labels)}")
    time = _time(row.get("time"), found)
    problems += [f"{place}: {problem}" for problem in found]
    return None if found else Example(user or "", text, label, time)


def _is_missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _name(column: str, cell: object, found: list[str]) -> str:
    """Returns a user or a label as text."""
    if _is_missing(cell):
        found.append(f"{column} is missing or empty")
        return ""
    if not isinstance(cell, str | bool | int | float) or (
        isinstance(cell, float) and not math.isfinite(cell)
    ):
        found.append(f"{column} is of a wrong type ({type(cell).__name__})")
        return ""
    name = _canonical(cell)
    if len(name) > MAX_NAME_CHARACTERS:
        found.append(f"{column} is {len(name):,} characters long; at most {MAX_NAME_CHARACTERS} are allowed")
    _check_characters(column, name, found)
    if has_controls(name.replace("\0", "")):
        found.append(f"{column} holds a control character, such as a line's end")
    return name


def _canonical(cell: str | float) -> str:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    # 1.0 and 1 are one label: many tools write whole numbers with a fraction once a cell is empty.
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def _text(cell: object, found: list[str]) -> str:
    if _is_missing(cell):
        found.append("text is missing or empty")
        return ""
    if not isinstance(cell, str):
        found.append(f"text is of a wrong type ({type(cell).__name__})")
        return ""
    if len(cell) > MAX_TEXT_CHARACTERS:
        found.append(f"text is {len(cell):,} characters long; at most {MAX_TEXT_CHARACTERS:,} are allowed")
    _check_characters("text", cell, found)
    return cell


def text_problems(text: str) -> list[str]:
    """Returns what is wrong with a text: empty, too long, or with what is no character; quotes nothing."""
    found: list[str] = []
    _text(text if text.strip() else "", found)
    return found


def _check_characters(column: str, value: str, found: list[str]) -> None:
    if "\0" in value:
        found.append(f"{column} holds a NUL character")
    if _HALF_OF_A_PAIR.search(value):
        found.append(f"{column} holds half of a surrogate pair, which is no character")


def _time(cell: object, found: list[str]) -> float | None:
    if cell is None:
        return None
    try:
        value = float(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) else math.nan
    except OverflowError:
        value = math.nan
    if not math.isfinite(value):
        found.append("time is not a finite number")
        return None
    return value


def _number(cell: str) -> object:
    """Returns a number if the cell is one, and else the cell."""
    try:
        return float(cell)
    except ValueError:
        return cell


# Readers: each yields (place, row) and adds what it cannot parse to `problems`.


def _lines(stream: IO[bytes], problems: list[str]) -> Iterator[tuple[int, str]]:
    """Yields each line's number and text; one that is not UTF-8 or too long is a problem and empty."""
    number = 0
    while len(problems) < _ENOUGH and (line := stream.readline(_MAX_LINE_BYTES + 1)):
        number += 1
        text = ""
        if len(line) > _MAX_LINE_BYTES:
            problems.append(f"line {number}: longer than {_MAX_LINE_BYTES:,} bytes")
            while line and not line.endswith(b"\n"):
                line = stream.readline(_MAX_LINE_BYTES)
        else:
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problems.append(f"line {number}: not UTF-8 (byte {error.start + 1} of the line)")
        yield number, text


def _read_jsonl(path: Path, has_user: bool, problems: list[str]) -> Iterator[_Row]:
    del has_user  # a row that names no user is found row by row
    with plain_file(path) as stream:
        for number, line in _lines(stream, problems):
            if not line.strip():
                continue
            row, problem = _parse_json(line)
            if row is not None:
                yield f"line {number}", row
            else:
                problems.append(f"line {number}: {problem}")


def _parse_json(line: str) -> tuple[Mapping[str, object] | None, str]:
    """Returns the line's object, or None and what is wrong with it."""
    try:
        row = parsed_json(line.rstrip("\r\n"), _unique_keys)
    except json.JSONDecodeError as error:
        return None, f"malformed JSON at column {error.colno}"
    except NestingError:
        return None, "malformed JSON: nested too deeply"
    except ValueError:  # from _unique_keys, or a number of thousands of digits
        return None, "malformed JSON: a key is given twice, or a number is too long"
    return (row, "") if isinstance(row, dict) else (None, "not a JSON object")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is given twice")
    return row


def _read_csv(path: Path, has_user: bool, problems: list[str]) -> Iterator[_Row]:
    with plain_file(path) as stream:
        reader = csv.reader((text for _, text in _lines(stream, problems)), strict=True)
        before = len(problems)
        header = [name.strip() for name in _first_row(reader, problems)]
        if not header and len(problems) == before:
            problems.append("line 1: the file is empty; a header such as user,text,label is expected")
        problems += _header_problems("line 1", header, has_user) if header else []
        if len(problems) == before:
            yield from _csv_rows(reader, header, problems)


def _first_row(reader: Any, problems: list[str]) -> list[str]:
    try:
        return list(next(reader, []))
    except csv.Error:
        problems.append(f"line 1: {_MALFORMED_CSV}")
        return []


def _csv_rows(reader: Any, header: list[str], problems: list[str]) -> Iterator[_Row]:
    while True:
        place = f"line {reader.line_num + 1}"
        before = len(problems)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            problems.append(f"{place}: {_MALFORMED_CSV}")
            return
        if not cells or len(problems) > before:  # a blank line, or one that is already reported
            continue
        if [cell.strip() for cell in cells] == header:
            problems.append(f"{place}: the header is repeated")
        elif len(cells) != len(header):
            problems.append(f"{place}: {len(cells)} cells, but the header has {len(header)}")
        else:
            row: dict[str, object] = dict(zip(header, cells, strict=True))
            row["time"] = _number(cell) if (cell := str(row.get("time", "")).strip()) else None
            yield place, row


def _header_problems(place: str, header: Sequence[str], has_user: bool) -> list[str]:
    """Checks the columns' names, and shows no unknown one: without a header they are someone's words."""
    wanted = ("text", "label") if has_user else ("user", "text", "label")
    missing = [name for name in wanted if name not in header]
    problems = [f"{place}: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}"] if missing else []
    for position, name in enumerate(header):
        first = header.index(name)
        if name and first < position:
            problems.append(f"{place}: column {position + 1} has the same name as column {first + 1}")
    return problems


def _read_parquet(path: Path, has_user: bool, problems: list[str]) -> Iterator[_Row]:
    pyarrow, parquet = _pyarrow()
    plain_file(path).close()  # a missing file or a pipe is an OSError, not a damaged Parquet file
    try:
        with parquet.ParquetFile(path) as file:
            header = list(file.schema_arrow.names)
            problems += _header_problems("schema", header, has_user)
            if problems:
                return
            number = 0
            for batch in file.iter_batches(columns=[name for name in _COLUMNS if name in header]):
                if len(problems) >= _ENOUGH:
                    return
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        problems.append("not a readable Parquet file")


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        hint = "Install pyarrow (pip install pyarrow), or convert the file to .jsonl or .csv."
        raise MissingExtraError("Parquet files need pyarrow, which is not installed.", hint=hint) from None


def _jsonl_bytes(examples: Sequence[Example]) -> bytes:
    lines = []
    for example in examples:
        row: dict[str, object] = {"user": example.user, "text": example.text, "label": example.label}
        if example.time is not None:
            row["time"] = example.time
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def _csv_bytes(examples: Sequence[Example]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)  # ends lines with CR LF, and therefore quotes both inside of cells
    writer.writerow(_COLUMNS)
    for example in examples:
        time = "" if example.time is None else repr(float(example.time))
        writer.writerow((example.user, example.text, example.label, time))
    return stream.getvalue().encode()


def _parquet_bytes(examples: Sequence[Example]) -> bytes:
    pyarrow, parquet = _pyarrow()
    kinds = (pyarrow.string(), pyarrow.string(), pyarrow.string(), pyarrow.float64())
    columns = {
        name: pyarrow.array([getattr(example, name) for example in examples], kind)
        for name, kind in zip(_COLUMNS, kinds, strict=True)
    }
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


_READERS: Mapping[str, Callable[[Path, bool, list[str]], Iterator[_Row]]] = {
    ".jsonl": _read_jsonl,
    ".json-lines": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
_WRITERS: Mapping[str, Callable[[Sequence[Example]], bytes]] = {
    ".jsonl": _jsonl_bytes,
    ".json-lines": _jsonl_bytes,
    ".csv": _csv_bytes,
    ".parquet": _parquet_bytes,
}


def _format(path: Path, formats: Mapping[str, _F]) -> _F:
    chosen = formats.get(path.suffix.lower())
    if chosen is None and path.is_dir():
        raise ExampleError(f"{path} is a folder.", hint="Give a file of examples in it.")
    if chosen is None:
        known = ", ".join(formats)
        raise ExampleError(
            f"{path} has the ending {path.suffix!r}, which is none of {known}.", hint="Rename it."
        )
    return chosen
