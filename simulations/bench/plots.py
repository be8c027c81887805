"""The benchmark's figures: how far each ratio is from what it must be, and many owners by every way."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from umbel.simulations.bench.roofline import COMPUTED, TOUCHED
from umbel.simulations.bench.rows import Row
from umbel.simulations.report.svg import BEST, GENERIC, HARM, INK, PERSONAL, style

_METADATA: dict[str, Any] = {"Creator": None, "Date": None, "Format": None, "Type": None}
_BAR, _MARGIN, _TEXT = 0.27, 0.95, 9.0  # inches, inches, points
_TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)


def advantages(rows: Sequence[Row]) -> str:
    """Returns, as SVG, how many times less each row takes than what it is compared with, and the bound."""
    shown = [row for row in rows if row.ratio is not None]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = range(len(shown))
        colours = [{True: BEST, False: HARM, None: GENERIC}[row.holds] for row in shown]
        axes.barh(
            places, [advantage(row, row.ratio) - 1 for row in shown], left=1, color=colours, height=0.62
        )
        for at, row in enumerate(shown):
            if row.bound is not None:
                axes.plot([advantage(row, row.bound)] * 2, [at - 0.42, at + 0.42], color=INK, linewidth=1.6)
        axes.set_xscale("log")
        axes.set_yticks(list(places), [name(row) for row in shown], fontsize=_TEXT)
        axes.invert_yaxis()
        _log_ticks(axes)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("times less than what it is compared with; the mark is what it must be")
        figure.subplots_adjust(left=0.44, right=0.97, top=0.98, bottom=0.6 / figure.get_figheight())

    return _svg(draw, len(shown))


def many_owners(rows: Sequence[Row]) -> str:
    """Returns, as SVG, the milliseconds that a text of each of many owners takes, by every way."""
    found = [row for row in rows if row.part == "many owners" and row.theirs is not None]
    bars: list[tuple[str, float, str]] = []
    for encoder in dict.fromkeys(row.encoder for row in found):
        own = [row for row in found if row.encoder == encoder]
        bars.append((f"umbel, {encoder}", own[0].ours.median, PERSONAL))
        bars += [(f"{row.against}, {encoder}", row.theirs.median, GENERIC) for row in own if row.theirs]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.barh(
            range(len(bars)), [1000 * bar[1] for bar in bars], color=[bar[2] for bar in bars], height=0.62
        )
        for at, (_, seconds, _) in enumerate(bars):
            axes.annotate(
                f" {1000 * seconds:,.0f}", (1000 * seconds, at), verticalalignment="center", fontsize=_TEXT
            )
        axes.set_yticks(range(len(bars)), [bar[0] for bar in bars], fontsize=_TEXT)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"ms for {found[0].setting}" if found else "")
        figure.subplots_adjust(left=0.44, right=0.97, top=0.98, bottom=0.6 / figure.get_figheight())

    return _svg(draw, len(bars))


def users_per_second(rows: Sequence[Row]) -> str:
    """Returns, as SVG, how many people's work of a round each side does in a second, and what FLOP allow."""
    bars = [bar for own in _alike(rows) for bar in _side_bars(own)]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.barh(range(len(bars)), [bar[1] for bar in bars], color=[bar[2] for bar in bars], height=0.62)
        for at, (_, users, _) in enumerate(bars):
            axes.annotate(f" {users:,.3g}", (users, at), verticalalignment="center", fontsize=_TEXT)
        axes.set_xscale("log")
        axes.set_yticks(range(len(bars)), [bar[0] for bar in bars], fontsize=_TEXT)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("users in a second of a round (logarithmic)")
        figure.subplots_adjust(left=0.44, right=0.97, top=0.98, bottom=0.6 / figure.get_figheight())

    return _svg(draw, len(bars))


def _alike(rows: Sequence[Row]) -> list[list[Row]]:
    """Returns rows of rounds, by their load and encoder."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.users and row.unit == "s" and row.theirs is not None:
            groups.setdefault((row.encoder, row.setting), []).append(row)
    return list(groups.values())


def _side_bars(own: Sequence[Row]) -> list[tuple[str, float, str]]:
    """Returns (side, users in a second, colour): umbel first, then the others, the ceiling last."""
    first = own[0]
    kind = f"{first.setting.partition(':')[0].partition(',')[0]}, {first.encoder}"
    bars = [(f"umbel's cohort: {kind}", first.users / first.ours.median, PERSONAL)]
    for row in own:
        if row.theirs is None or row.part == TOUCHED:
            continue
        ceiling = row.part == COMPUTED
        words = "the ceiling by FLOP" if ceiling else row.against.partition(",")[0]
        bars.append((f"{words}: {kind}", row.users / row.theirs.median, INK if ceiling else GENERIC))
    return bars


def advantage(row: Row, ratio: float | None) -> float:
    """Returns a ratio of a row, or its bound, as "so many times less": larger is better in every row."""
    assert ratio is not None
    return ratio if row.sense == "times" else 1 / ratio


def name(row: Row) -> str:
    """Returns what a bar is called."""
    threads = f", {row.threads} thr." if row.threads else ""
    return ", ".join(part for part in (row.part, row.setting, row.encoder) if part) + threads


def _log_ticks(axes: Any) -> None:
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in _TICKS if low <= tick <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _svg(draw: Callable[[Figure], None], bars: int) -> str:
    stream = io.StringIO()
    # A white ground: the figure stands in pages of light and of dark, and takes no colours from them.
    with style():
        figure = Figure(figsize=(9.6, _MARGIN + _BAR * max(bars, 2)), facecolor="white")
        draw(figure)
        FigureCanvasSVG(figure)
        figure.savefig(stream, format="svg", metadata=_METADATA, facecolor="white")
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
