"""Texts as a command line gives them: words, lines of a file, lines of stdin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

_MAX_TEXTS_BYTES = 1 << 26  # a wrong file, such as a device, may be endless


def file_texts(file: Path | None) -> list[str]:
    """Returns the lines of a file; none without one.

    Raises:
        ExampleError: It has none, some are empty, or it is no text.
        OSError: It cannot be read.
    """
    return [] if file is None else given_texts([], file, "read", "Give a file with one text a line.")


def given_texts(
    given: list[str],
    file: Path | None,
    purpose: str = "predict",
    hint: str = 'Give texts: umbel device predict "some text", or --texts FILE with one a line.',
) -> list[str]:
    """Returns texts given as words ("-" stands for the lines of stdin), and those of a file.

    Raises:
        ExampleError: There are none, some are empty, or a file or stdin is no text.
        OSError: The file cannot be read.
    """
    from umbel.shared.errors import ExampleError

    texts = [text for text in given if text != "-"]
    if "-" in given:
        texts += _lines(sys.stdin.buffer, "what stdin gives")
    if file is not None:
        with file.open("rb") as stream:
            texts += _lines(stream, str(file))
    empty = [f"text {number} is empty" for number, text in enumerate(texts, 1) if not text.strip()]
    if empty or not texts:
        raise ExampleError(
            f"there is nothing to {purpose}" if not texts else "some texts are empty",
            empty,
            hint,
        )
    return texts


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
