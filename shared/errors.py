"""Typed errors. Each one lists every problem found, so that bad input is mended in one go.

An error text names places (file, line, user id, tensor name) and values that are not private. It never holds
an example's text, a label given by a person, or a number out of a profile.
"""

from collections.abc import Iterable, Sequence

_SHOWN = 20


class UmbelError(Exception):
    """Base of all umbel errors: a headline, every problem found, and what to do next.

    Attributes:
        headline: What could not be done.
        problems: Every problem found, one line each.
        hint: What the reader can do next; empty if nothing helps.
    """

    exit_code = 2

    def __init__(self, headline: str, problems: Iterable[str] = (), hint: str = "") -> None:
        self.headline = headline
        self.problems: Sequence[str] = tuple(problems)
        self.hint = hint
        super().__init__(self.render())

    def render(self) -> str:
        """Returns the message as text: headline, problems (the first 20, then a count), hint."""
        lines = [self.headline]
        lines += [f"  - {problem}" for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"  ... and {len(self.problems) - _SHOWN} more")
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)

    def __reduce__(self) -> tuple[type["UmbelError"], tuple[str, tuple[str, ...], str]]:
        return type(self), (self.headline, tuple(self.problems), self.hint)


class ExampleError(UmbelError):
    """Examples are malformed, have unknown labels, or are too few."""


class DataError(UmbelError):
    """A data set in a public format cannot be imported."""


class ConfigError(UmbelError):
    """A configuration has unknown keys or values out of range."""


class BackboneError(UmbelError):
    """A backbone is missing, of an unknown shape, or not the one that was pinned."""


class ProfileError(UmbelError):
    """A profile is damaged or belongs to another release."""


class StoreError(UmbelError):
    """An owner's store is missing, damaged, or does not open with the key or passphrase that was given."""


class ReleaseError(UmbelError):
    """A release is damaged, incomplete, of another version, or does not agree with its model."""


class MessageError(UmbelError):
    """A round message holds something that it may not, or lacks something that it must hold."""


class EgressError(UmbelError):
    """Something was not let out of a device: it is not on the list, or its owner's policy says no."""


class LinkError(UmbelError):
    """A coordinator cannot be reached, is not the one that a device joined, or does not take it in."""


class BundleError(UmbelError):
    """A coordinator sent code to be run; a device runs what its owner installed, and nothing else."""


class TrainingError(UmbelError):
    """Training cannot start, go on or be resumed."""


class BusyError(UmbelError):
    """Another process is at work in the same folder."""


class MissingExtraError(UmbelError):
    """A part of umbel that this command needs is not installed."""
