"""What a coordinator keeps: who it is, whom it knows, and what rounds have reached.

folder/
  coordinator.json          under which address devices reach it
  ca.pem                    the certificate that devices are told to trust; public
  server.pem                what it shows to devices; public
  private/ca.key            signs server certificates; needed to renew only, so it may lie elsewhere
  private/server.key        mode 0600
  devices.sqlite            devices that may take part, and codes that are open
  rounds/<release>/         what rounds of a release have reached
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from umbel.shared.checks import count_problems, parsed_json, shown
from umbel.shared.errors import ConfigError
from umbel.shared.files import atomic_write, refuse_taken, sole_use

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from umbel.coordinator.service.certificates import PrivateKey

SCHEMA = "umbel.coordinator/1"
ABOUT, AUTHORITY, SERVER = "coordinator.json", "ca.pem", "server.pem"
PRIVATE, AUTHORITY_KEY, SERVER_KEY = "private", "ca.key", "server.key"
ROSTER, ROUNDS = "devices.sqlite", "rounds"
_DIGITS = 12
_RESTORE = "Restore it from a backup."


@final
@dataclass(frozen=True, slots=True)
class Address:
    """Under which address devices reach a coordinator.

    Attributes:
        host: Its name or address.
        port: Its port.
        names: Further names and addresses for the certificate.
    """

    host: str
    port: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from umbel.coordinator.service.certificates import name_problems

        problems = [*name_problems(self.all_names()), *count_problems("port", self.port, 1, 65535)]
        if problems:
            raise ConfigError("a coordinator cannot have this address", problems, "Give --host and --port.")

    def all_names(self) -> list[str]:
        """Returns every name that the certificate is for, each once."""
        return list(dict.fromkeys([self.host, *self.names]))

    @property
    def url(self) -> str:
        """The address, as devices are told it."""
        return (
            f"https://[{self.host}]:{self.port}" if ":" in self.host else f"https://{self.host}:{self.port}"
        )


@final
class Folder:
    """A coordinator's folder."""

    def __init__(self, path: Path, address: Address):
        self.path, self.address = path, address

    @classmethod
    def make(cls, path: Path, address: Address) -> tuple[Folder, bool]:
        """Begins a coordinator; one that is there already with this address stays as it is.

        Returns:
            The folder, and whether it is new.

        Raises:
            ConfigError: There is one with another address, of one a part is missing, or the folder holds
                something else.
            OSError: It cannot be written.
        """
        if (path / ABOUT).exists():
            found = cls.read(path)
            if found.address != address:
                problem = f"it is for {found.address.url}, not for {address.url}"
                names = f"its names are {', '.join(found.address.all_names())}"
                raise ConfigError(
                    f"there is a coordinator in {path} already",
                    [problem if found.address.url != address.url else names],
                    "Change its address by: umbel coordinator renew --host HOST. Nothing was changed.",
                )
            return found, False
        refuse_taken(path)
        with sole_use(path):
            folder = cls(path, address)
            folder._begin()
        return folder, True

    @classmethod
    def read(cls, path: Path) -> Folder:
        """Opens a coordinator's folder.

        Raises:
            ConfigError: There is none, or it is damaged.
        """
        where = path / ABOUT
        if not where.is_file():
            raise ConfigError(f"there is no coordinator in {path}", hint="Begin one: umbel coordinator init.")
        try:
            row = parsed_json(where.read_bytes())
            schema, host, port, names = row["schema"], row["host"], row["port"], tuple(row["names"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{where} is damaged", hint=_RESTORE) from None
        if schema != SCHEMA:
            raise ConfigError(f"{where} is of another version", [f"{shown(schema)}, expected {SCHEMA}"])
        return cls(path, Address(str(host), port, tuple(str(name) for name in names)))

    def _begin(self) -> None:
        """Makes keys and certificates; what says that a coordinator is here comes last."""
        from umbel.coordinator.service.roster import Roster

        private = self.path / PRIVATE
        private.mkdir(mode=0o700, exist_ok=True)
        os.chmod(private, 0o700)
        self._certify(*self._begun_authority())
        Roster.open(self.path / ROSTER).close()
        self._keep_about()

    def _begun_authority(self) -> tuple[Certificate, PrivateKey]:
        """Returns the authority that lies here already, as devices may trust it, or makes one.

        Raises:
            ConfigError: Devices may trust one of which something is missing.
        """
        from umbel.coordinator.service.certificates import certificate_pem, key_pem, new_authority, read_key

        place = self.path / PRIVATE / AUTHORITY_KEY
        there = [file for file in (self.path / AUTHORITY, self.path / ROSTER) if file.exists()]
        if there and not (place.is_file() and (self.path / AUTHORITY).is_file()):
            problems = [f"{file.name} is there" for file in there]
            raise ConfigError(f"of the coordinator in {self.path} a part is missing", problems, _RESTORE)
        if there:
            return self.authority(), read_key(place.read_bytes(), str(place))
        key, authority = new_authority(_now())
        atomic_write(place, key_pem(key), mode=0o600)
        atomic_write(self.path / AUTHORITY, certificate_pem(authority))
        return authority, key

    def renew(self, address: Address | None = None, authority_key: Path | None = None) -> None:
        """Makes the server's key and certificate anew; devices notice nothing, for the authority stays.

        Args:
            address: Another address, or None for the same one. Devices that joined keep the old one: it must
                go on to lead here.
            authority_key: Where the authority's key lies, if it is not in the folder.

        Raises:
            ConfigError: The authority's key is not at hand, or not its own.
            OSError: The folder cannot be written.
        """
        from umbel.coordinator.service.certificates import read_key

        place = authority_key or self.path / PRIVATE / AUTHORITY_KEY
        if not place.is_file():
            raise ConfigError(f"the authority's key is not at {place}", hint="Name it: --ca-key FILE.")
        with sole_use(self.path):
            self.address = address or self.address
            self._certify(self.authority(), read_key(place.read_bytes(), str(place)))
            self._keep_about()

    def _certify(self, authority: Certificate, key: PrivateKey) -> None:
        from umbel.coordinator.service.certificates import certificate_pem, key_pem, new_server

        own, certificate = new_server(authority, key, self.address.all_names(), _now())
        # One file holds both, so that a crash in between cannot leave a key with another one's certificate.
        both = key_pem(own) + certificate_pem(certificate)
        atomic_write(self.path / PRIVATE / SERVER_KEY, both, mode=0o600)
        atomic_write(self.path / SERVER, certificate_pem(certificate))

    def _keep_about(self) -> None:
        row = {"schema": SCHEMA, **asdict(self.address)}
        atomic_write(self.path / ABOUT, json.dumps(row, indent=1).encode() + b"\n")

    def authority(self) -> Certificate:
        """Returns the certificate that devices are told to trust.

        Raises:
            ConfigError: It is missing or damaged.
        """
        return self._certificate(self.path / AUTHORITY)

    def server(self) -> Certificate:
        """Returns the certificate that is shown to devices, from beside its key.

        Raises:
            ConfigError: It is missing or damaged, or the authority has not signed it.
        """
        from umbel.coordinator.service.certificates import vouched

        found = self._certificate(self.key_file)
        if not vouched(found, self.authority()):
            raise ConfigError(
                "the server's certificate is not by this coordinator's authority",
                hint="Make it anew: umbel coordinator renew.",
            )
        return found

    @property
    def key_file(self) -> Path:
        """The server's private key and its certificate, in one file."""
        return self.path / PRIVATE / SERVER_KEY

    @property
    def roster(self) -> Path:
        """The file of devices and codes."""
        return self.path / ROSTER

    def rounds(self, release_id: str) -> Path:
        """Returns the out folder of a release's rounds."""
        return self.path / ROUNDS / release_id[:_DIGITS]

    def expiry(self) -> dict[str, Any]:
        """Returns until when the certificates are good."""
        return {
            "ca": self.authority().not_valid_after_utc.isoformat(),
            "server": self.server().not_valid_after_utc.isoformat(),
        }

    def _certificate(self, place: Path) -> Certificate:
        from umbel.coordinator.service.certificates import read_certificate

        try:
            data = place.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{place} cannot be read",
                [error.strerror or type(error).__name__],
                _RESTORE,
            ) from None
        return read_certificate(data, str(place))


def _now() -> datetime:
    return datetime.now(UTC)
