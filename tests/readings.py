"""How many texts encoders have read."""

from typing import Any

import pytest

from umbel.device_client.engine import Engine


def counted_readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list to which every reading from now on adds how many texts it was of."""
    read: list[int] = []
    plain = Engine.read

    def counted(engine: Engine, tokens: Any, shared: Any) -> Any:
        read.append(len(tokens))
        return plain(engine, tokens, shared)

    monkeypatch.setattr(Engine, "read", counted)
    return read
