from pathlib import Path

import pytest
from tests.channels import Publisher


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """A channel without a release."""
    made = Publisher(tmp_path / "channel", tmp_path / "keys")
    made.channel.create()
    return made
