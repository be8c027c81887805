"""How many texts of a graph run fit into the memory that a process may take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.learning import NO_SHARED, Encoded, encode_examples
from umbel.shared.errors import ConfigError
from umbel.shared.examples import Example
from umbel.shared.onboarding import UNKNOWN
from umbel.shared.text import TokenBatch

_MIB = 1 << 20
_MOST_ROWS = 32  # what a graph run takes when nothing limits it
_USABLE = 0.95  # texts of other lengths, and what is around the graphs, took 4 % of what a process had
_SPARE = 1.25  # memory falls to pieces; and what was seen is a text or two, not all of them
_PAGES = Path("/proc/self/statm")


def fitting_rows(
    engine: Engine, examples: Sequence[Example], texts: Sequence[str], memory_mib: int
) -> int | None:
    """Returns how many texts a graph run may take, a power of two, by what some take that are tried.

    The graphs are opened with two tokens. Then the longest text is run once, then two of it at a time, and so
    on, while what the process would have then, by what it grew, stays below the limit. What it has already
    counts, the encoder's mapped weights with it.

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
    limit = int(memory_mib * _MIB * _USABLE)
    longest = _longest(engine, examples, texts)
    _run(engine, _beginning(longest))
    last = resident_bytes()
    _run(engine, longest)
    rows, now = 1, resident_bytes()
    if now > limit:
        raise _too_little(now, memory_mib)
    while rows < _MOST_ROWS and now + 2 * _SPARE * max(now - last, 0) <= limit:
        _run(engine, longest.rows([0] * 2 * rows))
        last, now = now, resident_bytes()
        if now > limit:
            break
        rows *= 2
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


def _too_little(now: int, memory_mib: int) -> ConfigError:
    needed = int(now / _USABLE) // _MIB + 1
    return ConfigError(
        "learning does not fit into --max-memory",
        [f"one text at a time takes {needed} MiB in all, allowed are {memory_mib}"],
        "Allow more, or learn on another machine.",
    )


def _longest(engine: Engine, examples: Sequence[Example], texts: Sequence[str]) -> Encoded:
    """Returns the text of most tokens."""
    own = encode_examples(engine, examples)
    further = Encoded(engine.encode(texts), np.full(len(texts), UNKNOWN, np.int64))
    known = own if not texts or not engine.onboards else max(own, further, key=_width)
    return known.rows([int(known.tokens.mask.sum(1).argmax())])


def _width(known: Encoded) -> int:
    return int(known.tokens.mask.sum(1).max(initial=0))


def _beginning(own: Encoded) -> Encoded:
    """Returns a text's first two tokens."""
    return Encoded(TokenBatch(own.tokens.ids[:, :2], own.tokens.mask[:, :2]), own.labels)


def _run(engine: Engine, own: Encoded) -> None:
    """Runs what learning runs on texts, twice: onnxruntime takes more when it has seen a size before."""
    nobody, owner = engine.release.manifest.profile.zeros(1), np.zeros(len(own), np.int64)
    for _ in range(2):
        if engine.embeds:
            engine.read(own.tokens, NO_SHARED)
        else:
            engine.learn(own.tokens, np.maximum(own.labels, 0), owner, nobody, NO_SHARED)
            engine.predict(own.tokens, owner, nobody, NO_SHARED)
