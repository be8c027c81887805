"""What every test shares: a quiet, offline process, and the `device` marker given by folder."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Release

# Set before any test module is imported, and inherited by every process that a test starts.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of as many processes as there are cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes is the machine's business: no test is timed.
settings.register_profile("umbel", deadline=None)
settings.load_profile("umbel")

ROOT = Path(__file__).parents[1]
DEVICE_FOLDERS = ("tests/shared", "tests/device_client", "src/umbel/shared", "src/umbel/device_client")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what a device can run, so that no one has to remember to: `make device` selects by this marker.

    A test in a device's folder that needs more than the device extra, such as pyarrow, is marked `full`.
    """
    for item in items:
        of_device = any(item.path.is_relative_to(ROOT / folder) for folder in DEVICE_FOLDERS)
        if of_device and item.get_closest_marker("full") is None:
            item.add_marker(pytest.mark.device)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A small but real release, made once: a random BERT of width 32, PLoRA, graphs. Needs torch."""
    from tests.builders import tiny_release as build

    return build(tmp_path_factory.mktemp("tiny-release"))


@pytest.fixture(scope="session")
def onboarding_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The same with an onboarding network."""
    from tests.builders import tiny_release as build

    return build(tmp_path_factory.mktemp("onboarding-release"), onboarding=True)


@pytest.fixture(scope="session")
def embedded_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release whose methods act on texts' embeddings alone, with onboarding and cross-validation."""
    from tests.builders import EMBEDDED
    from tests.builders import tiny_release as build

    folder, recipe = tmp_path_factory.mktemp("embedded-release"), LearningRecipe(steps=6, folds=3, start=1.0)
    return build(folder, onboarding=True, methods=EMBEDDED, recipe=recipe)


@pytest.fixture(scope="session")
def int8_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The small release with the graph that reads texts in 8 bits."""
    from tests.builders import tiny_release as build

    return build(tmp_path_factory.mktemp("int8-release"), int8=True)


@pytest.fixture(scope="session")
def taught_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The same, and rounds train the network, too."""
    from tests.builders import tiny_release as build

    return build(tmp_path_factory.mktemp("taught-release"), onboarding=True, taught=True)
