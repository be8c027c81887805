"""New people's right answers round by round, between the start and central training, as SVG."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from umbel.simulations.against_central.results import AgainstCentral, Seed, chosen
from umbel.simulations.report.svg import BEST, GENERIC, PERSONAL, style

_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def accuracy_by_round(result: AgainstCentral) -> str:
    """Returns new people's accuracy by round, the mean over seeds; equal results give equal text."""
    curves = [_curve(seed) for seed in result.seeds]
    rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
    reached = [100 * float(np.mean([curve[at] for curve in curves])) for at in rounds]
    levels = {
        side: 100 * float(np.mean([np.mean(getattr(seed, side).personal) for seed in result.seeds]))
        for side in ("start", "central")
    }
    with style():
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.axhline(levels["central"], color=BEST, linestyle=(0, (5, 2)), label="central training")
        axes.plot(rounds, reached, color=PERSONAL, marker="o", markersize=3.5, label="rounds")
        axes.axhline(levels["start"], color=GENERIC, linestyle=(0, (1, 1.5)), label="the start")
        axes.set_xlabel("rounds")
        axes.set_title("New people: right personal answers, per cent")
        axes.legend(loc="lower right", frameon=False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata=_METADATA)
    return stream.getvalue()


def _curve(seed: Seed) -> dict[int, float]:
    """Returns rounds -> accuracy of the new people, of the options that were chosen."""
    return {look.at: look.unseen for look in seed.federated_tried[chosen(seed.federated_tried)].looks}
