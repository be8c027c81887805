"""The table that a benchmark prints."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from umbel.simulations.bench.rows import Measured, Row, Sample
from umbel.simulations.report.words import NBSP, size

_HEADINGS = ("median", "min to max", "theirs", "min to max", "ratio", "must be")


def terminal_table(found: Measured) -> Table:
    """Returns every row: umbel's figure, what it is compared with, and whether the bound holds."""
    table = Table(title=Text(f"umbel bench {found.command}"), title_justify="left")
    for heading in ("what", "encoder", "setting"):
        table.add_column(heading, no_wrap=True)
    table.add_column("threads", justify="right")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("against", no_wrap=True)
    for row in found.rows:
        style = {True: "green", False: "red", None: ""}[row.holds]
        words = cells(row)
        table.add_row(
            *[Text(word) for word in words[:-3]], Text(words[-3]), Text(words[-2], style), Text(words[-1])
        )
    return table


def cells(row: Row) -> list[str]:
    """Returns a row in words: what, encoder, setting, threads, four figures, ratio, bound, against."""
    threads = str(row.threads) if row.threads else ""
    theirs = ["", ""] if row.theirs is None else [figure(row, row.theirs.median), span(row, row.theirs)]
    return [
        row.part,
        row.encoder,
        row.setting,
        threads,
        figure(row, row.ours.median),
        span(row, row.ours),
        *theirs,
        ratio(row),
        bound(row),
        row.against,
    ]


def ratio(row: Row) -> str:
    """Returns the ratio: how many times as fast, or what share."""
    if row.ratio is None:
        return ""
    return f"{row.ratio:.2f}{'x' if row.sense == 'times' else ''}"


def bound(row: Row) -> str:
    """Returns what the ratio must be, and whether it is."""
    if row.bound is None:
        return ""
    words = f"{'at least' if row.sense == 'times' else 'at most'} {row.bound:g}"
    return words + {True: ": holds", False: ": does not hold", None: ""}[row.holds]


def span(row: Row, sample: Sample) -> str:
    """Returns the smallest and the largest of a sample; nothing where there is only one."""
    if len(sample.values) < 2:
        return ""
    return f"{figure(row, min(sample.values))} to {figure(row, max(sample.values))}"


def figure(row: Row, value: float) -> str:
    """Returns a value of a row with its unit."""
    if row.unit == "bytes":
        return size(value)
    return f"{value:.2f}{NBSP}s" if value >= 1 else f"{1000 * value:.3g}{NBSP}ms"
