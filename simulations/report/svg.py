"""A matplotlib figure as inline SVG that takes its colours and its font from the page around it."""

import html
import io
import re
from contextlib import AbstractContextManager
from typing import Any

import matplotlib.style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Role: colour on light, colour on dark. Figures are drawn in the light colours, all different; each is then
# replaced by the page's variable of that role.
PALETTE = {
    "ink": ("#3b3846", "#d6d2e0"),
    "grid": ("#e3e0ea", "#37343f"),
    "axis": ("#9b97a8", "#6f6b7b"),
    "personal": ("#6a3fc4", "#b99cff"),
    "bias": ("#b45f06", "#f2a65a"),
    "generic": ("#56636f", "#a6b3c0"),
    "best": ("#14785a", "#5fd1a5"),
    "harm": ("#b3261e", "#ff8f85"),
}
INK, GRID, AXIS, PERSONAL, BIAS, GENERIC, BEST, HARM = (light for light, _ in PALETTE.values())

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "umbel",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that the layout is the same on every machine
    "font.size": 12.5,  # style.css makes it smaller where the figure is shown larger
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": AXIS,
    "axes.facecolor": "none",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 12.5,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.9,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "lines.solid_capstyle": "round",
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def style() -> AbstractContextManager[None]:
    """Returns a context in which figures have the report's style, whatever a user has set."""
    return matplotlib.style.context(["default", _STYLE])


def inline(figure: Figure, name: str, title: str, description: str) -> str:
    """Returns the figure as an <svg> element for an HTML page; the same figure gives the same text.

    Args:
        figure: Drawn in the colours of PALETTE only, under style().
        name: Unique on the page; goes before every id within.
        title: What a screen reader says first.
        description: What the figure shows, in words.

    Raises:
        ValueError: A colour is not in PALETTE, and would be unreadable on one of the two backgrounds.
    """
    stream = io.StringIO()
    with style():
        FigureCanvasSVG(figure)
        figure.savefig(stream, format="svg", metadata=_NO_METADATA)
    text = stream.getvalue()
    body = text[text.index("<svg") :]
    box = body.split('viewBox="', 1)[1].split('"', 1)[0]
    inner = _themed(_renamed(body[body.index(">") + 1 :], name))
    return (
        f'<svg role="img" viewBox="{box}" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(description)}</desc>{inner.strip()}'
    )


def _renamed(body: str, name: str) -> str:
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', body)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)


def _themed(body: str) -> str:
    # Only what stands in a style or attribute value is a colour; "#m1a2b3" in a reference is not.
    for role, (light, _) in PALETTE.items():
        body = re.sub(rf"(?<=[:\"\s]){light}\b", f"var(--{role})", body)
    if stray := sorted(set(re.findall(r"(?<=[:\"\s])#[0-9a-fA-F]{6}\b", body))):
        raise ValueError(f"colours outside the palette: {', '.join(stray)}")
    body = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", body)
    return re.sub(r"font-family: [^;\"]*;?", "", body)
