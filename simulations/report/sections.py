"""The parts of a report: each a figure or a table, what it shows in words, and its numbers."""

import json
import shlex
from collections.abc import Iterator, Sequence

from umbel.device_client.engine import ONNXRUNTIME
from umbel.simulations.report import plots, words
from umbel.simulations.report.markup import Line, bars, details, figure, panel, pre, table
from umbel.simulations.report.svg import inline
from umbel.simulations.report.words import NBSP, percent, points
from umbel.simulations.results import QUANTILES, CurvePoint, Result, Training, Unseen

_NUMBERS = "The numbers"
_CURVE_ROWS = 40


def all_panels(result: Result) -> Iterator[str]:
    """Yields every section as HTML, in reading order; those without data are left out."""
    yield accuracy(result.unseen)
    yield ecdf(result.unseen)
    yield spread(result.unseen)
    if any(row.seen_accuracy is not None for row in result.rounds):
        yield rounds(result)
    if result.training is not None and result.training.curve:
        yield training(result.training)
    yield costs(result)
    yield origins(result)


def accuracy(unseen: Unseen) -> str:
    """Returns accuracy against k, beside its numbers."""
    legend: list[tuple[str, Line, str]] = [
        ("personal", "solid", "personal"),
        ("personal", "band", f"95{NBSP}% interval of its gain"),
        ("bias", "dashed", "generic + private bias"),
        ("generic", "solid", "generic"),
    ]
    if unseen.bayes_accuracy is not None:
        legend.append(("best", "dotted", f"best possible, personal ({percent(unseen.bayes_accuracy)})"))
    if unseen.generic_bayes_accuracy is not None:
        best = percent(unseen.generic_bayes_accuracy)
        legend.append(("generic", "dotted", f"best possible, the same for everyone ({best})"))
    title = "Accuracy by number of own examples"
    caption = f"Mean over {words.counted(unseen.users, 'person', 'people')} whom the model had never met."
    svg = inline(plots.accuracy_by_k(unseen), "accuracy", title, words.headline(unseen))
    headings = ("k", "generic", "+ bias", "personal", "gain", f"95{NBSP}% interval")
    rows = [
        (
            k,
            f"{100 * unseen.generic_accuracy[k]:.1f}",
            f"{100 * unseen.bias_accuracy[k]:.1f}",
            f"{100 * unseen.personal_accuracy[k]:.1f}",
            points(unseen.personal_accuracy[k] - unseen.generic_accuracy[k]),
            words.interval(unseen.intervals[k]),
        )
        for k in unseen.ks
    ]
    note = "Right answers in per cent; gain over generic in percentage points."
    numbers = table(headings, rows, chosen=words.headline_k(unseen), note=note)
    folded = details(_NUMBERS, numbers, is_open=True)
    body = f'<div class="split">{figure(svg, legend)}{folded}</div>'
    return panel(title, caption, body, css="wide")


def ecdf(unseen: Unseen) -> str:
    """Returns the distribution of the users' gains."""
    k = words.headline_k(unseen)
    title = f"Each person's gain at {words.at_k(k)}"
    caption = "Share of people whose accuracy rose by at most so much over the generic model. " + words.harm(
        unseen, k
    )
    legend: list[tuple[str, Line, str]] = [("personal", "solid", words.at_k(k))]
    if others := [other for other in unseen.ks if other not in ("0", k)]:
        legend.append(("personal", "faint", f"k = {', '.join(others)}"))
    svg = inline(plots.gain_ecdf(unseen), "ecdf", title, caption)
    rows = [
        (
            other,
            percent(unseen.harmed_share[other], 0),
            percent(sum(gain == 0 for gain in unseen.gains[other]) / unseen.users, 0),
            percent(sum(gain > 0 for gain in unseen.gains[other]) / unseen.users, 0),
        )
        for other in unseen.ks
    ]
    numbers = table(("k", "worse off", "unchanged", "better off"), rows, chosen=k)
    return panel(title, caption, figure(svg, legend) + details(_NUMBERS, numbers))


def spread(unseen: Unseen) -> str:
    """Returns the spread of gains and the worst tenth of people, by k."""
    k = words.headline_k(unseen)
    title = "The worst tenth of people"
    worst = points(unseen.worst_decile[k])
    caption = f"The tenth of people who gain least at {words.at_k(k)}: {worst} points on average."
    legend: list[tuple[str, Line, str]] = [
        ("personal", "solid", "median gain"),
        ("personal", "band", f"middle 50{NBSP}% and 80{NBSP}%"),
        ("harm", "dashed", "mean of the worst tenth"),
    ]
    svg = inline(plots.gain_by_k(unseen), "spread", title, caption)
    note = "Gain in percentage points: mean of the worst tenth, and quantiles over people."
    headings = ("k", "worst tenth", *(f"{100 * float(name):.0f}{NBSP}%" for name in QUANTILES))
    rows = [
        (
            other,
            points(unseen.worst_decile[other]),
            *(points(unseen.gain_quantiles[other][name]) for name in QUANTILES),
        )
        for other in unseen.ks
    ]
    return panel(
        title, caption, figure(svg, legend) + details(_NUMBERS, table(headings, rows, chosen=k, note=note))
    )


def rounds(result: Result) -> str:
    """Returns the accuracy of seen users by round, with clients, bytes and seconds of each."""
    title = "Rounds with the people seen in training"
    legend: list[tuple[str, Line, str]] = [("personal", "solid", "after each round")]
    measured = [row for row in result.rounds if row.seen_accuracy is not None]
    last = measured[-1]
    caption = (
        f"Held-out examples of seen people: {percent(last.seen_accuracy or 0.0)} after round {last.round}"
    )
    if result.seen is not None:
        caption += f"; the generic model {percent(result.seen.generic_accuracy)}"
        legend.append(("generic", "solid", "generic"))
    svg = inline(plots.accuracy_by_round(result.rounds, result.seen), "rounds", title, caption + ".")
    note = (
        "Bytes of all clients of the round together. Refused are those of the failed whose answer broke the "
        "contract; they are left out of the next rounds."
    )
    costs = [row.epsilon for row in result.rounds if row.epsilon is not None]
    if costs:
        caption += f". Noise was on the rounds' sums: in all they cost epsilon {costs[-1]:.3g}"
        note += (
            " Epsilon is what the rounds up to this one have cost, at the configuration's delta; "
            "the noise of a simulation follows from its seed."
        )
    headings: tuple[str, ...] = ("round", "clients", "failed", "refused", "up", "down", "seconds", "right")
    headings += ("epsilon",) if costs else ()
    rows = [
        (
            str(row.round),
            str(row.clients),
            str(row.failures),
            str(row.refused),
            words.size(row.bytes_up),
            words.size(row.bytes_down),
            f"{row.seconds:.1f}",
            "" if row.seen_accuracy is None else percent(row.seen_accuracy),
            *(("" if row.epsilon is None else f"{row.epsilon:.3g}",) if costs else ()),
        )
        for row in result.rounds
    ]
    return panel(
        title, caption + ".", figure(svg, legend) + details(_NUMBERS, table(headings, rows, note=note))
    )


def training(run: Training) -> str:
    """Returns the coordinator's training curve."""
    title = "Training on the coordinator"
    caption = (
        f"{run.steps:,} steps, {run.epochs:.1f} epochs over {run.train_examples:,} examples; "
        f"step {run.best_step:,} was kept."
    )
    legend: list[tuple[str, Line, str]] = [
        ("generic", "solid", "loss"),
        ("personal", "solid", "held-out accuracy"),
        ("best", "dotted", "kept step"),
    ]
    svg = inline(plots.training_curve(run), "training", title, caption)
    points_shown = thinned([p for p in run.curve if p.heldout_accuracy is not None] or run.curve)
    rows = [
        (
            f"{p.step:,}",
            f"{p.loss:.4f}",
            "" if p.heldout_accuracy is None else percent(p.heldout_accuracy),
        )
        for p in points_shown
    ]
    chosen = f"{run.best_step:,}"
    numbers = table(("step", "loss", "held-out accuracy"), rows, chosen=chosen)
    return panel(title, caption, figure(svg, legend) + details(_NUMBERS, numbers))


def thinned(rows: Sequence[CurvePoint], most: int = _CURVE_ROWS) -> list[CurvePoint]:
    """Returns at most `most` rows, evenly spread, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def costs(result: Result) -> str:
    """Returns the seconds of each phase as bars."""
    longest = max(result.seconds.values(), default=0.0) or 1.0
    rows = [(name, spent / longest, words.duration(spent)) for name, spent in result.seconds.items()]
    machine = result.machine
    cpus, threads = (
        words.counted(machine.cpus, "CPU", "CPUs"),
        words.counted(machine.threads, "thread", "threads"),
    )
    caption = f"On {cpus} with {threads}, {machine.gpu or 'no GPU'}, Python {machine.python}."
    versions = table(("library", "version"), list(machine.versions.items()), names=True)
    return panel("Where the time went", caption, bars(rows) + details("Versions", versions))


def origins(result: Result) -> str:
    """Returns how to make this result again, its data and its configuration."""
    words = ["umbel", "simulate", result.experiment, "--seed", str(result.seed), "--engine", result.engine]
    command = shlex.join([*words, *([] if result.compute == ONNXRUNTIME else ["--compute", result.compute])])
    data = result.data
    rows = [
        ("data", data.name),
        ("examples", f"{data.examples:,}"),
        ("labels", f"{data.labels:,}"),
        ("people seen in training", f"{data.users_seen:,}"),
        ("new people", f"{data.users_unseen:,}"),
        ("people with too few examples", f"{data.users_skipped:,}"),
        ("backbone", result.backbone.name),
        ("release", result.release),
    ]
    body = pre(command) + details("Data and release", table(("", ""), rows, names=True))
    configuration = json.dumps(dict(result.config), indent=2, ensure_ascii=False)
    body += details("Configuration", pre(configuration))
    return panel("Make it again", "With the configuration below, the same seed gives the same numbers.", body)
