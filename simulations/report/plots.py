"""The figures of a report. Sized for a phone: 350 points wide, with text of 12.5 points."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from umbel.simulations.report.svg import AXIS, BEST, BIAS, GENERIC, HARM, PERSONAL, style
from umbel.simulations.report.words import MINUS, NBSP, headline_k
from umbel.simulations.results import Round, Seen, Training, Unseen

_WIDTH_INCHES = 350 / 72
_HEIGHT_INCHES = 235 / 72
_ROOM = 0.02  # above and below an accuracy


def _figure(draw: Callable[[Figure], None], height_inches: float = _HEIGHT_INCHES) -> Figure:
    with style():
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        draw(figure)
    return figure


def accuracy_by_k(unseen: Unseen) -> Figure:
    """Returns accuracy against k: personal with the 95 % band of its gain, the baselines, known optima."""
    ks, at = unseen.ks, range(len(unseen.ks))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        generic = [unseen.generic_accuracy[k] for k in ks]
        bias = [unseen.bias_accuracy[k] for k in ks]
        personal = [unseen.personal_accuracy[k] for k in ks]
        low, high = _band(unseen)
        axes.fill_between(at, low, high, color=PERSONAL, alpha=0.16, linewidth=0)
        axes.plot(at, generic, color=GENERIC, marker="D", markersize=3.6, linewidth=1.6)
        axes.plot(at, bias, color=BIAS, marker="s", markersize=4.2, linestyle=(0, (5, 2)), linewidth=1.8)
        axes.plot(at, personal, color=PERSONAL, marker="o", markersize=5.5, linewidth=2.6)
        optima = [(unseen.bayes_accuracy, BEST), (unseen.generic_bayes_accuracy, GENERIC)]
        known = [(value, colour) for value, colour in optima if value is not None]
        for value, colour in known:
            axes.axhline(value, color=colour, linestyle=(0, (1, 1.8)), linewidth=1.8)
        _percent_axis(axes, [*generic, *bias, *personal, *low, *high, *(value for value, _ in known)])
        _k_axis(axes, ks)
        axes.set_title("right answers")

    return _figure(draw, 250 / 72)


def _band(unseen: Unseen) -> tuple[list[float], list[float]]:
    """The interval of the gain, set on the generic accuracy so that it surrounds the personal one."""
    low = [unseen.generic_accuracy[k] + unseen.intervals[k][0] for k in unseen.ks]
    high = [unseen.generic_accuracy[k] + unseen.intervals[k][1] for k in unseen.ks]
    return low, high


def accuracy_by_round(rounds: Sequence[Round], seen: Seen | None) -> Figure:
    """Returns the accuracy of seen users by round, where it was measured, over their generic accuracy."""
    measured = [(row.round, row.seen_accuracy) for row in rounds if row.seen_accuracy is not None]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        values = [value for _, value in measured]
        marker = "o" if len(measured) <= 40 else ""
        axes.plot([number for number, _ in measured], values, color=PERSONAL, marker=marker, linewidth=2.4)
        if seen is not None:
            axes.axhline(seen.generic_accuracy, color=GENERIC, linewidth=1.6)
            values = [*values, seen.generic_accuracy]
        _percent_axis(axes, values)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_title("right answers")
        axes.set_xlabel("round")

    return _figure(draw)


def gain_ecdf(unseen: Unseen) -> Figure:
    """Returns the share of users whose gain is at most x, at the headline's k; other k faintly."""
    chosen = headline_k(unseen)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for k in unseen.ks:
            if k not in ("0", chosen):
                _ecdf(axes, unseen.gains[k], alpha=0.36, linewidth=1.2)
        _ecdf(axes, unseen.gains[chosen], alpha=1.0, linewidth=2.6)
        low, high = axes.get_xlim()
        low = min(low, -0.3 * max(high, 2.0))  # leaves room for the left-hand label
        axes.axvspan(low, 0, color=HARM, alpha=0.08, linewidth=0)
        axes.axvline(0, color=AXIS, linewidth=1.4)
        axes.set_xlim(low, max(high, 2.0))
        axes.set_ylim(0, 1.015)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}{NBSP}%"))
        axes.xaxis.set_major_formatter(FuncFormatter(_signed))
        worse = sum(gain < 0 for gain in unseen.gains[chosen]) / unseen.users
        better = sum(gain > 0 for gain in unseen.gains[chosen]) / unseen.users
        axes.set_title(f"\u2190 {100 * worse:.0f}{NBSP}% worse off", loc="left", color=HARM)
        axes.set_title(f"{100 * better:.0f}{NBSP}% better off \u2192", loc="right", color=PERSONAL)
        axes.set_xlabel("gain in percentage points")

    return _figure(draw)


def _ecdf(axes: Axes, gains: Sequence[float], *, alpha: float, linewidth: float) -> None:
    axes.ecdf([100 * gain for gain in gains], color=PERSONAL, alpha=alpha, linewidth=linewidth)


def gain_by_k(unseen: Unseen) -> Figure:
    """Returns the users' gains by k: middle 80 % and 50 %, median, and the mean of the worst tenth."""
    ks, at = unseen.ks, range(len(unseen.ks))
    fan = {name: [100 * unseen.gain_quantiles[k][name] for k in ks] for name in unseen.gain_quantiles[ks[0]]}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.fill_between(at, fan["0.1"], fan["0.9"], color=PERSONAL, alpha=0.14, linewidth=0)
        axes.fill_between(at, fan["0.25"], fan["0.75"], color=PERSONAL, alpha=0.22, linewidth=0)
        axes.plot(at, fan["0.5"], color=PERSONAL, marker="o", linewidth=2.4)
        worst = [100 * unseen.worst_decile[k] for k in ks]
        axes.plot(at, worst, color=HARM, marker="v", linestyle=(0, (5, 2)), linewidth=1.8)
        axes.axhline(0, color=AXIS, linewidth=1.4)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(_signed))
        _k_axis(axes, ks)
        axes.set_title("gain in percentage points")

    return _figure(draw)


def training_curve(training: Training) -> Figure:
    """Returns the loss and the held-out accuracy by step, with the step that was kept."""

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True)
        above.plot(
            [p.step for p in training.curve], [p.loss for p in training.curve], color=GENERIC, linewidth=1.5
        )
        above.set_title("training loss")
        above.yaxis.set_major_locator(MaxNLocator(nbins=3))
        measured = [(p.step, p.heldout_accuracy) for p in training.curve if p.heldout_accuracy is not None]
        values = [value for _, value in measured]
        below.plot([step for step, _ in measured], values, color=PERSONAL, marker="o", markersize=3.5)
        _percent_axis(below, values, bins=3)
        below.set_title("right answers, held-out examples")
        below.set_xlabel("step")
        for axes in (above, below):
            axes.axvline(training.best_step, color=BEST, linestyle=(0, (1, 1.8)), linewidth=1.8)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))

    return _figure(draw, 265 / 72)


def _percent_axis(axes: Axes, values: Sequence[float], bins: int = 6) -> None:
    if values:
        axes.set_ylim(max(0.0, min(values) - _ROOM), min(1.0, max(values) + _ROOM))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=bins, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}{NBSP}%"))


def _k_axis(axes: Axes, ks: Sequence[str]) -> None:
    # One place per k: the eye should see each doubling, and 0 has no place on a logarithm.
    axes.set_xticks(range(len(ks)), ks)
    axes.set_xlim(-0.25, len(ks) - 0.75)
    axes.set_xlabel("own examples of the person (k)")


def _signed(value: float, _: int) -> str:
    text = f"{abs(value):g}"
    if text == "0":
        return text
    return ("+" if value > 0 else MINUS) + text
