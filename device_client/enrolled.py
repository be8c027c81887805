"""An owner's device in rounds: its sealed home as rounds and the gate need it."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, final

import numpy as np

from umbel.device_client.egress.allowed import ERROR
from umbel.device_client.egress.gate import Departure
from umbel.device_client.egress.policy import PLUGGED_IN, Policy, Surroundings, surroundings
from umbel.device_client.engine import Engine
from umbel.device_client.gain import noised
from umbel.device_client.learning import Encoded, encode_examples, read_once
from umbel.device_client.owner import Device
from umbel.device_client.rounds import NO_QUERIES
from umbel.shared.errors import EgressError, ExampleError
from umbel.shared.messages import GAIN, TRAIN
from umbel.shared.profile import FloatArray, pack_profile
from umbel.shared.release import Release
from umbel.shared.secure.messages import COLLECT, UNMASK

_FORGOTTEN = "some of what it rests on was forgotten meanwhile"


@final
class EnrolledHome:
    """What a device's owner keeps and allows, for one message of a round.

    Attributes:
        most_norm: The owner's bound on the norm of a change.
    """

    def __init__(self, device: Device, look: Callable[[], Surroundings] = surroundings):
        """Notes how often its owner has forgotten something: what is made from then on may not rest on it.

        Args:
            device: Theirs, opened.
            look: Tells of power and network.
        """
        self._device = device
        self._look = look
        self._before = device.before()
        self.most_norm = device.policy().most_norm

    @property
    def release_folder(self) -> Path:
        """Where the release in use lies."""
        return self._device.release_folder

    def client_number(self) -> int:
        """Returns the number by which a coordinator samples this device: random, made once, kept sealed.

        It is drawn from the system, not from a seed: two devices must not share it, and it must tell nothing.
        """
        return self._device.client_number(secrets.randbits(63))

    def support(self, engine: Engine) -> Encoded:
        """Returns the owner's examples, read where the release wants that.

        What they are read as is not kept: the store has what its owner's own learning reads, mostly in 8
        bits, and has room for that alone.

        Raises:
            ExampleError: There are none.
        """
        examples = self._device.known()[0]
        if not examples:
            raise ExampleError("there are no examples to learn from", hint="Add some: umbel device add.")
        return read_once(engine, [encode_examples(engine, examples)])[0]

    def queries(self, engine: Engine) -> Encoded:
        """Raises that there are none: all that an owner has is learned from."""
        del engine
        raise ExampleError(NO_QUERIES, hint="Only simulated devices are evaluated.")

    def save_profile(self, release: Release, profile: Mapping[str, FloatArray]) -> None:
        """Keeps the profile of a round, unless its owner has learned or onboarded one: that one stays.

        Raises:
            StoreError: Something was forgotten meanwhile; nothing is kept.
        """
        packed = pack_profile(release.manifest.profile, dict(profile), release.release_id)
        self._device.keep_from_round(release, packed, self._before)

    def rounding(self, seed: int, round_: int) -> np.random.Generator:
        """Returns what rounds a change for a secure sum: a function of release, round, seed and a secret.

        A round that is run again is then coded into the same numbers, whatever was started again meanwhile.
        """
        place = f"{self._device.release_id}|{round_}|{seed}".encode()
        digest = hmac.digest(self._device.rounding_key(), place, sha256)
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))

    def sum_refusals(self, devices: int) -> list[str]:
        """Returns what the owner's policy says against a change in a sum over so many devices at least."""
        return self._device.policy().sum_refusals(devices)

    def gain_refusals(self, release_id: str) -> list[str]:
        """Returns what speaks against telling what the owner gains with a release; nothing if it may be."""
        found = self._device.policy().gain_refusals()
        if release_id != self._device.release_id:
            return [*found, "this device has another release"]
        return found if self._device.gain() is not None else [*found, "no gain is known (see: learn)"]

    def noised_gain(self, release_id: str) -> int:
        """Returns the noised gain: drawn once for a release and kept sealed, so that asking twice is vain.

        Raises:
            EgressError: What it rests on was forgotten meanwhile.
        """
        gain = self._device.gain()
        if gain is None:
            raise EgressError("this does not leave the device", [_FORGOTTEN])
        return self._device.noised_gain(release_id, noised(gain))

    def refusals(self) -> list[str]:
        """Returns what the owner's policy says against any answer now."""
        return self._device.policy().refusals(self._device.release_id, _now(), self._look)

    def enter(self, departure: Departure, problems: Sequence[str]) -> list[str]:
        """Writes an entry of the egress log, and returns all that speaks against the answer.

        An error's type may always leave: the coordinator would otherwise wait for the device.
        """
        free, release = departure.kind == ERROR, departure.release or self._device.release_id
        asks = not free and self._device.policy().rule == PLUGGED_IN
        seen = self._look() if asks else Surroundings(None, None)  # outside of the transaction: it takes time

        def judge(kept: Any, erasures: int) -> tuple[Any, Mapping[str, Any]]:
            policy = Policy.from_json(kept)
            against = list(problems)
            if not free:
                asked = policy.within_round() if departure.kind == UNMASK else policy
                against += asked.refusals(release, _now(), lambda: seen)
                against += [_FORGOTTEN] if erasures != self._before[1] else []
                lowered = policy.most_norm < self.most_norm  # the list knows the bound of the beginning
                against += policy.gain_refusals() if departure.kind == GAIN else []
                against += policy.norm_refusals(departure.norm) if lowered else []
            if departure.kind in (TRAIN, COLLECT) and not against:
                policy = policy.after_change()
            at = _now().isoformat(timespec="seconds")
            outcome = {"outcome": "refused" if against else "sent", "why": against}
            return policy.as_json(), {"at": at, **departure.as_json(), **outcome}

        return list(self._device.enter(judge)["why"])


def _now() -> datetime:
    return datetime.now(UTC)
