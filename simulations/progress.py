"""Shows people how a long run goes: a bar per phase on a terminal, plain lines where there is none."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from umbel.coordinator.pace import Pace


def told_written(written: Sequence[Path], as_json: bool) -> str:
    """Returns in words, or as JSON, that a page and its figures were written; the page comes first."""
    if as_json:
        return json.dumps({"page": str(written[0]), "figures": [str(path) for path in written[1:]]})
    return f"Wrote {written[0]} and {len(written) - 1} figures."


@final
class Bar:
    """The bar of one phase."""

    def __init__(self, name: str, rich: RichProgress, task: TaskID):
        self._name = name
        self._rich = rich
        self._task = task
        self.note = ""
        self._pace = Pace()
        self._pace.begins(name)

    def step(self, done: int, total: int, words: str = "") -> None:
        """Shows that `done` of `total` are done, and a few words on how it goes."""
        self.note = words or self.note
        self._rich.update(self._task, completed=done, total=total, words=words)
        if done < total:
            self._tell(f"{done}/{total} {words}".rstrip())

    def tells(self, done: int, total: int, lines: Sequence[str]) -> None:
        """Shows that `done` of `total` are done, and lines on it that stay."""
        self._rich.update(self._task, completed=done, total=total, words="")
        for line in lines:
            self._rich.console.print(f"    {line}", highlight=False, markup=False)

    def training(self, phase: str, done: int, total: int, words: str) -> None:
        """Shows a step of training or of choosing the recipe."""
        self.step(done, total, f"{phase} {words}".strip() if phase != "train" else words)

    def words(self, text: str) -> None:
        """Shows what is being done, where there is nothing to count."""
        self._rich.update(self._task, words=text)
        self._tell(text)

    def _tell(self, words: str) -> None:
        """Writes a line now and then where no bar can be drawn, so that a log shows that work goes on."""
        if not self._rich.console.is_terminal and self._pace.due(self._name):
            self._rich.console.print(f"    {self._name}: {words}", highlight=False, markup=False)


@final
class Progress:
    """Phases of a run, shown on stderr, so that stdout holds nothing but the result."""

    def __init__(self, *, quiet: bool = False, lines: bool = False):
        """Args: quiet shows nothing; lines draws no bars, as for processes that share a terminal."""
        self.console = Console(stderr=True, quiet=quiet)
        self._draws = self.console.is_terminal and not lines

    def say(self, words: str) -> None:
        """Prints a line between phases."""
        self.console.print(f"  {words}", highlight=False, markup=False)

    @contextmanager
    def phase(self, name: str) -> Iterator[Bar]:
        """Shows a phase while the block runs, and a line with its seconds at its end."""
        begun = time.perf_counter()
        with RichProgress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self._draws,
        ) as rich:
            bar = Bar(name, rich, rich.add_task(name, total=None, words=""))
            yield bar
        seconds = time.perf_counter() - begun
        note = f"  {bar.note}" if bar.note else ""
        self.console.print(f"  [green]✓[/green] {name}  [dim]{seconds:.1f} s{note}[/dim]", highlight=False)
