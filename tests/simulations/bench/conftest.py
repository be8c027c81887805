"""A work folder with the tiny encoder's release, made once."""

from pathlib import Path

import pytest

from umbel.simulations.bench.sides import Settings, Sides

TINY = Settings(models=("tiny",), threads=(1,), repetitions=1, quick=True)


@pytest.fixture(scope="session")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    folder = tmp_path_factory.mktemp("bench")
    return Sides(folder, TINY, None, lambda _: None)


@pytest.fixture(scope="session")
def staged(sides: Sides) -> Path:
    return sides.staged("tiny")
