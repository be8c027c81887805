"""What a device keeps of a coordinator that it joins: where it is, whom to trust, and a key of its own."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, final

from umbel.shared.errors import StoreError
from umbel.shared.invitation import Invitation, proof_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


@final
@dataclass(frozen=True, slots=True)
class Membership:
    """A device's place at a coordinator.

    Attributes:
        url: The coordinator's address.
        authority: The certificate (PEM) that the coordinator's own must come from.
        code: The code of the invitation; kept until it is redeemed, and to recognise it afterwards.
        key: The device's private key for this coordinator (PEM): it is known there by nothing else.
        joined: When the coordinator has taken it in; None before.
    """

    url: str
    authority: str
    code: str = field(repr=False)
    key: str = field(repr=False)
    joined: str | None = None

    @classmethod
    def begun(cls, invitation: Invitation) -> Membership:
        """Makes a key for an invitation; for each coordinator another, so that two cannot compare notes."""
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        private = ec.generate_private_key(ec.SECP384R1())  # the curve that Flower's nodes have
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return cls(invitation.url, invitation.authority, invitation.code, pem)

    @classmethod
    def from_setting(cls, row: Mapping[str, Any]) -> Membership:
        """Reads what `as_setting` gave."""
        return cls(**row)

    def as_setting(self) -> dict[str, Any]:
        """Returns it as the store keeps it."""
        return asdict(self)

    def at(self, joined: str) -> Membership:
        """Returns it once the coordinator has taken the device in."""
        return replace(self, joined=joined)

    def is_for(self, invitation: Invitation) -> bool:
        """Says whether it came of this invitation."""
        return (self.url, self.code) == (invitation.url, invitation.code)

    def private_key(self) -> EllipticCurvePrivateKey:
        """Returns the private key.

        Raises:
            StoreError: It is damaged.
        """
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            found = load_pem_private_key(self.key.encode(), None)
        except ValueError:
            found = None
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise StoreError("this device's key for the coordinator is damaged", hint="Join it anew.")
        return found

    def request(self) -> dict[str, str]:
        """Returns what asks a coordinator to take the device in."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        private = self.private_key()
        public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        proof = private.sign(proof_text(self.code), ec.ECDSA(hashes.SHA256()))
        return {"code": self.code, "key": public.decode(), "proof": base64.b64encode(proof).decode()}
