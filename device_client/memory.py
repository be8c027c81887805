"""How many texts of a graph run fit into the memory that a process may take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.learning import NO_SHARED, Encoded, encode_examples
from umbel.shared.errors import ConfigError
from umbel.shared.examples import Example
from umbel.shared.onboarding import UNKNOWN

_MIB = 1 << 20
_MOST_ROWS = 32  # what a graph run takes when nothing limits it
_SPARE = 1.25  # memory falls to pieces; and what was seen is a text or two, not all of them
_PAGES = Path("/proc/self/statm")


def fitting_rows(
    engine: Engine, examples: Sequence[Example], texts: Sequence[str], memory_mib: int
) -> int | None:
    """Returns how many texts a graph run may take, a power of two, by what some take that are tried.

    The longest text is run once, then twice at a time, and so on, while what the process has then, by what it
    grew, stays below the limit. What it has already counts, the encoder's mapped weights with it.

    Args:
        engine: The release, nothing of it limited yet.
        examples: The owner's examples.
        texts: Further texts of theirs.
        memory_mib: What the process may take at most, in MiB.

    Returns:
        None where as many fit as are taken anyway.

    Raises:
        ConfigError: Not even one text at a time fits.
    """
    limit = memory_mib * _MIB
    longest = _longest(engine, examples, texts)
    run = _reader(engine, longest) if engine.embeds else _learner(engine, longest)
    before = resident_bytes()
    run(1)
    rows, last, now = 1, before, resident_bytes()
    _check(now, limit)
    while rows < _MOST_ROWS and now + 2 * _SPARE * max(now - last, 0) <= limit:
        rows *= 2
        run(rows)
        last, now = now, resident_bytes()
    return None if rows == _MOST_ROWS else rows


def resident_bytes() -> int:
    """Returns what the process has in memory; where the system does not tell, the most that it had."""
    if _PAGES.is_file():
        import resource

        return int(_PAGES.read_text().split()[1]) * resource.getpagesize()
    return peak_bytes()


def peak_bytes() -> int:
    """Returns the most that the process had in memory."""
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _check(now: int, limit: int) -> None:
    if now > limit:
        raise ConfigError(
            "learning does not fit into --max-memory",
            [f"one text at a time takes {-(-now // _MIB)} MiB in all, allowed are {limit // _MIB}"],
            f"Allow {int(now * 1.1) // _MIB + 1} MiB or more, or learn on another machine.",
        )


def _longest(engine: Engine, examples: Sequence[Example], texts: Sequence[str]) -> Encoded:
    """Returns the text of most tokens."""
    own = encode_examples(engine, examples)
    further = Encoded(engine.encode(texts), np.full(len(texts), UNKNOWN, np.int64))
    known = own if not texts or not engine.onboards else max(own, further, key=_width)
    return known.rows([int(known.tokens.mask.sum(1).argmax())])


def _width(known: Encoded) -> int:
    return int(known.tokens.mask.sum(1).max(initial=0))


def _reader(engine: Engine, longest: Encoded) -> Callable[[int], object]:
    return lambda rows: engine.read(longest.rows([0] * rows).tokens, NO_SHARED)


def _learner(engine: Engine, longest: Encoded) -> Callable[[int], object]:
    nobody = engine.release.manifest.profile.zeros(1)

    def run(rows: int) -> object:
        own = longest.rows([0] * rows)
        labels = np.maximum(own.labels, 0)
        return engine.learn(own.tokens, labels, np.zeros(rows, np.int64), nobody, NO_SHARED)

    return run
