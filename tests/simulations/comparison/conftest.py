"""The tiny encoder and the small world that tests of contestants share, a module at a time."""

import pytest
from tests.coordinator.conftest import tiny_config, write_backbone
from tests.simulations.comparison.small_world import small_world

from umbel.coordinator.backbone import Backbone, load_backbone
from umbel.simulations.comparison.contestant import World


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(write_backbone(tmp_path_factory.mktemp("bert"), tiny_config("bert"))))


@pytest.fixture(scope="module")
def world(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(backbone, tmp_path_factory.mktemp("world"))
