"""A device's answers in the four stages of a secure sum (Flower's SecAgg+).

Each stage is answered once, and only after the one before: a second answer under the same masks would show
the difference of two changes. So every function returns what to keep next to the answer, and what is kept
says which stage was answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from umbel.device_client.secure.held import Held
from umbel.shared.errors import MessageError
from umbel.shared.messages import Contribution, RoundTask, Wire
from umbel.shared.release import Manifest
from umbel.shared.secure.grid import Grid, flat
from umbel.shared.secure.masking import add_pair_mask
from umbel.shared.secure.messages import (
    COLLECT,
    SETUP,
    SHARE,
    STAGES,
    UNMASK,
    Masked,
    PublicKeys,
    SealedShares,
    Unmasking,
    read_collect,
    read_setup,
    read_share_task,
    read_unmask,
)
from umbel.shared.secure.primitives import (
    agreed_key,
    commitment,
    key_pair,
    mask,
    new_seed,
    sealed,
    shares_of,
    unsealed,
)
from umbel.shared.secure.terms import terms_of


def set_up(wire: Wire, release_id: str) -> tuple[PublicKeys, Held]:
    """Begins a sum with new keys; what is left of an earlier one is thrown away.

    Raises:
        MessageError: The message cannot be used.
    """
    task = read_setup(wire, release_id)
    (mask_key, mask_public), (share_key, share_public) = key_pair(), key_pair()
    held = Held(task.session, task.group, SETUP, mask_key, share_key, (mask_public, share_public))
    return PublicKeys(task.session, mask_public, share_public), held


def share(wire: Wire, held: Held) -> tuple[SealedShares, Held]:
    """Makes the seed of the device's own mask, and gives every peer a share of it and of the mask key.

    Raises:
        MessageError: The message cannot be used, or has come before.
    """
    _require(held, SHARE)
    task = read_share_task(wire, held.session, held.group)
    if set(held.public) & {key for pair in task.keys.values() for key in pair}:
        raise MessageError("the peers' keys cannot be used", ["a peer has this device's own key"])
    seed, own, threshold = new_seed(), held.group.place, held.group.threshold
    holders = sorted([own, *task.keys])
    seeds = dict(zip(holders, shares_of(seed, threshold, len(holders)), strict=True))
    keys = dict(zip(holders, shares_of(held.mask_key, threshold, len(holders)), strict=True))
    packets = {
        place: sealed(_agreed(held.share_key, pair[1]), own, place, seeds[place], keys[place])
        for place, pair in task.keys.items()
    }
    kept = replace(
        held, answered=SHARE, seed=seed, peers=task.keys, seeds={own: seeds[own]}, keys={own: keys[own]}
    )
    return SealedShares(held.session, commitment(seed), packets), kept


def open_task(wire: Wire, held: Held, manifest: Manifest) -> tuple[RoundTask, Held]:
    """Reads the round's task and opens what peers have sealed; from here on the stage counts as answered.

    Raises:
        MessageError: The message cannot be used or has come before, or a share is not by whom it says.
    """
    _require(held, COLLECT)
    message = read_collect(wire, held.session, held.group, manifest)
    seeds, keys, problems = dict(held.seeds), dict(held.keys), []
    for place, packet in message.sealed.items():
        try:
            source, target, seed_share, key_share = unsealed(
                _agreed(held.share_key, held.peers[place][1]), packet
            )
            if (source, target) != (place, held.group.place):
                raise ValueError("for another")
        except (ValueError, KeyError):
            problems.append(f"the share of place {place} is not sealed by it for this device")
            continue
        seeds[place], keys[place] = seed_share, key_share
    if problems:
        raise MessageError("the peers' shares cannot be used", problems)
    return message.task, replace(held, answered=COLLECT, seeds=seeds, keys=keys)


def grid_of(held: Held, task: RoundTask) -> Grid:
    """Returns how a round's numbers are coded."""
    most_weight = task.settings.example_cap if held.group.weighted else 1
    return Grid(held.group.devices, task.settings.clip, most_weight, task.settings.tell_within)


def masked(
    contribution: Contribution,
    held: Held,
    task: RoundTask,
    shapes: Mapping[str, tuple[int, ...]],
    rng: np.random.Generator,
) -> tuple[Masked, Held]:
    """Codes a change and hides it under the device's own mask and one with each peer.

    Args:
        contribution: The change; of it only this leaves.
        held: What `open_task` returned.
        task: The same.
        shapes: The release's trainables.
        rng: Decides what is rounded up.

    Returns:
        The answer, and what is kept: no seed and no key that masks could be made of once more.
    """
    weight = contribution.examples if held.group.weighted else 1
    values = flat(contribution.change, shapes)
    vector = grid_of(held, task).coded(values, weight, rng, contribution.within)
    vector += mask(held.seed, len(vector))
    terms = terms_of(held.session, held.group, task)
    for place in held.seeds:
        if place != held.group.place:
            add_pair_mask(vector, held.mask_key, held.peers[place][0], held.group.place, place, terms)
    kept = replace(held, seed=b"", mask_key=b"", share_key=b"", peers={})
    return Masked(held.session, vector), kept


def unmask(wire: Wire, held: Held) -> Unmasking:
    """Returns one share of each peer; the device keeps nothing afterwards.

    Raises:
        MessageError: The message cannot be used, has come before, or too few devices remain.
    """
    _require(held, UNMASK)
    task = read_unmask(wire, held.session, held.group, sorted(held.seeds))
    seeds = {place: held.seeds[place] for place in task.remaining}
    return Unmasking(held.session, seeds, {place: held.keys[place] for place in task.gone})


def _require(held: Held, stage: str) -> None:
    before = STAGES[STAGES.index(stage) - 1]
    if held.answered != before:
        problem = f"this device last answered {held.answered}, so {stage} has come before or too early"
        raise MessageError("this stage of the secure sum cannot be answered", [problem])


def _agreed(private: bytes, public: bytes) -> bytes:
    try:
        return agreed_key(private, public)
    except ValueError:
        raise MessageError("the peers' keys cannot be used", ["one is no key of the curve P-384"]) from None
