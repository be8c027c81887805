"""The two pieces that every Markdown page is made of: paragraphs and tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from umbel.simulations.report.words import NBSP

_WIDTH = 130


def prose(text: str) -> str:
    """Returns a paragraph, wrapped between words."""
    flat = text.replace(NBSP, " ")
    return textwrap.fill(flat, _WIDTH, break_long_words=False, break_on_hyphens=False)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] | None = None) -> str:
    """Returns a Markdown table.

    Args:
        headings: What stands over the columns.
        rows: As many cells each.
        right: Columns that go to the right; all but the first if None.

    Example:
        >>> print(table(("what", "ms"), [("predict", "12")]))
        | what | ms |
        | --- | ---: |
        | predict | 12 |
    """
    aligned = range(1, len(headings)) if right is None else right
    rule = ["---:" if column in aligned else "---" for column in range(len(headings))]
    lines = [headings, rule, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
