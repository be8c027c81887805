"""Learning within a limit of memory: as many rows at a time as fit by what some take, or a clear refusal."""

from typing import Any

import pytest
from tests.device_client.test_learning import ENGINE, shared
from tests.linear_engine import WORDS

from umbel.device_client import memory
from umbel.shared.errors import ConfigError
from umbel.shared.examples import Example

MINE = [Example("owner", "good", "yes"), Example("owner", " ".join(WORDS), "no")]
MIB = 1 << 20


class Costly:
    """An engine whose process has 100 MiB once its graphs are open, and keeps a MiB for every token run."""

    embeds = False

    def __init__(self) -> None:
        self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(ENGINE, name)

    def learn(self, tokens: Any, labels: Any, owner: Any, profile: Any, _: Any) -> Any:
        self.most = max(self.most, tokens.ids.size)
        return ENGINE.learn(tokens, labels, owner, profile, shared())

    def predict(self, tokens: Any, owner: Any, profile: Any, _: Any) -> Any:
        return ENGINE.predict(tokens, owner, profile, shared())

    def resident(self) -> int:
        return (100 + self.most) * MIB


@pytest.mark.parametrize(
    ("limit", "rows"),
    # One row of 5 words: 105. The next is tried where now + 2.5 times the last growth fits: 3, 5, 10, ...
    [(105, 1), (112, 1), (113, 2), (122, 2), (123, 4), (145, 8), (190, 16), (280, None), (10_000, None)],
)
def test_rows_are_as_many_as_fit(limit: int, rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Costly()
    monkeypatch.setattr(memory, "resident_bytes", engine.resident)
    monkeypatch.setattr(memory, "_USABLE", 1.0)
    assert memory.fitting_rows(engine, MINE, [], limit) == rows
    assert engine.resident() <= limit * MIB


def test_what_does_not_fit_is_refused_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Costly()
    monkeypatch.setattr(memory, "resident_bytes", engine.resident)
    with pytest.raises(ConfigError, match="111 MiB"):  # 105 are 95 % of them
        memory.fitting_rows(engine, MINE, [], 110)
    assert memory.fitting_rows(engine, MINE, [], 111) == 1  # its process has grown already, so two are tried


def test_the_process_knows_what_it_has() -> None:
    before = memory.resident_bytes()
    held = bytearray(b"x" * (64 * MIB))
    assert 0.9 * len(held) < memory.resident_bytes() - before < 1.5 * len(held)
    assert memory.peak_bytes() >= 0.95 * memory.resident_bytes()
    del held
