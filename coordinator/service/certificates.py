"""The coordinator's own certificate authority, and the certificate that it shows to devices.

Devices are given the authority's certificate with their invitation and trust nothing else, so the
server's certificate and key can be made anew at any time without telling them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from umbel.shared.errors import ConfigError

AUTHORITY_DAYS: Final = 3650
SERVER_DAYS: Final = 397
_BACKDATED: Final = timedelta(hours=1)  # a device's clock may be behind
_RESTORE = "Restore it from a backup."

PrivateKey = ec.EllipticCurvePrivateKey


def new_authority(now: datetime) -> tuple[PrivateKey, x509.Certificate]:
    """Makes an authority that signs servers and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "umbel coordinator")])
    made = (
        _begun(name, name, key, now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return key, made.sign(key, hashes.SHA256())


def new_server(
    authority: x509.Certificate, authority_key: PrivateKey, names: Sequence[str], now: datetime
) -> tuple[PrivateKey, x509.Certificate]:
    """Makes a key and a certificate for a server.

    Args:
        authority: Who vouches for it.
        authority_key: Its key.
        names: Host names and addresses under which devices reach it; at least one.
        now: The time.

    Raises:
        ConfigError: The key is not the authority's.
    """
    if authority_key.public_key() != authority.public_key():
        raise ConfigError("the authority's key and its certificate do not belong together", hint=_RESTORE)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "umbel coordinator server")])
    made = (
        _begun(name, authority.subject, key, now, SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName([_alternative(own) for own in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
    )
    return key, made.sign(authority_key, hashes.SHA256())


def name_problems(names: Sequence[str]) -> list[str]:
    """Returns the names that no certificate can carry, one line each.

    Example:
        >>> name_problems(["rounds.example.org", "::1", "a b"])
        ["'a b' is no host name and no address"]
    """
    problems = []
    for name in names:
        try:
            _alternative(name)
        except ValueError:
            problems.append(f"'{name}' is no host name and no address")
    return problems


def names_of(certificate: x509.Certificate) -> list[str]:
    """Returns the host names and addresses that a certificate is for."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(own.value) for own in found]


def read_certificate(pem: bytes, where: str) -> x509.Certificate:
    """Reads a certificate.

    Raises:
        ConfigError: It is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise ConfigError(f"{where} is no certificate", hint=_RESTORE) from None


def read_key(pem: bytes, where: str) -> PrivateKey:
    """Reads a private key.

    Raises:
        ConfigError: It is none.
    """
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{where} is no private key", hint=_RESTORE)
    return key


def key_pem(key: PrivateKey) -> bytes:
    """Returns a private key as it is kept."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Returns a certificate as it is kept."""
    return certificate.public_bytes(Encoding.PEM)


def vouched(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Says whether an authority has signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _begun(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    letters = name.replace("-", "").replace(".", "")
    if not letters.isalnum() or not letters.isascii() or len(name) > 253 or name.startswith((".", "-")):
        raise ValueError(name)
    return x509.DNSName(name)
