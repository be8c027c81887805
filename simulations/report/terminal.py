"""The summary that a command prints at its end."""

from rich.table import Table
from rich.text import Text

from umbel.simulations.report.words import MINUS, NBSP, counted, headline_k, interval, percent, points
from umbel.simulations.results import Result, Unseen


def terminal_table(result: Result) -> Table:
    """Returns accuracy by k of the unseen users; the headline's k stands out."""
    unseen = result.unseen
    title = f"{result.experiment}: {counted(unseen.users, 'person', 'people')} the model had never met"
    table = Table(title=Text(title), title_justify="left")
    for heading in ("k", "generic", "+ bias", "personal", "gain [95 %]"):
        table.add_column(heading, justify="right", no_wrap=True)
    if unseen.bayes_accuracy is not None:
        table.add_column("Bayes-optimal", justify="right", no_wrap=True)
    for k in unseen.ks:
        table.add_row(*_cells(unseen, k), style="bold" if k == headline_k(unseen) else "")
    return table


def _cells(unseen: Unseen, k: str) -> list[str]:
    gain = points(unseen.personal_accuracy[k] - unseen.generic_accuracy[k])
    low, high = unseen.intervals[k]
    colour = "green" if low > 0 else "red" if high < 0 else "default"
    cells = [
        k,
        percent(unseen.generic_accuracy[k]),
        percent(unseen.bias_accuracy[k]),
        percent(unseen.personal_accuracy[k]),
        f"[{colour}]{gain} \\[{interval((low, high))}][/{colour}]",
    ]
    if unseen.bayes_accuracy is not None:
        cells.append(percent(unseen.bayes_accuracy))
    # Plain characters: not every terminal has the typographic ones.
    return [cell.replace(MINUS, "-").replace(NBSP, " ") for cell in cells]
