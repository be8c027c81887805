"""Small pieces of HTML. Everything that comes from outside is escaped here."""

import html
from collections.abc import Sequence
from typing import Literal

Line = Literal["solid", "dashed", "dotted", "band", "faint"]

_LINES: dict[Line, str] = {
    "solid": 'stroke-width="2.4"',
    "dashed": 'stroke-width="2" stroke-dasharray="6 2.5"',
    "dotted": 'stroke-width="2.2" stroke-dasharray="2 2.6"',
    "band": 'stroke-width="11" stroke-opacity=".22"',
    "faint": 'stroke-width="1.4" stroke-opacity=".45"',
}


def panel(title: str, caption: str, body: str, *, css: str = "") -> str:
    """Returns a section with a heading and a caption; `body` is HTML."""
    classes = f"panel {css}".strip()
    heading = f"<h2>{html.escape(title)}</h2><p>{html.escape(caption)}</p>"
    return f'<section class="{classes}">{heading}{body}</section>'


def figure(svg: str, legend: Sequence[tuple[str, Line, str]]) -> str:
    """Returns an SVG below its legend of (role in the palette, kind of line, text)."""
    items = "".join(
        f'<li><svg viewBox="0 0 26 11" aria-hidden="true"><path d="M0 5.5H26" fill="none" '
        f'stroke="var(--{role})" {_LINES[line]}/></svg>{html.escape(text)}</li>'
        for role, line, text in legend
    )
    return f'<figure><ul class="legend">{items}</ul>{svg}</figure>'


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    chosen: str | None = None,
    names: bool = False,
    note: str = "",
) -> str:
    """Returns a table that scrolls sideways where the screen is too narrow.

    Args:
        headings: One per column.
        rows: Cells as text; the first is the row's heading.
        chosen: The first cell of the row to stand out.
        names: Whether the first column holds words, which go to the left.
        note: The units, above the table.
    """
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in headings)
    body = "".join(
        ('<tr class="chosen">' if row[0] == chosen else "<tr>")
        + f'<th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    css = ' class="names"' if names else ""
    caption = f"<caption>{html.escape(note)}</caption>" if note else ""
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="Table">'
        f"<table{css}>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, body: str, *, is_open: bool = False) -> str:
    """Returns a part that folds; `body` is HTML."""
    return f"<details{' open' if is_open else ''}><summary>{html.escape(summary)}</summary>{body}</details>"


def card(label: str, value: str, note: str) -> str:
    """Returns one key figure."""
    return (
        f'<div class="card"><dt>{html.escape(label)}</dt><dd><div class="value">{html.escape(value)}</div>'
        f'<div class="note">{html.escape(note)}</div></dd></div>'
    )


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Returns a table of (name, share of the longest bar, value as text) with bars."""
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        f'<td class="track"><span class="bar" style="width:{100 * share:.1f}%"></span></td>'
        f"<td>{html.escape(value)}</td></tr>"
        for name, share, value in rows
    )
    return f'<table class="names"><tbody>{body}</tbody></table>'


def pre(text: str) -> str:
    """Returns text as it is, in a fixed-width font."""
    return f'<pre tabindex="0">{html.escape(text)}</pre>'
