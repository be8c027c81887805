"""The messages of a secure sum: four things that a coordinator asks of a device, and four answers.

setup: a group, answered by two public keys. share: the peers' keys, answered by shares for them, sealed.
collect: the round's task and the peers' sealed shares, answered by the masked change. unmask: who remains,
answered by one share of each peer. All of one try of a round carry its session; another's are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from umbel.shared.checks import count_problems, shown
from umbel.shared.errors import MessageError
from umbel.shared.messages import Arrays, RoundTask, Scalar, Wire, read_task
from umbel.shared.release import Manifest
from umbel.shared.secure.group import MOST_DEVICES, MOST_SHARES, Group
from umbel.shared.secure.primitives import (
    COMMITMENT_BYTES,
    KEY_SHARE_BYTES,
    PUBLIC_BYTES,
    SEALED_BYTES,
    SEED_SHARE_BYTES,
    Words,
)

SCHEMA: Final = "umbel.secure/2"
SETUP, SHARE, COLLECT, UNMASK = STAGES = ("train.setup", "train.share", "train.collect", "train.unmask")
"""The stages in their order, as Flower's message types."""

SESSION_CHARACTERS = 32
_TASK = "task/"  # what the round's task brings with it in a collect message
_HINT = "Both sides must run the same umbel and the same release; this round's sum is opened without it."
_PLACES = "places"


@final
@dataclass(frozen=True, slots=True)
class Session:
    """Which try of which round a message belongs to.

    Attributes:
        release_id: The release that the round works on.
        round: From 1.
        key: 32 hex digits, new for every try of a round.
    """

    release_id: str
    round: int
    key: str

    def config(self, stage: str) -> dict[str, Scalar]:
        """Returns it as the head of a message."""
        return {
            "schema": SCHEMA, "stage": stage, "release_id": self.release_id, "round": self.round,
            "session": self.key,
        }  # fmt: skip


@final
@dataclass(frozen=True, slots=True)
class SetupTask:
    """Asks a device to take part in a secure sum."""

    session: Session
    group: Group

    def wire(self) -> Wire:
        """Returns it as it travels."""
        group = self.group
        config: dict[str, Scalar] = {
            "place": group.place, "devices": group.devices, "shares": group.shares,
            "threshold": group.threshold, "least": group.least, "weighted": group.weighted,
        }  # fmt: skip
        return Wire({}, self.session.config(SETUP) | config)


@final
@dataclass(frozen=True, slots=True)
class PublicKeys:
    """A device's public keys: one to agree on masks with, one to be sent shares under."""

    session: Session
    mask_key: bytes
    share_key: bytes

    def wire(self) -> Wire:
        """Returns it as it travels."""
        return Wire({"keys": _rows([self.mask_key, self.share_key])}, self.session.config(SETUP))


@final
@dataclass(frozen=True, slots=True)
class ShareTask:
    """Tells a device its peers' keys: place -> (mask key, share key)."""

    session: Session
    keys: Mapping[int, tuple[bytes, bytes]]

    def wire(self) -> Wire:
        """Returns it as it travels."""
        return _placed_wire(
            self.session, SHARE, {"keys": {p: b"".join(pair) for p, pair in self.keys.items()}}
        )


@final
@dataclass(frozen=True, slots=True)
class SealedShares:
    """A device's shares of its two secrets, place -> sealed for that peer; and what binds it to its seed."""

    session: Session
    commitment: bytes
    sealed: Mapping[int, bytes]

    def wire(self) -> Wire:
        """Returns it as it travels."""
        wire = _placed_wire(self.session, SHARE, {"sealed": self.sealed})
        return Wire({**wire.arrays, "commitment": _rows([self.commitment])[0]}, wire.config)


@final
@dataclass(frozen=True, slots=True)
class CollectTask:
    """Asks for the masked change: the round's task, and what the peers have sealed for this device."""

    session: Session
    task: RoundTask
    sealed: Mapping[int, bytes]

    def wire(self) -> Wire:
        """Returns it as it travels."""
        wire, task = _placed_wire(self.session, COLLECT, {"sealed": self.sealed}), self.task.wire()
        arrays = {**wire.arrays, **{_TASK + name: array for name, array in task.arrays.items()}}
        return Wire(arrays, {**wire.config, **{_TASK + key: value for key, value in task.config.items()}})


@final
@dataclass(frozen=True, slots=True)
class Masked:
    """A device's weight and change, coded and masked: (1 + d,), or (2 + d,) where `tell_within` is asked."""

    session: Session
    vector: Words

    def wire(self) -> Wire:
        """Returns it as it travels."""
        return Wire({"masked": self.vector}, self.session.config(COLLECT))


@final
@dataclass(frozen=True, slots=True)
class UnmaskTask:
    """Tells which of those that a device has shares of sent their change, itself too, and which did not."""

    session: Session
    remaining: Sequence[int]
    gone: Sequence[int]

    def wire(self) -> Wire:
        """Returns it as it travels."""
        arrays = {"remaining": np.array(self.remaining, np.int64), "gone": np.array(self.gone, np.int64)}
        return Wire(arrays, self.session.config(UNMASK))


@final
@dataclass(frozen=True, slots=True)
class Unmasking:
    """One share of each peer: of the seed of one that remains, of the mask key of one that is gone."""

    session: Session
    seeds: Mapping[int, bytes]
    keys: Mapping[int, bytes]

    def wire(self) -> Wire:
        """Returns it as it travels."""
        arrays = {**_placed("seeds", self.seeds), **_placed("keys", self.keys)}
        return Wire(arrays, self.session.config(UNMASK))


Block = tuple[type[np.generic], tuple[int, ...]]
"""An array's type and shape."""


def key_blocks() -> dict[str, Block]:
    """Returns the arrays of an answer to setup."""
    return {"keys": (np.uint8, (2, PUBLIC_BYTES))}


def share_blocks(peers: int) -> dict[str, Block]:
    """Returns the arrays of an answer to share."""
    return {**_placed_blocks("sealed", peers, SEALED_BYTES), "commitment": (np.uint8, (COMMITMENT_BYTES,))}


def masked_blocks(size: int) -> dict[str, Block]:
    """Returns the arrays of an answer to collect; `size` is that of a device's vector."""
    return {"masked": (np.uint32, (size,))}


def unmasking_blocks(remaining: int, gone: int) -> dict[str, Block]:
    """Returns the arrays of an answer to unmask."""
    seeds = _placed_blocks("seeds", remaining, SEED_SHARE_BYTES)
    return {**seeds, **_placed_blocks("keys", gone, KEY_SHARE_BYTES)}


def read_setup(wire: Wire, release_id: str) -> SetupTask:
    """Reads what a coordinator asks at first of a device that has a release.

    Raises:
        MessageError: It is not for this release, or no group that a device may be in; lists all problems.
    """
    kinds = {"place": int, "devices": int, "shares": int, "threshold": int, "least": int, "weighted": bool}
    found, problems = _head(wire, SETUP, kinds)
    problems += _block_problems(wire.arrays, {})
    given = found.get("release_id", release_id)
    if given != release_id:
        problems.append(f"it is for release {shown(given[:12])}, not for {release_id[:12]}")
    problems += _session_problems(found)
    group = Group(**{name: found[name] for name in kinds}) if not set(kinds) - set(found) else None
    problems += group.problems() if group else []
    _refuse("the setup of a secure sum cannot be used", problems)
    assert group is not None
    return SetupTask(Session(found["release_id"], found["round"], found["session"]), group)


def read_public_keys(wire: Wire, session: Session) -> PublicKeys:
    """Reads a device's answer to setup.

    Raises:
        MessageError: It is no such answer; lists all problems.
    """
    problems = _head_problems(wire, SETUP, session) + _block_problems(wire.arrays, key_blocks())
    _refuse("the public keys cannot be used", problems)
    mask_key, share_key = (row.tobytes() for row in wire.arrays["keys"])
    return PublicKeys(session, mask_key, share_key)


def read_share_task(wire: Wire, session: Session, group: Group) -> ShareTask:
    """Reads the peers' keys.

    Raises:
        MessageError: They are of others than the peers, too few, or not all different; lists all problems.
    """
    problems = _head_problems(wire, SHARE, session)
    rows = _read_placed(wire.arrays, "keys", 2 * PUBLIC_BYTES, problems)
    problems += _unexpected(wire.arrays, {"keys", _at("keys")})
    problems += _peer_problems(rows, group)
    keys = {place: (data[:PUBLIC_BYTES], data[PUBLIC_BYTES:]) for place, data in rows.items()}
    if len({key for pair in keys.values() for key in pair}) < 2 * len(keys):
        problems.append("two keys are the same")
    _refuse("the peers' keys cannot be used", problems)
    return ShareTask(session, keys)


def read_sealed_shares(wire: Wire, session: Session, peers: Sequence[int]) -> SealedShares:
    """Reads a device's answer to share.

    Args:
        wire: The answer.
        session: What it must be of.
        peers: Whom it must have a sealed share for.

    Raises:
        MessageError: It is no such answer; lists all problems.
    """
    problems = _head_problems(wire, SHARE, session) + _block_problems(wire.arrays, share_blocks(len(peers)))
    _refuse("the sealed shares cannot be used", problems)
    sealed = _read_placed(wire.arrays, "sealed", SEALED_BYTES, problems)
    problems += [] if set(sealed) == set(peers) else ["it is not for the peers that were told"]
    _refuse("the sealed shares cannot be used", problems)
    return SealedShares(session, wire.arrays["commitment"].tobytes(), sealed)


def read_collect(wire: Wire, session: Session, group: Group, manifest: Manifest) -> CollectTask:
    """Reads the round's task and what peers have sealed.

    Raises:
        MessageError: It is of another session or too few peers, or its task cannot be used; lists all.
    """
    inner = Wire(
        {name.removeprefix(_TASK): array for name, array in wire.arrays.items() if name.startswith(_TASK)},
        {key.removeprefix(_TASK): value for key, value in wire.config.items() if key.startswith(_TASK)},
    )
    outer = Wire(
        {name: array for name, array in wire.arrays.items() if not name.startswith(_TASK)},
        {key: value for key, value in wire.config.items() if not key.startswith(_TASK)},
    )
    problems = _head_problems(outer, COLLECT, session)
    sealed = _read_placed(outer.arrays, "sealed", SEALED_BYTES, problems)
    problems += _unexpected(outer.arrays, {"sealed", _at("sealed")}) + _peer_problems(sealed, group)
    task = None
    try:
        task = read_task(inner, manifest)
    except MessageError as error:
        problems += error.problems
    if task is not None and task.round != session.round:
        problems.append(f"its task is of round {task.round}, not {session.round}")
    _refuse("the task of a secure sum cannot be used", problems)
    assert task is not None
    return CollectTask(session, task, sealed)


def read_masked(wire: Wire, session: Session, size: int) -> Masked:
    """Reads a device's masked change.

    Raises:
        MessageError: It is no such answer; lists all problems.
    """
    problems = _head_problems(wire, COLLECT, session) + _block_problems(wire.arrays, masked_blocks(size))
    _refuse("the masked change cannot be used", problems)
    return Masked(session, np.asarray(wire.arrays["masked"], np.uint32))


def read_unmask(wire: Wire, session: Session, group: Group, known: Sequence[int]) -> UnmaskTask:
    """Reads who remains.

    Args:
        wire: The message.
        session: What it must be of.
        group: The device's.
        known: Whom the device has shares of, itself too.

    Raises:
        MessageError: It names others than those, one twice, not this device, or too few that remain.
    """
    problems = _head_problems(wire, UNMASK, session)
    problems += _unexpected(wire.arrays, {"remaining", "gone"})
    remaining = _read_places(wire.arrays, "remaining", problems)
    gone = _read_places(wire.arrays, "gone", problems)
    if not problems and sorted([*remaining, *gone]) != sorted(known):
        problems.append("it names others than those that this device has shares of, or one twice")
    if not problems and group.place not in remaining:
        problems.append("this device is not among those that remain")
    needed = max(group.threshold, group.least)
    if not problems and len(remaining) < needed:
        problems.append(f"{len(remaining)} devices remain, a sum over fewer than {needed} is not opened")
    _refuse("the masks are not taken off", problems)
    return UnmaskTask(session, remaining, gone)


def read_unmasking(wire: Wire, session: Session, remaining: Sequence[int], gone: Sequence[int]) -> Unmasking:
    """Reads a device's shares of its peers' secrets.

    Raises:
        MessageError: It is no such answer; lists all problems.
    """
    problems = _head_problems(wire, UNMASK, session)
    problems += _block_problems(wire.arrays, unmasking_blocks(len(remaining), len(gone)))
    _refuse("the shares cannot be used", problems)
    seeds = _read_placed(wire.arrays, "seeds", SEED_SHARE_BYTES, problems)
    keys = _read_placed(wire.arrays, "keys", KEY_SHARE_BYTES, problems)
    if set(seeds) != set(remaining) or set(keys) != set(gone):
        problems.append("they are not of those that were told")
    _refuse("the shares cannot be used", problems)
    return Unmasking(session, seeds, keys)


def _refuse(headline: str, problems: Sequence[str]) -> None:
    if problems:
        raise MessageError(headline, problems, _HINT)


def _head(wire: Wire, stage: str, kinds: Mapping[str, type]) -> tuple[dict[str, Any], list[str]]:
    """Returns the values of a message that have the right type, and what is wrong with the rest."""
    every = {"schema": str, "stage": str, "release_id": str, "round": int, "session": str, **kinds}
    problems = [f"unknown key '{shown(key)}'" for key in sorted(set(wire.config) - set(every))]
    problems += [f"missing key '{key}'" for key in every if key not in wire.config]
    given = {key: wire.config[key] for key in every if key in wire.config}
    found = {key: value for key, value in given.items() if type(value) is every[key]}
    problems += [f"{key} is of type {type(given[key]).__name__}" for key in given if key not in found]
    for key, expected in (("schema", SCHEMA), ("stage", stage)):
        if found.get(key, expected) != expected:
            problems.append(f"{key} is {shown(found[key])}, expected {expected}")
    return found, problems


def _head_problems(wire: Wire, stage: str, session: Session) -> list[str]:
    found, problems = _head(wire, stage, {})
    for key, expected in (("round", session.round), ("release_id", session.release_id)):
        if found.get(key, expected) != expected:
            problems.append(f"{key} is {shown(found[key])}, expected {shown(expected)}")
    if found.get("session", session.key) != session.key:
        problems.append("it belongs to another try of a round")
    return problems


def _session_problems(found: Mapping[str, Any]) -> list[str]:
    problems = count_problems("round", found["round"], 1, 10**9) if "round" in found else []
    key = found.get("session", "0" * SESSION_CHARACTERS)
    if len(key) != SESSION_CHARACTERS or set(key) - set("0123456789abcdef"):
        problems.append(f"session is not {SESSION_CHARACTERS} hex digits")
    return problems


def _at(name: str) -> str:
    return f"{name}.{_PLACES}"


def _rows(data: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(data), np.uint8).reshape(len(data), -1)


def _placed(name: str, rows: Mapping[int, bytes]) -> dict[str, npt.NDArray[Any]]:
    """Returns place -> bytes, all equally long, as two arrays."""
    places = sorted(rows)
    data = _rows([rows[place] for place in places]) if rows else np.zeros((0, 0), np.uint8)
    return {_at(name): np.array(places, np.int64), name: data}


def _placed_wire(session: Session, stage: str, tables: Mapping[str, Mapping[int, bytes]]) -> Wire:
    arrays = {key: array for name, rows in tables.items() for key, array in _placed(name, rows).items()}
    return Wire(arrays, session.config(stage))


def _placed_blocks(name: str, rows: int, width: int) -> dict[str, Block]:
    return {_at(name): (np.int64, (rows,)), name: (np.uint8, (rows, width if rows else 0))}


def _block_problems(arrays: Arrays, blocks: Mapping[str, Block]) -> list[str]:
    problems = _unexpected(arrays, set(blocks))
    for name, (kind, shape) in blocks.items():
        if name not in arrays:
            problems.append(f"missing array '{name}'")
        elif arrays[name].dtype != kind or arrays[name].shape != shape:
            found = f"{arrays[name].dtype} of shape {arrays[name].shape}"
            problems.append(f"{name} is {shown(found)}, expected {kind.__name__} of shape {shape}")
    return problems


def _unexpected(arrays: Arrays, names: set[str]) -> list[str]:
    return [f"unknown array '{shown(name)}'" for name in sorted(set(arrays) - names)]


def _read_places(arrays: Arrays, name: str, problems: list[str]) -> tuple[int, ...]:
    """Returns an array of places; what is wrong with it is added to `problems`."""
    array = arrays.get(name)
    if array is None:
        problems.append(f"missing array '{name}'")
        return ()
    if array.dtype != np.int64 or array.ndim != 1 or len(array) > MOST_SHARES:
        problems.append(f"{name} is no row of at most {MOST_SHARES} places")
        return ()
    places = tuple(int(place) for place in array)
    if len(set(places)) < len(places) or not all(0 <= place < MOST_DEVICES for place in places):
        problems.append(f"{name} has a place twice, or one that there is not")
        return ()
    return places


def _read_placed(arrays: Arrays, name: str, width: int, problems: list[str]) -> dict[int, bytes]:
    """Returns place -> bytes out of two arrays; what is wrong with them is added to `problems`."""
    places = _read_places(arrays, _at(name), problems)
    data = arrays.get(name)
    shape = (len(places), width if places else 0)
    if data is None or data.dtype != np.uint8 or data.shape != shape:
        problems.append(f"{name} is not {len(places)} rows of {width} bytes")
        return {}
    return {place: row.tobytes() for place, row in zip(places, data, strict=True)}


def _peer_problems(rows: Mapping[int, bytes], group: Group) -> list[str]:
    strangers = set(rows) - set(group.peers())
    problems = [f"{len(strangers)} of its places are no peers"] if strangers else []
    needed = max(group.threshold, group.least)
    if len(rows) + 1 < needed:
        problems.append(f"{len(rows) + 1} devices take part, {needed} are needed")
    return problems
