"""Who breaks, who lies, and when: all of it from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from tests.robustness.fleet.liar import HUGE, NAN, REPLAY

from umbel.shared.rng import generator
from umbel.shared.secure.messages import COLLECT, SETUP, SHARE

KILL, HANG, RESTART = "kill device", "hang device", "kill coordinator"
_LONGEST_S: Final = 0.3  # after the moment at which a blow is due
_STAGES: Final = (SETUP, SHARE, COLLECT)


@final
@dataclass(frozen=True, slots=True)
class Blow:
    """Something that happens in the middle of a round.

    Attributes:
        kind: `KILL` a device and start it again; `HANG` one until the round is over; `RESTART`: kill the
            coordinator and start it again.
        round: The round.
        device: Whom it meets; of `RESTART`, by whose answer its moment is told.
        stage: It happens once that device has answered this stage of that round,
        after_s: and so much later.
    """

    kind: str
    round: int
    device: int
    stage: str
    after_s: float


@final
@dataclass(frozen=True, slots=True)
class Scene:
    """A run of rounds, and all that happens in it.

    Attributes:
        seed: Of who and when.
        devices: How many; all of them are asked in every round.
        rounds: How many.
        least: Of how many devices a sum must be.
        deadline_s: Of every stage of a round.
        liar: The device that lies.
        lies: Round -> its lie.
        blows: In their order.
        secure: Whether changes are summed securely.
    """

    seed: int
    devices: int
    rounds: int
    least: int
    deadline_s: float
    liar: int
    lies: Mapping[int, str]
    blows: tuple[Blow, ...]
    secure: bool = True

    @property
    def settings(self) -> list[str]:
        """The rounds' settings, NAME=VALUE each: secure sums, and noise from a key under a budget."""
        return [
            f"seed={self.seed}", f"rounds={self.rounds}", f"clients={self.devices}", "local_rate=0.5",
            "local_steps=20", "noise_multiplier=0.15", "epsilon_budget=1000", "probation_rounds=1",
            f"min_devices_in_a_sum={self.least}", f"timeout_s={self.deadline_s}",
            f"secure_stage_s={self.deadline_s}", f"secure={str(self.secure).lower()}",
        ]  # fmt: skip


def whole(seed: int, deadline_s: float) -> Scene:
    """Returns the scene of issue 6: 12 devices, 5 rounds, every way to break."""
    liar, slow, first, second, third, *others = _order(seed, 12)
    blows = (
        _blow(KILL, seed, 1, first, SHARE),
        _blow(KILL, seed, 1, second, SHARE),
        _blow(RESTART, seed, 2, others[0]),
        _blow(HANG, seed, 4, slow, SHARE),
        _blow(KILL, seed, 4, third, SHARE),
        _blow(RESTART, seed, 5, others[1]),
    )
    return Scene(seed, 12, 5, 5, deadline_s, liar, {1: NAN, 3: HUGE, 4: REPLAY}, blows)


def small(seed: int, deadline_s: float) -> Scene:
    """Returns a scene of six devices and two rounds, in which nobody hangs."""
    liar, first, *others = _order(seed, 6)
    blows = (_blow(KILL, seed, 1, first, SHARE), _blow(RESTART, seed, 2, others[0]))
    return Scene(seed, 6, 2, 3, deadline_s, liar, {1: NAN}, blows)


def _order(seed: int, devices: int) -> list[int]:
    return [int(number) for number in generator(seed, 0, "", "fleet").permutation(devices)]


def _blow(kind: str, seed: int, round_: int, device: int, stage: str = "") -> Blow:
    rng = generator(seed, round_, str(device), "blow")
    after_s = float(rng.uniform(0.0, _LONGEST_S))
    return Blow(kind, round_, device, stage or _STAGES[int(rng.integers(len(_STAGES)))], after_s)
