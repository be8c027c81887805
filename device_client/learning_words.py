"""What a terminal shows of learning: how far it is, what came of it, and how Ctrl-C stops it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self, final

if TYPE_CHECKING:
    from umbel.device_client.own_learning import Progress
    from umbel.device_client.runs import Outcome

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FIGURES = ("nll_generic", "nll_personal", "strength")
_FEW = 20  # of so few held-out examples, one more or less right is more than any gain


@final
class Stops:
    """While it is open, the first Ctrl-C or SIGTERM is a wish to stop; the second one ends the process."""

    def __init__(self) -> None:
        self._wished = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Says whether somebody wishes to stop."""
        return self._wished

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may take signals
            self._before = {kind: signal.signal(kind, self._wish) for kind in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _wish(self, _number: int, _frame: FrameType | None) -> None:
        self._wished = True
        self._restore()

    def _restore(self) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)
        self._before = {}


def bar(quiet: bool) -> Callable[[Progress], None] | None:
    """Returns what draws a line of progress on stderr, where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        return None

    def draw(at: Progress) -> None:
        sys.stderr.write(f"\r\x1b[K{at.doing} {at.done}/{at.total}")
        sys.stderr.flush()

    return draw


def end_bar(quiet: bool) -> None:
    """Takes the line of progress away."""
    if not quiet and sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def as_json(found: Outcome) -> dict[str, Any]:
    """Returns what scripts are told of learning."""
    told: dict[str, Any] = {"finished": found.finished, "changed": found.changed, "resumed": found.resumed}
    if found.progress is not None:
        told |= {"doing": found.progress.doing, "done": found.progress.done, "total": found.progress.total}
    if found.about is not None:
        told |= {name: found.about.get(name) for name in ("bytes", "examples", "steps", "precision")}
        told |= {name: round(float(found.about[name]), 6) for name in _FIGURES}
        held_out = found.about.get("held_out")
        rounded = {name: round(value, 6) for name, value in (held_out or {}).items()}
        told["held_out"] = rounded or None
    return told | {"seconds": round(found.seconds, 3), "notes": list(found.notes)}


def as_words(found: Outcome) -> str:
    """Returns what people are told of learning, a sentence or two a line."""
    if found.progress is not None:
        at = found.progress
        return (
            f"Stopped while {at.doing}, {at.done} of {at.total} done, after {found.seconds:.1f} s in all. "
            "It is kept: 'umbel device learn' goes on. Until then predictions are as before."
        )
    assert found.about is not None
    if not found.changed:
        return (
            "Nothing has changed since your profile was learned, so it is as it was (--anew learns again).\n"
            + gain(found.about)
        )
    before, after = found.about["nll_generic"], found.about["nll_personal"]
    words = (
        f"Learned from {found.about['examples']} examples in {found.seconds:.1f} s. On them the loss went "
        f"from {before:.3f} to {after:.3f}.\n"
    )
    if after > before:
        words += "That is worse than without a profile: use --generic with predict, or give more examples.\n"
    return words + gain(found.about) + strength(found.about["strength"])


def strength(share: float) -> str:
    """Returns how much of what was learned is used, as a line; none where it is all."""
    if share == 1.0:
        return ""
    if share == 0.0:
        return "On examples held out it did not help, so predictions stay as they are for everybody.\n"
    return f"By how it did on examples held out, {share:.0%} of it is used.\n"


def gain(about: Mapping[str, Any]) -> str:
    """Returns what a profile gains on held-out examples, as a line; none where that is not known."""
    held = about.get("held_out")
    if held is None:
        return ""
    words = (
        f"On examples that it had not learned from, {held['accuracy_personal']:.0%} are right with it, "
        f"{held['accuracy_generic']:.0%} without; the loss is {held['nll_personal']:.3f}, not "
        f"{held['nll_generic']:.3f}."
    )
    if held["examples"] < _FEW:
        words += f" But {held['examples']} are too few to tell."
    return words + "\n"
