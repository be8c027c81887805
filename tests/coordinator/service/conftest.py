"""Federations of real processes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.federation import Federation

from umbel.shared.release import Release


@pytest.fixture
def federation(tmp_path: Path, tiny_release: Release) -> Iterator[Callable[[int], Federation]]:
    """Makes federations of some devices, and leaves nothing of them running."""
    made: list[Federation] = []

    def make(devices: int) -> Federation:
        made.append(Federation(tmp_path / f"{len(made)}", tiny_release, devices))
        return made[-1]

    yield make
    for own in made:
        own.close()
