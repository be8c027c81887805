"""How a device is taken in: it shows a one-time code and its public key, and that it has the private one."""

from __future__ import annotations

import base64
import binascii
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from umbel.coordinator.service.roster import CodeError, Roster
from umbel.shared.invitation import proof_text

MOST_BYTES = 4096
_MOST_WRONG, _WINDOW_S, _MOST_PEERS = 10, 60.0, 4096


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """What a device is told.

    Attributes:
        status: The HTTP status.
        why: "joined", "known", "unknown", "expired", "used", "barred", "malformed" or "too many".
        key: The public key (PEM) that was taken in; None if it was refused.
    """

    status: int
    why: str
    key: bytes | None = None


@final
class Enrolment:
    """Takes devices in; wrong codes from one address are answered only so often."""

    def __init__(self, roster: Roster, clock: Callable[[], float] = time.monotonic):
        self._roster, self._clock = roster, clock
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()
        self._counting = Lock()  # several threads answer

    def take_in(self, row: object, peer: str) -> Answer:
        """Answers a device.

        Args:
            row: What it sent: code, key (PEM) and proof, its signature over the code.
            peer: Its network address.
        """
        if self._is_tried(peer):
            return Answer(429, "too many")
        key = _key(row) if isinstance(row, Mapping) else None
        if key is None or not isinstance(row, Mapping):
            return self._refused(peer, 400, "malformed")
        try:
            new = self._roster.redeem(str(row["code"]), key)
        except CodeError as error:
            return self._refused(peer, 403, error.why)
        return Answer(200, "joined" if new else "known", key)

    def _refused(self, peer: str, status: int, why: str) -> Answer:
        with self._counting:
            self._wrong.setdefault(peer, []).append(self._clock())
            self._wrong.move_to_end(peer)
            while len(self._wrong) > _MOST_PEERS:
                self._wrong.popitem(last=False)
        return Answer(status, why)

    def _is_tried(self, peer: str) -> bool:
        """Says whether an address has sent so many wrong codes lately that it must wait."""
        since = self._clock() - _WINDOW_S
        with self._counting:
            recent = [at for at in self._wrong.get(peer, ()) if at > since]
            if recent:
                self._wrong[peer] = recent
            else:
                self._wrong.pop(peer, None)
        return len(recent) >= _MOST_WRONG


def _key(row: Mapping[str, Any]) -> bytes | None:
    """Returns the public key of a request that is well formed and signed by its owner; else None."""
    if set(row) != {"code", "key", "proof"} or not all(isinstance(value, str) for value in row.values()):
        return None
    try:
        found = load_pem_public_key(row["key"].encode())
        if not isinstance(found, ec.EllipticCurvePublicKey) or not isinstance(found.curve, ec.SECP384R1):
            return None
        proof = base64.b64decode(row["proof"], validate=True)
        found.verify(proof, proof_text(row["code"]), ec.ECDSA(hashes.SHA256()))
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, binascii.Error):
        return None
    return found.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
