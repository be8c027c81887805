"""The comparison's figures: umbel's methods in colour, rivals in grey, each with its name beside it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, MaxNLocator

from umbel.simulations.comparison.harm import gains
from umbel.simulations.comparison.summary import GENERIC, Entry, Summary
from umbel.simulations.report.svg import AXIS, style
from umbel.simulations.report.words import NBSP, size

_COLOURS = (
    "#6a3fc4",
    "#b45f06",
    "#14785a",
    "#b3261e",
    "#1f66b1",
    "#a1368c",
    "#5d6b00",
    "#007c8a",
    "#7a4a2b",
    "#3d4bb8",
)
_GREYS = ("#6c6c74", "#85858d", "#77777f", "#8f8f97")
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.5)))
_MARKERS = ("o", "s", "D", "^", "v")
_TEXT = 9.0  # points; a label takes 1.25 of it in height
_LEFT, _PLOT, _GAP = 0.65, 5.4, 0.35  # inches: before the axes, their width, before and after the names
_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def accuracy_by_k(summary: Summary, data: str) -> str:
    """Returns accuracy against k as SVG for every contestant that is in; equal figures give equal text."""
    ks = summary.ks(data)
    shown = [entry for entry in summary.entries(data) if entry.seeds]
    looks = _looks(summary.entries(data))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends: list[tuple[float, float, str, str]] = []
        for entry in shown:
            points = [
                (at, found.accuracy)
                for at, k in enumerate(ks)
                if (found := summary.figures(data, entry.contestant, k)) is not None
            ]
            if not points:
                continue
            look = looks[entry.contestant]
            axes.plot(*zip(*points, strict=True), **look)
            ends.append((*points[-1], _title(entry, summary), look["color"]))
        axes.set_xticks(range(len(ks)), [str(k) for k in ks])
        axes.set_xlim(-0.15, len(ks) - 1 + 0.04 * len(ks))
        axes.set_xlabel("own examples of the person (k)")
        _percent_axis(axes)
        axes.set_title(f"{data}: right answers")
        _label_ends(figure, axes, ends)

    return _svg(draw, _height(len(shown)))


def accuracy_by_bytes(summary: Summary, data: str) -> str:
    """Returns accuracy at the headline's k against private bytes as SVG; nothing private stands at 0."""
    k = summary.headline_k(data)
    looks = _looks(summary.entries(data))
    dots = [
        (entry, entry.private_bytes, found.accuracy)
        for entry in summary.entries(data)
        if entry.private_bytes is not None
        and (found := summary.figures(data, entry.contestant, k)) is not None
    ]
    smallest = min((count for _, count, _ in dots if count > 0), default=1)
    nothing = smallest / 10

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        ends = []
        for entry, count, accuracy in dots:
            look = looks[entry.contestant] | {"linestyle": "none", "markersize": 7.0}
            axes.plot([count or nothing], [accuracy], **look)
            ends.append((float(count or nothing), accuracy, _title(entry, summary), look["color"]))
        largest = max((count for _, count, _ in dots), default=1)
        axes.set_xlim(nothing / 2, max(largest, smallest) * 2)
        ticks = [10.0**power for power in range(0, 10) if smallest / 3 <= 10.0**power <= largest * 2]
        axes.set_xticks([nothing, *ticks], ["0", *(size(tick).replace(".0", "") for tick in ticks)])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("private bytes of a person")
        _percent_axis(axes)
        axes.set_title(f"{data}: right answers at k{NBSP}={NBSP}{k}")
        _label_ends(figure, axes, ends)

    return _svg(draw, _height(len(dots)))


def gain_by_person(summary: Summary, data: str) -> str:
    """Returns each person's gain over the generic model at the headline's k, the least first, as SVG.

    Each line is an empirical distribution: at height y, the share y of people gains less than x.
    """
    k = summary.headline_k(data)
    looks = _looks(summary.entries(data))
    lines = [
        (entry, found)
        for entry in summary.entries(data)
        if entry.contestant != GENERIC and len(found := gains(summary, data, entry.contestant, k)) > 0
    ]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends = []
        for entry, found in lines:
            look = looks[entry.contestant] | {"marker": "none"}
            axes.step(found, np.arange(1, len(found) + 1) / len(found), where="post", **look)
            middle = len(found) // 2
            ends.append((found[middle], (middle + 1) / len(found), _title(entry, summary), look["color"]))
        axes.axvline(0.0, color=AXIS, linewidth=0.8)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+g}"))
        axes.set_xlabel("points gained over the generic model")
        _percent_axis(axes)
        axes.set_title(f"{data}: share of people who gain less, k{NBSP}={NBSP}{k}")
        _label_ends(figure, axes, ends)

    return _svg(draw, _height(len(lines)))


def _looks(entries: Sequence[Entry]) -> Mapping[str, dict[str, Any]]:
    """Colours, dashes and markers by contestant, the same in every figure of a comparison."""
    looks = {}
    own = rivals = 0
    for entry in entries:
        rival = entry.group == "rival"
        turn = rivals if rival else own
        rivals, own = rivals + rival, own + (not rival)
        colours: Sequence[str] = _GREYS if rival else _COLOURS
        looks[entry.contestant] = {
            "color": colours[turn % len(colours)],
            "linestyle": _DASHES[turn // len(colours) % len(_DASHES)],
            "marker": _MARKERS[turn % len(_MARKERS)],
            "markersize": 4.5 if rival else 5.5,
            "linewidth": 1.2 if rival else 2.2,
            "zorder": 2.0 if rival else 3.0,
        }
    return looks


def _label_ends(figure: Figure, axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes each name to the right of the axes at its height, moved apart, with a thin line to its point."""
    _leave_room(figure, [title for _, _, title, _ in ends])
    if not ends:
        return
    low, high = axes.get_ylim()
    points = figure.get_figheight() * 72 * axes.get_position().height
    gap = 1.25 * _TEXT * (high - low) / points
    ordered = sorted(ends, key=lambda end: end[1])
    heights = spread([height for _, height, _, _ in ordered], gap, low, high)
    for (x, y, title, colour), height in zip(ordered, heights, strict=True):
        axes.annotate(
            title,
            (x, y),
            xytext=(1.03, height),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            fontsize=_TEXT,
            verticalalignment="center",
            parse_math=False,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "alpha": 0.55,
                "shrinkB": 3,
                "relpos": (0.0, 0.5),
            },
        )


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns ascending heights moved apart to at least `gap`, within `low` and `high` where that has room.

    Example:
        >>> spread([1.0, 1.0, 5.0], gap=2.0, low=0.0, high=6.0)
        [1.0, 3.0, 5.0]
    """
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else max(height, low))
    ceiling = high
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def _percent_axis(axes: Axes) -> None:
    axes.margins(y=0.06)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}{NBSP}%"))
    axes.tick_params(labelsize=_TEXT + 1)
    axes.axhline(axes.get_ylim()[0], color=AXIS, linewidth=0.8)


def _leave_room(figure: Figure, titles: Sequence[str]) -> None:
    """Makes the figure as wide as the names on the right need; axes have the same inches in every figure."""
    longest = max((TextPath((0, 0), title, size=_TEXT).get_extents().width for title in titles), default=0.0)
    height, width = figure.get_figheight(), _LEFT + _PLOT + _GAP + 1.08 * longest / 72
    figure.set_figwidth(width)
    right = (_LEFT + _PLOT) / width
    figure.subplots_adjust(left=_LEFT / width, right=right, top=1 - 0.35 / height, bottom=0.6 / height)


def _title(entry: Entry, summary: Summary) -> str:
    """Returns a contestant's title, with how many seeds are in where some are missing."""
    missing = len(entry.seeds) < len(summary.seeds)
    return f"{entry.title} ({len(entry.seeds)} of {len(summary.seeds)} seeds)" if missing else entry.title


def _height(labels: int) -> float:
    return max(4.2, 0.95 + (labels + 1) * 1.25 * _TEXT / 72)


def _svg(draw: Callable[[Figure], None], height: float) -> str:
    stream = io.StringIO()
    # A white ground: the figure stands in pages of light and of dark, and takes no colours from them.
    with style():
        figure = Figure(figsize=(8.6, height), facecolor="white")
        draw(figure)
        FigureCanvasSVG(figure)
        figure.savefig(stream, format="svg", metadata=_METADATA, facecolor="white")
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
