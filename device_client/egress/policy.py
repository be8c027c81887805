"""What an owner allows to leave their device: never, ask, plugged-in or always."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, final

from umbel.device_client.egress.network import metered
from umbel.device_client.egress.power import wall_power
from umbel.shared.checks import count_problems, number_problems
from umbel.shared.errors import ConfigError
from umbel.shared.norms import exceeds

NEVER, ASK, PLUGGED_IN, ALWAYS = POLICIES = ("never", "ask", "plugged-in", "always")
SYSTEM, UNMETERED, METERED = NETWORKS = ("system", "unmetered", "metered")
_MOST_ROUNDS = 10**6
_MOST_DEVICES = 10**6


@final
@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a device knows of its power and network; None: it does not know.

    Attributes:
        wall_power: Whether it is on wall power.
        metered: Whether the network costs by volume.
    """

    wall_power: bool | None
    metered: bool | None


def surroundings() -> Surroundings:
    """Asks the system."""
    return Surroundings(wall_power(), metered())


@final
@dataclass(frozen=True, slots=True)
class Consent:
    """What an owner who wants to be asked has said yes to.

    Attributes:
        release: The release that they saw; another one asks anew.
        until: When it ends, ISO 8601 in UTC.
        rounds: How many more changes may leave.
    """

    release: str
    until: str
    rounds: int

    def __post_init__(self) -> None:
        problems = count_problems("rounds", self.rounds, 0, _MOST_ROUNDS)
        if problems:
            raise ConfigError("this consent cannot be kept", problems)

    def refusals(self, release: str, now: datetime) -> list[str]:
        """Returns why it does not hold for a release now, one line each."""
        found = []
        if release != self.release:
            found.append("consent was given for another release")
        if now >= datetime.fromisoformat(self.until):
            found.append(f"consent ended at {self.until}")
        if self.rounds < 1:
            found.append("the rounds that consent was given for are over")
        return found


@final
@dataclass(frozen=True, slots=True)
class Policy:
    """What an owner allows.

    Attributes:
        rule: "never"; "ask": as far as consent was given before; "plugged-in": on wall power and an unmetered
            network, both known; "always".
        network: Whether the network costs by volume: "unmetered" or "metered" as the owner says, or "system".
        most_norm: The owner's own bound on the L2 norm of a change, whatever clip a coordinator sets.
        consent: For "ask".
        report_gain: Whether the noised gain may leave, where the rule lets anything leave.
        least_in_a_sum: A change leaves only in a secure sum over so many devices or more, whatever a
            coordinator asks for; 1: also by itself.
    """

    rule: str = NEVER
    network: str = SYSTEM
    most_norm: float = 1.0
    consent: Consent | None = None
    report_gain: bool = False
    least_in_a_sum: int = 5

    def __post_init__(self) -> None:
        problems = number_problems("norm", self.most_norm, 1e-9, 1e9)
        problems += count_problems("sum-over", self.least_in_a_sum, 1, _MOST_DEVICES)
        if self.rule not in POLICIES:
            problems.append(f"there is no such policy; choose one of: {', '.join(POLICIES)}")
        if self.network not in NETWORKS:
            problems.append(f"there is no such network; choose one of: {', '.join(NETWORKS)}")
        if problems:
            raise ConfigError("this policy cannot be kept", problems)

    def refusals(
        self, release: str, now: datetime, look: Callable[[], Surroundings] = surroundings
    ) -> list[str]:
        """Returns what speaks against letting anything leave, one line each; nothing if it may.

        Args:
            release: The release in use.
            now: The time, in UTC.
            look: Tells of power and network; called only where the answer depends on them.
        """
        if self.rule == ASK:
            given = self.consent
            said = ["no consent was given"] if given is None else given.refusals(release, now)
            return [f"policy ask: {line}" for line in said]
        if self.rule == PLUGGED_IN:
            return [f"policy plugged-in: {line}" for line in self._plugged_in(look())]
        return [] if self.rule == ALWAYS else ["policy never: nothing may leave"]

    def _plugged_in(self, found: Surroundings) -> list[str]:
        costs = found.metered if self.network == SYSTEM else self.network == METERED
        power = {None: "whether this machine is on wall power is not known", False: "it is on battery"}
        network = {
            None: "whether the network is metered is not known; "
            "if it is not, say so: umbel device policy --network unmetered",
            True: "the network is metered",
        }
        return [line for line in (power.get(found.wall_power), network.get(costs)) if line]

    def norm_refusals(self, norm: float | None) -> list[str]:
        """Returns what speaks against a change of a norm: its owner may have lowered the bound meanwhile."""
        larger = norm is not None and exceeds(norm, self.most_norm)
        return [f"its norm is larger than {self.most_norm:.6g}, which the owner allows"] if larger else []

    def sum_refusals(self, devices: int) -> list[str]:
        """Returns what speaks against a change in a sum over so many devices at least; 1: by itself."""
        if devices >= self.least_in_a_sum:
            return []
        asked = "by itself" if devices == 1 else f"in a sum that may be over {devices}"
        wanted = f"in a secure sum over {self.least_in_a_sum} devices or more"
        return [f"a change leaves only {wanted}, it was asked for {asked} (policy --sum-over)"]

    def gain_refusals(self) -> list[str]:
        """Returns what speaks against telling the gain, besides the rule."""
        return [] if self.report_gain else ["its owner does not report gains (--report-gain)"]

    def within_round(self) -> Policy:
        """Returns the policy for what follows a change in its round, which is used by then."""
        if self.rule != ASK or self.consent is None:
            return self
        rounds = min(self.consent.rounds + 1, _MOST_ROUNDS)
        return replace(self, consent=replace(self.consent, rounds=rounds))

    def after_change(self) -> Policy:
        """Returns the policy once a change has left: of consent, one round is used."""
        if self.rule != ASK or self.consent is None:
            return self
        return replace(self, consent=replace(self.consent, rounds=self.consent.rounds - 1))

    def as_json(self) -> dict[str, Any]:
        """Returns it for the store and for scripts."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any] | None) -> Policy:
        """Reads what `as_json` gave; None, as in a store that holds none, is the first policy: never."""
        if row is None:
            return cls()
        consent = row.get("consent")
        return cls(**{**row, "consent": None if consent is None else Consent(**consent)})
