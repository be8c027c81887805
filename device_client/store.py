"""A device's home: the owner's examples and the private profile, in a folder that nothing else writes to."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import final

from umbel.shared.errors import ExampleError, ProfileError
from umbel.shared.examples import Example, read_examples
from umbel.shared.files import atomic_write
from umbel.shared.profile import FloatArray, pack_profile, unpack_profile
from umbel.shared.release import Release

EXAMPLES = "examples.jsonl"
HELDOUT = "heldout.jsonl"
CLIENT = "client"


@final
class DeviceHome:
    """The folder of one device.

    home/
      examples.jsonl            the owner's examples; profiles are learned from them
      heldout.jsonl             in simulations only: examples that nothing is learned from
      profile-<release>.umbel   the private profile for a release (mode 0600)
      client                    a random number that says nothing about the owner, made when first asked for
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def examples(self) -> list[Example]:
        """Returns the owner's examples.

        Raises:
            ExampleError: There are none, or they are malformed.
        """
        return read_examples(self.folder / EXAMPLES, default_user="owner")

    def heldout(self) -> list[Example]:
        """Returns the held-out examples; none on a real device.

        Raises:
            ExampleError: They are malformed.
        """
        path = self.folder / HELDOUT
        return read_examples(path, default_user="owner") if path.is_file() else []

    def profile_path(self, release: Release) -> Path:
        """Returns where the profile for a release lies."""
        return self.folder / f"profile-{release.release_id[:12]}.umbel"

    def load_profile(self, release: Release) -> dict[str, FloatArray] | None:
        """Returns name -> (1, *shape), or None if there is no profile for this release yet.

        Raises:
            ProfileError: The profile is damaged or cannot be read.
        """
        path = self.profile_path(release)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ProfileError(
                f"cannot read the profile {path}", [error.strerror or type(error).__name__]
            ) from None
        return unpack_profile(release.manifest.profile, data, release.release_id)

    def save_profile(self, release: Release, profile: dict[str, FloatArray]) -> None:
        """Keeps a profile: the old one stays until the new one is wholly on disk.

        Raises:
            ProfileError: The profile does not fit the release, or the home cannot be written.
        """
        path = self.profile_path(release)
        data = pack_profile(release.manifest.profile, profile, release.release_id)
        try:
            atomic_write(path, data, mode=0o600)
        except OSError as error:
            raise ProfileError(
                f"cannot keep the profile {path}", [error.strerror or type(error).__name__]
            ) from None

    def client_number(self) -> int:
        """Returns the random number by which a coordinator samples this device; made once, then kept.

        It is drawn from the system, not from a seed: two devices must not share it, and it must tell nothing.

        Raises:
            ExampleError: The home does not exist.
        """
        path = self.folder / CLIENT
        if not self.folder.is_dir():
            raise ExampleError(f"there is no device home at {self.folder}", hint="Make the folder first.")
        try:
            return int(path.read_text()) & (2**63 - 1)
        except (OSError, ValueError):
            number = secrets.randbits(63)
            atomic_write(path, f"{number}\n".encode(), mode=0o600)
            return number
