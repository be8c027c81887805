"""A secure sum as a coordinator leads it: four stages, each a task for every device that is still there.

It holds one sum, not the devices' vectors: a masked change is added when it comes and then forgotten.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt

from umbel.coordinator.federation.secure.plan import SecureSettings, plan
from umbel.coordinator.federation.secure.unmasking import take_off_own, take_off_pairs
from umbel.shared.errors import MessageError
from umbel.shared.messages import RoundTask, Wire, l2_norm
from umbel.shared.release import Manifest
from umbel.shared.secure.grid import Grid, unflat, vector_size
from umbel.shared.secure.messages import (
    COLLECT,
    SESSION_CHARACTERS,
    SETUP,
    SHARE,
    STAGES,
    UNMASK,
    CollectTask,
    PublicKeys,
    SealedShares,
    Session,
    SetupTask,
    ShareTask,
    Unmasking,
    UnmaskTask,
    read_masked,
    read_public_keys,
    read_sealed_shares,
    read_unmasking,
)
from umbel.shared.secure.primitives import is_public_key
from umbel.shared.secure.terms import terms_of


@final
@dataclass(frozen=True, slots=True)
class SecureSum:
    """What a coordinator learns of a round's changes, and all of it.

    Attributes:
        total: name -> the weighted sum of the changes, in float64.
        weight: The sum of the weights.
        devices: How many devices it is over.
        error: The largest expected L2 norm of what coding did to the mean.
        within: Of how many of them the change was within the clip before it was clipped; None if that was
            not asked.
    """

    total: Mapping[str, npt.NDArray[np.float64]]
    weight: int
    devices: int
    error: float
    within: int | None = None


@final
class Summing:
    """One try of one round."""

    def __init__(
        self,
        manifest: Manifest,
        task: RoundTask,
        clients: Sequence[int],
        settings: SecureSettings,
        *,
        weighted: bool = False,
    ):
        """Prepares the stages.

        Args:
            manifest: The release.
            task: What the devices train.
            clients: Their numbers.
            settings: How they work together.
            weighted: Whether a change counts as much as its examples.

        Raises:
            MessageError: There are fewer devices than a sum must be over.
        """
        self._refuse_few(len(clients), settings.least, "are asked")
        self._manifest, self._task, self._least = manifest, task, settings.least
        self._groups = plan(clients, settings, task.seed, task.round, weighted)
        self._numbers = {group.place: client for client, group in self._groups.items()}
        self._threshold = next(iter(self._groups.values())).threshold
        self._asked: set[int] = set()
        self._session = Session(manifest.release_id, task.round, secrets.token_hex(SESSION_CHARACTERS // 2))
        self._keys: dict[int, PublicKeys] = {}
        self._every_key: set[bytes] = set()
        self._sealed: dict[int, SealedShares] = {}
        self._sent: set[int] = set()
        self._shares: dict[int, Unmasking] = {}
        most_weight = task.settings.example_cap if weighted else 1
        tells = task.settings.tell_within
        self._grid = Grid(len(clients), task.settings.clip, most_weight, tells)
        self._total = np.zeros(vector_size(manifest.trainables, tells=tells), np.uint32)

    @property
    def rounding(self) -> float:
        """The largest L2 norm that rounding adds to one device's change: a step for each number."""
        return math.sqrt(len(self._total) - 1) / self._grid.scale

    def tasks(self, stage: str) -> dict[int, Wire]:
        """Returns device number -> what to ask of it in a stage.

        Raises:
            MessageError: Too few devices are left for the sum to be opened.
        """
        before = self._answered(stage)
        self._asked = {place for place in before if self._has_enough_peers(place, before)}
        if len(before) >= self._least > len(self._asked):
            left = f"{len(before)} of {len(self._numbers)} devices are left before {stage}"
            problem = f"{left}, and they give their shares only if {self._threshold} are"
            raise MessageError("the sum is not opened", [problem])
        self._refuse_few(len(self._asked), self._least, f"are left before {stage}")
        return {self._numbers[place]: self._ask(stage, place) for place in sorted(self._asked)}

    def take(self, stage: str, client: int, wire: Wire) -> None:
        """Takes a device's answer in.

        Raises:
            MessageError: It cannot be used, or the device has answered already; nothing is changed.
        """
        place = self._groups[client].place
        if place not in self._asked:
            raise MessageError(
                "an answer cannot be used", ["this device was not asked, or has answered already"]
            )
        if stage == SETUP:
            keys = read_public_keys(wire, self._session)
            self._refuse_keys(keys)
            self._keys[place] = keys
        elif stage == SHARE:
            self._sealed[place] = read_sealed_shares(wire, self._session, self._peers(place, self._keys))
        elif stage == COLLECT:
            self._total += read_masked(wire, self._session, len(self._total)).vector
            self._sent.add(place)
        else:
            self._shares[place] = read_unmasking(wire, self._session, *self._remaining_and_gone(place))
        self._asked.discard(place)

    def _refuse_keys(self, keys: PublicKeys) -> None:
        """Refuses keys at which every peer would refuse to go on, so that they cost their device alone."""
        own, known = (keys.mask_key, keys.share_key), self._every_key
        problems = [] if all(map(is_public_key, own)) else ["one is no key of the curve P-384"]
        if own[0] == own[1] or not known.isdisjoint(own):
            problems.append("one is given twice")
        if problems:
            raise MessageError("the public keys cannot be used", problems)
        known.update(own)

    def opened(self) -> SecureSum:
        """Takes the masks off.

        Raises:
            MessageError: Too few devices gave their shares, or the sum is one that no changes have.
        """
        self._refuse_few(len(self._sent), self._least, "sent their change")
        self._refuse_few(len(self._shares), self._least, "gave their shares")
        bound = {place: answer.commitment for place, answer in self._sealed.items()}
        keys = {place: answer.mask_key for place, answer in self._keys.items()}
        gone = {place: self._peers(place, self._sent) for place in sorted(set(self._sealed) - self._sent)}
        take_off_own(self._total, sorted(self._sent), self._shares, bound, self._threshold)
        group = next(iter(self._groups.values()))
        terms = terms_of(self._session, group, self._task)
        take_off_pairs(self._total, gone, self._shares, keys, self._threshold, terms)
        return self._checked()

    def _checked(self) -> SecureSum:
        """Returns the sum if it is one that changes within their bounds can have."""
        vector, weight, within = self._grid.decoded(self._total)
        devices, most = len(self._sent), self._grid.most_weight
        if not devices <= weight <= devices * most:
            raise MessageError("the sum cannot be used", ["its weights are not those of its devices"])
        if within is not None and not 0 <= within <= devices:
            raise MessageError("the sum cannot be used", ["it counts more changes than there are devices"])
        error = self._grid.error(len(vector), devices, weight)
        norm = l2_norm([vector]) / weight
        if norm > self._grid.clip * (1 + 1e-3) + 4 * error:
            clip = f"the clip is {self._grid.clip:.6g}: a device did not keep to it"
            problem = f"its mean has norm {norm:.6g}, {clip}"
            raise MessageError("the sum cannot be used", [problem])
        return SecureSum(unflat(vector, self._manifest.trainables), weight, devices, error, within)

    def _answered(self, stage: str) -> Collection[int]:
        """Returns who has answered every stage before."""
        answered: dict[str, Collection[int]] = {
            SETUP: self._numbers, SHARE: self._keys, COLLECT: self._sealed, UNMASK: self._sent,
        }  # fmt: skip
        return answered[stage]

    def _has_enough_peers(self, place: int, among: Collection[int]) -> bool:
        """Says whether a device has so many peers left that it would not refuse."""
        return len(self._peers(place, among)) + 1 >= self._threshold

    def _ask(self, stage: str, place: int) -> Wire:
        if stage == SETUP:
            return SetupTask(self._session, self._groups[self._numbers[place]]).wire()
        if stage == SHARE:
            keys = {
                p: (self._keys[p].mask_key, self._keys[p].share_key) for p in self._peers(place, self._keys)
            }
            return ShareTask(self._session, keys).wire()
        if stage == COLLECT:
            sealed = {peer: self._sealed[peer].sealed[place] for peer in self._peers(place, self._sealed)}
            return CollectTask(self._session, self._task, sealed).wire()
        return UnmaskTask(self._session, *self._remaining_and_gone(place)).wire()

    def _remaining_and_gone(self, place: int) -> tuple[list[int], list[int]]:
        known = [place, *self._peers(place, self._sealed)]
        return sorted(p for p in known if p in self._sent), sorted(p for p in known if p not in self._sent)

    def _peers(self, place: int, among: Collection[int]) -> list[int]:
        return [peer for peer in self._groups[self._numbers[place]].peers() if peer in among]

    @staticmethod
    def _refuse_few(devices: int, least: int, what: str) -> None:
        if devices < least:
            problem = f"{devices} devices {what}, a sum over fewer than {least} is not opened"
            raise MessageError("the sum is not opened", [problem])


Take: TypeAlias = Callable[[int, Wire], None]
"""Takes a device's answer in, or raises MessageError."""


def lead(summing: Summing, ask: Callable[[str, Mapping[int, Wire], Take], None]) -> SecureSum:
    """Leads a sum through its stages.

    Args:
        summing: The sum.
        ask: Asks device number -> task in a stage, and hands every answer to the function that takes it in.

    Raises:
        MessageError: The sum is not opened.
    """
    for stage in STAGES:
        ask(stage, summing.tasks(stage), partial(summing.take, stage))
    return summing.opened()
