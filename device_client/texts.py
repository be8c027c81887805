"""Texts as a command line gives them: words, lines of a file, lines of stdin."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

_EXAMPLES = (".jsonl", ".csv", ".parquet")
_MAX_TEXTS_BYTES = 1 << 26  # a wrong file, such as a device, may be endless


def file_texts(file: Path | None) -> list[str]:
    """Returns the lines of a file ("-" stands for stdin) that are not blank; none without a file.

    Raises:
        ExampleError: It has none, some are no texts, or they are examples.
        OSError: It cannot be read.
    """
    from umbel.shared.errors import ExampleError

    if file is None:
        return []
    if file.suffix in _EXAMPLES:
        raise ExampleError(f"{file} holds examples, not texts", hint=f"Give it as --examples {file}.")
    found = _plain(file, f"Give it as --examples {file}.")
    if not found:
        raise ExampleError(f"there are no texts in {file}", hint="Give a file with one text a line.")
    _check({f"line {number}": line for number, line in found.items()}, str(file))
    return list(found.values())


def given_texts(given: list[str], file: Path | None) -> list[str]:
    """Returns the texts to predict: words ("-" stands for the lines of stdin), and the lines of a file.

    Raises:
        ExampleError: There are none, some are no texts, or a file or stdin is no text or holds examples.
        OSError: The file cannot be read.
    """
    from umbel.shared.errors import ExampleError

    texts = [text for text in given if text != "-"]
    files = [Path("-")] if "-" in given else []
    files += [file] if file is not None and file not in files else []
    for own in files:
        texts += _plain(own, "Give a file with one text a line.").values()
    if not texts:
        hint = 'Give texts: umbel device predict "some text", or --texts FILE with one a line.'
        raise ExampleError("there is nothing to predict", hint=hint)
    _check({f"text {number}": text for number, text in enumerate(texts, 1)}, "these texts")
    return texts


def owned_texts(file: Path) -> tuple[list[str], list[str]]:
    """Returns texts and whose each is, of a file ("-" stands for stdin) of JSON lines with owner and text.

    Raises:
        ExampleError: There are none, or some lines are not like that; all are told.
        OSError: The file cannot be read.
    """
    from umbel.shared.checks import parsed_json
    from umbel.shared.errors import ExampleError

    lines = _stdin() if str(file) == "-" else _read(file)
    texts: list[str] = []
    owners: list[str] = []
    wrong = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parsed_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("owner", "text")):
            wrong.append(f"line {number}: expected a JSON object with owner and text")
            continue
        texts.append(row["text"])
        owners.append(row["owner"])
    if wrong or not texts:
        hint = 'Give lines such as {"owner": "ann", "text": "A slow, quiet story."}.'
        raise ExampleError(f"there are no texts to answer in {file}", wrong, hint)
    _check({f"text {number}": text for number, text in enumerate(texts, 1)}, str(file))
    return texts, owners


def _plain(file: Path, hint: str) -> dict[int, str]:
    """Returns the lines of a file ("-" stands for stdin) that are not blank, by their number.

    Raises:
        ExampleError: It is no text, or every line is an example in JSON.
        OSError: It cannot be read.
    """
    from umbel.shared.errors import ExampleError

    stdin = str(file) == "-"
    lines = _stdin() if stdin else _read(file)
    found = {number: line for number, line in enumerate(lines, 1) if line.strip()}
    if found and all(map(_is_example, found.values())):
        raise ExampleError(f"{'stdin' if stdin else file} holds examples, not texts", hint=hint)
    return found


def _is_example(line: str) -> bool:
    """Whether a line is a JSON object with a text, as in a file of examples."""
    from umbel.shared.checks import parsed_json

    if not line.lstrip().startswith("{"):
        return False
    try:
        row = parsed_json(line)
    except ValueError:
        return False
    return isinstance(row, dict) and "text" in row


def _check(texts: Mapping[str, str], source: str) -> None:
    from umbel.shared.errors import ExampleError
    from umbel.shared.examples import text_problems

    problems = [f"{place}: {problem}" for place, text in texts.items() for problem in text_problems(text)]
    if problems:
        raise ExampleError(f"some of {source} cannot be used", problems, "Mend these and try again.")


def _stdin() -> list[str]:
    from umbel.shared.errors import ExampleError

    if sys.stdin is None:
        raise ExampleError("there is no stdin to read texts from")
    return _lines(sys.stdin.buffer, "what stdin gives")


def _read(file: Path) -> list[str]:
    with file.open("rb") as stream:
        return _lines(stream, str(file))


def _lines(stream: IO[bytes], source: str) -> list[str]:
    """Returns the lines of a file; a text may hold what Python calls a line's end, such as U+2028."""
    from umbel.shared.errors import ExampleError

    data = stream.read(_MAX_TEXTS_BYTES + 1)
    if len(data) > _MAX_TEXTS_BYTES:
        raise ExampleError(f"{source} has more than {_MAX_TEXTS_BYTES:,} bytes", hint="Give it in parts.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExampleError(f"{source} is not UTF-8 text", [f"byte {error.start + 1}"]) from None
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
