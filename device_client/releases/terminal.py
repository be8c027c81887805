"""What commands say of releases while they are fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from umbel.device_client.releases.fetching import OnBytes
    from umbel.device_client.releases.trust import Pin


def given_pin(root: Path | None, sha256: str | None, first_use: bool) -> Pin | None:
    """Returns whom an owner says to trust; None if they say nothing.

    Raises:
        ReleaseError: They say it in several ways, or the pin is none.
    """
    from umbel.device_client.releases.trust import Pin

    return None if root is None and sha256 is None and not first_use else Pin(root, sha256, first_use)


@contextmanager
def fetching_bar(quiet: bool) -> Iterator[OnBytes | None]:
    """Gives what draws a bar on stderr while a release is fetched, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=quiet)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("fetching"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task("fetching", total=None)

    def on_bytes(here: int, total: int) -> None:
        if here < total:
            progress.start()  # as long as it is drawn, nothing else can be
        progress.update(task, completed=here, total=total)
        if here >= total:
            progress.stop()

    try:
        yield on_bytes
    finally:
        progress.stop()
