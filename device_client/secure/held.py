"""What a device keeps between the stages of one secure sum: its keys and seed, and shares of its peers'.

It lives in the memory of the node that carries the messages and for one sum: a node that starts again has
lost it, and the device is one that dropped out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, final

from umbel.shared.checks import parsed_json
from umbel.shared.errors import MessageError
from umbel.shared.secure.group import Group
from umbel.shared.secure.messages import Session


@final
@dataclass(frozen=True, slots=True)
class Held:
    """What a device has after a stage.

    Attributes:
        session: Which sum it is for.
        group: The device's place in it.
        answered: The last stage that was answered; none is answered twice.
        mask_key: The private key that it agrees on masks with.
        share_key: The private key that shares come to it under.
        public: Its two public keys.
        seed: Of its own mask.
        peers: Peer's place -> its two public keys.
        seeds: Place -> a share of that device's seed, its own too.
        keys: Place -> a share of that device's mask key, its own too.
    """

    session: Session
    group: Group
    answered: str
    mask_key: bytes = field(repr=False)
    share_key: bytes = field(repr=False)
    public: tuple[bytes, bytes]
    seed: bytes = field(default=b"", repr=False)
    peers: Mapping[int, tuple[bytes, bytes]] = field(default_factory=dict)
    seeds: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    keys: Mapping[int, bytes] = field(default_factory=dict, repr=False)

    def packed(self) -> str:
        """Returns it as a text for the node's memory."""
        return json.dumps(asdict(self) | {name: _hex(getattr(self, name)) for name in _SECRETS})


_SECRETS = ("mask_key", "share_key", "public", "seed", "peers", "seeds", "keys")


def unpacked(text: str) -> Held:
    """Reads what `packed` gave.

    Raises:
        MessageError: There is nothing, or it is damaged: the device takes no part in this sum any more.
    """
    try:
        row = parsed_json(text)
        row |= {name: bytes.fromhex(row[name]) for name in ("mask_key", "share_key", "seed")}
        row["public"] = _pair(row["public"])
        row["peers"] = {int(place): _pair(pair) for place, pair in row["peers"].items()}
        row |= {n: {int(p): bytes.fromhex(share) for p, share in row[n].items()} for n in ("seeds", "keys")}
        return Held(**{**row, "session": Session(**row["session"]), "group": Group(**row["group"])})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MessageError("this device is in no secure sum", ["it has no keys of one"]) from None


def _hex(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_hex(one) for one in value]
    return {str(place): _hex(one) for place, one in value.items()}


def _pair(found: Any) -> tuple[bytes, bytes]:
    first, second = found
    return bytes.fromhex(first), bytes.fromhex(second)
