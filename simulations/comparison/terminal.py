"""The tables that the command prints: one per data set."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from umbel.simulations.comparison.results import Comparison
from umbel.simulations.comparison.summary import GENERIC, Entry, Summary
from umbel.simulations.report.words import NBSP, counted, interval, percent, points, size

_DRAWS = 2_000  # a table on the way; the page takes more


def terminal_tables(comparison: Comparison) -> list[Table]:
    """Returns one table for each data set of which anything is in.

    Raises:
        ComparisonError: The cells contradict one another.
    """
    summary = Summary(comparison, draws=_DRAWS)
    return [terminal_table(summary, data) for data in summary.data_sets if summary.people(data)]


def terminal_table(summary: Summary, data: str) -> Table:
    """Returns accuracy by k of every contestant on a data set; a dash stands for what is not measured."""
    people, k = summary.people(data), summary.headline_k(data)
    title = f"{data}: {counted(sum(people.values()), 'person', 'people')}"
    title += f" over {counted(len(people), 'seed', 'seeds')}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("contestant", no_wrap=True)
    ks = [f"k{NBSP}={NBSP}{each}" for each in summary.ks(data)]
    for heading in ("seeds", "private", *ks, f"over generic [95{NBSP}%] at {k}", "s/person"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in summary.entries(data):
        style = "" if entry.seeds else "dim"
        table.add_row(Text(entry.title), *_cells(summary, data, entry, k), style=style)
    return table


def _cells(summary: Summary, data: str, entry: Entry, k: int) -> list[str]:
    found = [summary.figures(data, entry.contestant, each) for each in summary.ks(data)]
    at_k = summary.figures(data, entry.contestant, k)
    is_generic = entry.contestant == GENERIC
    gain = None if is_generic else summary.difference(data, entry.contestant, GENERIC, k)
    return [
        f"{len(entry.seeds)}/{len(summary.seeds)}",
        "-" if entry.private_bytes is None else size(entry.private_bytes),
        *("-" if row is None else percent(row.accuracy) for row in found),
        # A bracket that rich must not take for its own markup.
        "-" if gain is None else f"{points(gain.value)} \\[{interval((gain.low, gain.high))}]",
        "-" if at_k is None else f"{at_k.seconds:.3g}",
    ]
