"""What a coordinator hands to a device's owner, so that it can join: where, whom to trust, and a code.

It travels as one line that can be pasted. Whoever has it before the device does can join in its place, once.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import ssl
from dataclasses import dataclass, field
from typing import final
from urllib.parse import urlsplit

from umbel.shared.checks import has_controls, parsed_json, shown
from umbel.shared.errors import ConfigError

SCHEMA = "umbel.invitation/1"
ENROLL_PATH = "/v1/umbel/enroll"
_MARK = "umbel1-"
_MOST_CHARACTERS = 8192
_CODE = re.compile(r"[a-z2-7]{26}")
_HINT = "Paste the whole line that the coordinator's operator gave you."


@final
@dataclass(frozen=True, slots=True)
class Invitation:
    """What a device needs to join.

    Attributes:
        url: The coordinator's address, https://host:port.
        authority: The certificate (PEM) that the coordinator's own must come from.
        code: The one-time code.
    """

    url: str
    authority: str
    code: str = field(repr=False)

    def __post_init__(self) -> None:
        problems = [*url_problems(self.url), *authority_problems(self.authority)]
        if not _CODE.fullmatch(self.code):
            problems.append("the code is not one: 26 letters and digits from 2 to 7")
        if problems:
            raise ConfigError("this invitation cannot be used", problems, _HINT)

    def as_text(self) -> str:
        """Returns it as one line."""
        der = ssl.PEM_cert_to_DER_cert(self.authority)
        row = {"schema": SCHEMA, "url": self.url, "ca": base64.b64encode(der).decode(), "code": self.code}
        packed = json.dumps(row, sort_keys=True, separators=(",", ":")).encode()
        return _MARK + base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> Invitation:
        """Reads one.

        Raises:
            ConfigError: It is none, is cut, or names an address without TLS.
        """
        row = _row("".join(text.split()))
        if row.get("schema") != SCHEMA:
            problem = f"schema is {shown(row.get('schema'))}, expected {SCHEMA}"
            raise ConfigError("this invitation cannot be used", [problem], _HINT)
        url, packed, code = (str(row.get(name, "")) for name in ("url", "ca", "code"))
        try:
            authority = ssl.DER_cert_to_PEM_cert(base64.b64decode(packed, validate=True))
        except binascii.Error:
            authority = ""
        return cls(url, authority, code)


def proof_text(code: str) -> bytes:
    """Returns what a device signs to show that it has the private key that goes with what it sends."""
    return f"{SCHEMA} {code}".encode()


def url_problems(url: str) -> list[str]:
    """Returns what speaks against a coordinator's address, one line each; only TLS is spoken with one.

    Example:
        >>> url_problems("https://rounds.example.org:8443"), url_problems("http://rounds.example.org")
        ([], ["the address 'http://rounds.example.org' is without TLS: it must begin with https://"])
    """
    try:
        if has_controls(url):
            raise ValueError("it would steer a terminal")
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return [f"'{shown(url)}' is no address"]
    if parts.scheme != "https":
        return [f"the address '{shown(url)}' is without TLS: it must begin with https://"]
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if not parts.hostname or extra or port == 0:
        return [f"the address is '{shown(url)}', expected https://host:port"]
    return []


def authority_problems(pem: str) -> list[str]:
    """Returns a line if a text is not one certificate (PEM)."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=pem)
        right = len(context.get_ca_certs()) == 1
    except (ssl.SSLError, ValueError):
        right = False
    return [] if right else ["the authority's certificate is damaged, or none"]


def _row(text: str) -> dict[str, object]:
    """Returns what an invitation's line holds."""
    try:
        if not text.startswith(_MARK) or len(text) > _MOST_CHARACTERS:
            raise ValueError("no invitation")
        packed = text.removeprefix(_MARK)
        row = parsed_json(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)))
        if not isinstance(row, dict):
            raise ValueError("no object")
    except ValueError:  # binascii.Error and UnicodeDecodeError are such, too
        raise ConfigError(
            "this is no invitation", [f"one begins with {_MARK} and is a few hundred letters long"], _HINT
        ) from None
    return row
