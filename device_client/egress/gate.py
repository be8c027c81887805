"""The gate: the one function through which everything passes that leaves a device.

It checks an answer against what may leave (`allowed.py`), asks the owner's policy, and writes down what
leaves, when and to whom; only then does it hand the answer back to be sent. What was written down and then
did not leave, because the power failed in between, say, does no harm; the other way round would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, Protocol, final

from umbel.device_client.egress.allowed import Allowed
from umbel.shared.errors import EgressError
from umbel.shared.messages import Wire

_HINT = "Nothing was sent. What was refused, and why, is in: umbel device egress."


@final
@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, as far as a transport tells.

    Attributes:
        run: The run's number.
        node: The number that the transport gave this device.
        sender: The number of the node that asks.
        coordinator: What the owner calls the coordinator, if they named it.
    """

    run: int = 0
    node: int = 0
    sender: int = 0
    coordinator: str = ""


@final
@dataclass(frozen=True, slots=True)
class Departure:
    """What the log says of an answer, besides when and whether it left; nothing private is in it.

    Attributes:
        kind: "query", "query.gain", "train", "evaluate", "error", or a stage of a secure sum, such as
            "train.collect".
        to: Who asked.
        release: The release's id; empty where the answer does not depend on one.
        round: The task's round; None where there is no task.
        bytes: What it has, the transport's own not counted.
        tensors: How many it has.
        norm: L2 norm of all tensors together; None if there are none, they are masked, or it is no number.
    """

    kind: str
    to: Asker
    release: str = ""
    round: int | None = None
    bytes: int = 0
    tensors: int = 0
    norm: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns it as a row of the log."""
        return asdict(self)


class Door(Protocol):
    """The owner's side of the gate: their policy and their log."""

    def refusals(self) -> list[str]:
        """Returns what the owner's policy says against any answer now, one line each."""

    def enter(self, departure: Departure, problems: Sequence[str]) -> list[str]:
        """Writes an entry of the log, and returns all that speaks against the answer.

        Args:
            departure: What would leave.
            problems: What speaks against it already.
        """


def leave(wire: Wire, allowed: Allowed, door: Door, to: Asker) -> Wire:
    """Lets an answer leave: checked, allowed and written down.

    Args:
        wire: The answer.
        allowed: What may leave.
        door: The owner's policy and log.
        to: Who asked.

    Returns:
        The answer, to be handed to the transport.

    Raises:
        EgressError: It may not leave; all problems are listed, and none of its content is quoted.
        StoreError: It cannot be written down, so it does not leave.
    """
    found = allowed.judged(wire)
    tensors = len(wire.arrays)
    departure = Departure(allowed.kind, to, allowed.release, allowed.round, found.size, tensors, found.norm)
    _refuse(door.enter(departure, found.problems))
    return wire


def admit(kind: str, door: Door, to: Asker) -> None:
    """Asks the policy before any work is done for an answer; what it refuses is written down, too.

    Raises:
        EgressError: The policy says no.
    """
    if door.refusals():
        _refuse(door.enter(Departure(kind, to), ["nothing was made ready"]))


def decline(kind: str, door: Door, to: Asker, problems: Sequence[str]) -> NoReturn:
    """Gives no answer, and writes down why; whoever asked is told no more than that it does not leave.

    Raises:
        EgressError: Always.
    """
    raise EgressError("this does not leave the device", door.enter(Departure(kind, to), problems), _HINT)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise EgressError("this does not leave the device", problems, _HINT)
