"""A device's part in a secure sum: each stage's answer, what may leave in it, and what to keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from umbel.device_client.egress.allowed import Allowed, allowed_contribution, allowed_stage
from umbel.device_client.engine import Engine
from umbel.device_client.rounds import RoundHome, Steps, training
from umbel.device_client.secure.held import Held, unpacked
from umbel.device_client.secure.stages import masked, open_task, set_up, share, unmask
from umbel.shared.errors import EgressError
from umbel.shared.messages import Wire
from umbel.shared.secure.grid import vector_size
from umbel.shared.secure.messages import (
    COLLECT,
    SETUP,
    SHARE,
    UNMASK,
    Block,
    key_blocks,
    masked_blocks,
    share_blocks,
    unmasking_blocks,
)


@final
@dataclass(frozen=True, slots=True)
class Answered:
    """What a stage gives.

    Attributes:
        wire: The answer.
        allowed: What may leave in it, from what was asked and not from the answer.
        kept: What the device needs for the next stage; empty after the last.
        over: Over how many devices the sum is at least, if it is opened.
    """

    wire: Wire
    allowed: Allowed
    kept: str = field(default="", repr=False)
    over: int = 0


def take_part(
    stage: str, wire: Wire, kept: str, release_id: str, collect: Callable[[Wire, Held], Steps[Answered]]
) -> Steps[Answered]:
    """Answers a stage of a secure sum; stops where it wants a profile.

    Args:
        stage: The message's type.
        wire: What is asked.
        kept: What the stage before gave.
        release_id: The release that the device has.
        collect: Answers the stage for which the release must be opened: `collected`.

    Raises:
        MessageError: The message cannot be used, comes out of turn, or was answered before.
        UmbelError: As `collect` raises it.
    """
    if stage == SETUP:
        keys, held = set_up(wire, release_id)
        allowed = allowed_stage(SETUP, held.session, key_blocks())
        return Answered(keys.wire(), allowed, held.packed(), held.group.least)
    held = unpacked(kept)
    if stage == SHARE:
        shares, held = share(wire, held)
        allowed = allowed_stage(SHARE, held.session, share_blocks(len(held.peers)))
        return Answered(shares.wire(), allowed, held.packed(), held.group.least)
    if stage == COLLECT:
        return (yield from collect(wire, held))
    own = unmask(wire, held)
    allowed = allowed_stage(UNMASK, held.session, _unmasking_blocks(wire))
    return Answered(own.wire(), allowed, over=held.group.least)


def collected(engine: Engine, home: RoundHome, client: int, wire: Wire, held: Held) -> Steps[Answered]:
    """Trains, and masks the change; before it is masked it must be one that might leave as it is.

    Args:
        engine: The release.
        home: Whose examples, and where the profile is kept.
        client: The device's number.
        wire: What is asked.
        held: What the device has after the stage before.

    Raises:
        MessageError: The message cannot be used, or has come before.
        EgressError: The change may not leave, masked or not.
        UmbelError: The home or its examples cannot be used.
    """
    manifest = engine.release.manifest
    task, held = open_task(wire, held, manifest)
    contribution = yield from training(engine, home, client, task)
    problems = allowed_contribution(manifest, task, home.most_norm).problems(contribution.wire())
    if problems:
        raise EgressError("this does not leave the device", problems, "Nothing was sent.")
    rng = home.rounding(task.seed, task.round)
    sent, held = masked(contribution, held, task, manifest.trainables, rng)
    size = vector_size(manifest.trainables, tells=task.settings.tell_within)
    allowed = allowed_stage(COLLECT, held.session, masked_blocks(size))
    return Answered(sent.wire(), allowed, held.packed(), held.group.least)


def _unmasking_blocks(wire: Wire) -> dict[str, Block]:
    """Returns what an answer to unmask has, for the numbers of devices that the message tells."""
    return unmasking_blocks(len(wire.arrays["remaining"]), len(wire.arrays["gone"]))
