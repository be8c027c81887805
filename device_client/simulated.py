"""A simulated device's home: what all of them have in common, and one that is a folder of plain files."""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np

from umbel.device_client.egress.gate import Departure
from umbel.device_client.encoded_cache import EncodedCache
from umbel.device_client.engine import Engine
from umbel.device_client.learning import Encoded, encode_examples, read_once
from umbel.device_client.rounds import NO_QUERIES
from umbel.shared.errors import ExampleError, ProfileError
from umbel.shared.examples import Example, read_examples
from umbel.shared.files import atomic_write, plain_bytes, sha256_bytes
from umbel.shared.profile import MAX_FILE_BYTES, FloatArray, pack_profile, unpack_profile
from umbel.shared.release import Release
from umbel.shared.rng import generator

EXAMPLES = "examples.jsonl"
HELDOUT = "heldout.jsonl"
TABLE = "people.json"
"""Says that the devices of a folder are in a table (`umbel.simulations.homes`), and not in folders."""

_encoded_last = EncodedCache(64 * 2**20)  # of some thousands of people: one is asked every few rounds


def forget_encoded() -> None:
    """Forgets examples that were encoded: whoever is asked next is asked as if for the first time."""
    _encoded_last.clear()


class AbstractSimulatedHome(ABC):
    """A simulated device's home, wherever it lies; nothing in it is anybody's secret.

    Attributes:
        number: The device's place in the row.
        most_norm: No bound of its own: the task's clip is the only one.
        release_folder: None: the run names the release.
    """

    most_norm = math.inf
    release_folder: Path | None = None

    def __init__(self, number: int):
        self.number = number

    @abstractmethod
    def examples(self) -> list[Example]:
        """Returns the person's examples; profiles are learned from them.

        Raises:
            ExampleError: There are none, or they are malformed.
        """

    @abstractmethod
    def heldout(self) -> list[Example]:
        """Returns the held-out examples, from which nothing is learned; there may be none.

        Raises:
            ExampleError: They are malformed.
        """

    @abstractmethod
    def read(self, engine: Engine, examples: Encoded) -> Encoded:
        """Returns the examples read, where the release wants that; what was read before is not read again."""

    @abstractmethod
    def load_profile(self, release: Release) -> dict[str, FloatArray] | None:
        """Returns name -> (1, *shape), or None if there is no profile for this release yet.

        Raises:
            ProfileError: The profile is damaged or cannot be read.
        """

    @abstractmethod
    def save_profile(self, release: Release, profile: dict[str, FloatArray]) -> None:
        """Keeps a profile.

        Raises:
            ProfileError: The profile does not fit the release, or cannot be written.
        """

    @abstractmethod
    def stamp(self, *, heldout: bool) -> Hashable | None:
        """Returns what changes when the examples do; None if that cannot be told.

        Args:
            heldout: Of the held-out examples, rather than of those that profiles are learned from.
        """

    def support(self, engine: Engine) -> Encoded:
        """Returns the person's examples, read where the release wants that.

        Raises:
            ExampleError: There are none, they are malformed, or a label is not one of the release's.
        """
        return self._encoded(engine, heldout=False)

    def queries(self, engine: Engine) -> Encoded:
        """Returns the held-out examples likewise.

        Raises:
            ExampleError: There are none, they are malformed, or a label is not one of the release's.
        """
        found = self._encoded(engine, heldout=True)
        if not len(found):
            raise ExampleError(NO_QUERIES, hint="Only people of a simulation who have some are evaluated.")
        return found

    def _encoded(self, engine: Engine, *, heldout: bool) -> Encoded:
        """Returns examples as they were encoded last, unless they or the release have changed."""

        def made() -> Encoded:
            return self.read(engine, encode_examples(engine, self.heldout() if heldout else self.examples()))

        stamp = self.stamp(heldout=heldout)
        if stamp is None:
            return made()  # which says what is missing
        key = engine.release.release_id, engine.precision, engine.compute, heldout, stamp
        return _encoded_last.get(key, made)

    def client_number(self) -> int:
        """Returns the device's place in the row."""
        return self.number

    def rounding(self, seed: int, round_: int) -> np.random.Generator:
        """Returns what decides how a change is rounded for a secure sum: of seed, round and device."""
        return generator(seed, round_, str(self.number), "rounding")

    def sum_refusals(self, devices: int) -> list[str]:
        """Returns nothing: one process sees every change anyway."""
        del devices
        return []

    def gain_refusals(self, release_id: str) -> list[str]:
        """Returns that it tells none: simulations know their people's gains."""
        del release_id
        return ["a simulated device tells no gain"]

    def noised_gain(self, release_id: str) -> int:
        """Is not asked for one."""
        raise NotImplementedError(release_id)

    def refusals(self) -> list[str]:
        """Returns nothing: a simulated person has no policy."""
        return []

    def enter(self, departure: Departure, problems: Sequence[str]) -> list[str]:
        """Returns the problems as they are: there is no policy, and nobody to keep a log for."""
        del departure
        return list(problems)


@final
class SimulatedHome(AbstractSimulatedHome):
    """The folder of one simulated device.

    home/
      examples.jsonl            the person's examples; profiles are learned from them
      heldout.jsonl             examples that nothing is learned from
      profile-<release>.umbel   the profile for a release (mode 0600)
      read-<hash>.npy           what texts were read as, so that each is read once and not in every round

    Attributes:
        folder: Where it lies.
    """

    def __init__(self, folder: Path, number: int = 0):
        super().__init__(number)
        self.folder = folder

    def examples(self) -> list[Example]:
        """Returns the person's examples.

        Raises:
            ExampleError: There are none, or they are malformed.
        """
        return read_examples(self.folder / EXAMPLES, default_user="owner")

    def heldout(self) -> list[Example]:
        """Returns the held-out examples; there may be none.

        Raises:
            ExampleError: They are malformed.
        """
        path = self.folder / HELDOUT
        return read_examples(path, default_user="owner") if path.is_file() else []

    def stamp(self, *, heldout: bool) -> Hashable | None:
        """Returns the file's place, number, time and size."""
        try:
            file = (self.folder / (HELDOUT if heldout else EXAMPLES)).stat()
        except OSError:
            return None
        return str(self.folder), file.st_ino, file.st_mtime_ns, file.st_size

    def read(self, engine: Engine, examples: Encoded) -> Encoded:
        """Returns the examples read, where the release wants that; what was read before is taken from a file.

        The file's name is a hash of the texts' tokens and of all that reads them: another text or another
        encoder has another file.
        """
        if not engine.embeds or examples.embedding is not None or not len(examples):
            return examples
        path = self._readings_path(engine, examples)
        with suppress(OSError, ValueError, EOFError):  # read again what cannot be read
            found = np.load(path, allow_pickle=False)
            if found.dtype == np.float32 and found.shape == (len(examples), engine.embedding_size):
                return replace(examples, embedding=found)
        (own,) = read_once(engine, [examples])
        self.keep_read(engine, own)
        return own

    def keep_read(self, engine: Engine, examples: Encoded) -> None:
        """Keeps what examples were read as, if they were, so that they are not read again."""
        if examples.embedding is None:
            return
        made = io.BytesIO()
        np.save(made, examples.embedding)
        with suppress(OSError):  # it only saves time
            atomic_write(self._readings_path(engine, examples), made.getvalue(), mode=0o600, durable=False)

    def _readings_path(self, engine: Engine, examples: Encoded) -> Path:
        named = engine.reader.encode() + examples.tokens.ids.tobytes() + examples.tokens.mask.tobytes()
        return self.folder / f"read-{sha256_bytes(named)[:32]}.npy"

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
            data = plain_bytes(path, MAX_FILE_BYTES)  # no profile is longer, and a wrong file may be endless
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
            # It is learned anew in every round: waiting for the disk would take longer than learning it.
            atomic_write(path, data, mode=0o600, durable=False)
        except OSError as error:
            raise ProfileError(
                f"cannot keep the profile {path}", [error.strerror or type(error).__name__]
            ) from None
