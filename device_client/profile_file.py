"""A profile in a file of its own, for whoever works on files and has no home."""

from __future__ import annotations

from pathlib import Path

from umbel.shared.errors import ProfileError
from umbel.shared.files import first_bytes, plain_bytes
from umbel.shared.profile import MAGIC, MAX_FILE_BYTES, FloatArray, unpack_profile
from umbel.shared.release import Release


def check_profile_place(path: Path) -> None:
    """Refuses a place where something else lies than a profile: it would be written over.

    Raises:
        ProfileError: There is a file that is no profile.
        OSError: It cannot be read.
    """
    if first_bytes(path, len(MAGIC)) not in (None, b"", MAGIC):
        raise ProfileError(
            f"{path} is no profile, so none is written over it", hint="Name another file: --profile FILE."
        )


def read_profile(release: Release, path: Path) -> dict[str, FloatArray]:
    """Reads a profile for a release: name -> (1, *shape).

    Raises:
        ProfileError: There is none, or it is damaged or belongs to another release.
    """
    try:
        data = plain_bytes(path, MAX_FILE_BYTES)  # no profile is longer, and a wrong file may be endless
    except FileNotFoundError:
        raise ProfileError(
            f"there is no profile at {path}",
            hint="Make one with: umbel device learn, or onboard; or pass --generic to predict without.",
        ) from None
    return unpack_profile(release.manifest.profile, data, release.release_id)
