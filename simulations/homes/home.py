"""A simulated device's home in a table of people, and whichever home a device has."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import final

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.flower_app import device_folder, folder_home
from umbel.device_client.learning import Encoded, read_once
from umbel.device_client.simulated import AbstractSimulatedHome
from umbel.shared.errors import ExampleError, ProfileError, UmbelError
from umbel.shared.examples import Example
from umbel.shared.files import sha256_bytes
from umbel.shared.profile import FloatArray, ProfileSpec, pack_profile, unpack_profile
from umbel.shared.release import Release
from umbel.simulations.homes.person import Own
from umbel.simulations.homes.rows import RowFile, TornRowError, WrongFileError
from umbel.simulations.homes.table import MARK, PeopleTable

_HOME = re.compile("[0-9]{6,9}")
_PACK = "Pack a file of examples, and name the folder: umbel data pack {} --out PEOPLE."


@final
class TableHome(AbstractSimulatedHome):
    """One person of a table; a `SimulatedHome` in all but where things lie.

    The profile for a release is a row of profiles-<release>.table, by the person's number. What texts were
    read as are rows of read-<reader>.table, by the rows of the examples; they are bound to the tokens of all
    texts that were read together, so that a reading that is found is the very one that would be made.
    """

    def __init__(self, table: PeopleTable, number: int):
        """Opens nothing yet.

        Args:
            table: The people.
            number: Which of them.
        """
        super().__init__(number)
        self._table = table
        self._own: tuple[Own, Own] | None = None
        self._last = Own([], np.zeros(0, np.int64))

    def examples(self) -> list[Example]:
        """Returns the person's examples.

        Raises:
            ExampleError: There are none, or they cannot be read.
        """
        found = self._given(heldout=False)
        if not found:
            raise ExampleError(f"person {self.number:06d} of {self._table.folder} has no examples")
        return found

    def heldout(self) -> list[Example]:
        """Returns the held-out examples; there may be none.

        Raises:
            ExampleError: They cannot be read.
        """
        return self._given(heldout=True)

    def stamp(self, *, heldout: bool) -> Hashable | None:
        """Returns the table as it was opened, and the person: a table that is open does not change."""
        del heldout
        return self._table.opened, self.number

    def read(self, engine: Engine, examples: Encoded) -> Encoded:
        """Returns the examples read, where the release wants that; those that were given out last.

        Others would be read, too, and in vain be looked for the next time: rows are bound to their tokens.
        """
        if not engine.embeds or examples.embedding is not None or not len(examples):
            return examples
        rows, bound = self._last.rows, _bound(engine, examples)
        kept = self._readings(engine) if len(rows) == len(examples) else None
        if kept is not None:
            with suppress(OSError, TornRowError):  # read again what cannot be read
                found = [kept.read(int(row), bound) for row in rows]
                if None not in found:
                    data = np.frombuffer(b"".join(own or b"" for own in found), "<f4")
                    return replace(examples, embedding=data.reshape(len(rows), -1).astype(np.float32))
        (own,) = read_once(engine, [examples])
        if kept is not None and own.embedding is not None:
            with suppress(OSError):  # it only saves time
                for row, values in zip(rows, own.embedding, strict=True):
                    kept.write(int(row), values.astype("<f4").tobytes(), bound)
        return own

    def load_profile(self, release: Release) -> dict[str, FloatArray] | None:
        """Returns name -> (1, *shape), or None if there is no profile for this release yet.

        Raises:
            ProfileError: The profile is damaged or cannot be read.
        """
        spec = release.manifest.profile
        try:
            data = self._profiles(release).read(self.number)
        except (WrongFileError, TornRowError, OSError) as error:
            raise self._failed("read", error) from None
        return None if data is None else unpack_profile(spec, _head(release) + data, release.release_id)

    def save_profile(self, release: Release, profile: dict[str, FloatArray]) -> None:
        """Keeps a profile in place of the old one; one that is not written whole is noticed.

        Raises:
            ProfileError: The profile does not fit the release, or the table cannot be written.
        """
        spec = release.manifest.profile
        data = pack_profile(spec, profile, release.release_id)[_head_bytes(spec) :]
        try:
            self._profiles(release).write(self.number, data)
        except (WrongFileError, OSError) as error:
            raise self._failed("keep", error) from None

    def _given(self, *, heldout: bool) -> list[Example]:
        if self._own is None:
            self._own = self._table.of(self.number)
        self._last = self._own[heldout]
        return self._last.examples

    def _profiles(self, release: Release) -> RowFile:
        name = f"profiles-{release.release_id[:12]}.table"
        size = release.manifest.profile.packed_bytes
        return self._table.row_file(name, release.release_id, self._table.people, size)

    def _readings(self, engine: Engine) -> RowFile | None:
        """Returns what texts were read as; None where it cannot be kept."""
        subject = sha256_bytes(engine.reader.encode())
        name, size = f"read-{subject[:12]}.table", 4 * engine.embedding_size
        with suppress(OSError, WrongFileError):
            return self._table.row_file(name, subject, self._table.rows, size)
        return None

    def _failed(self, what: str, error: Exception) -> ProfileError:
        words = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
        hint = "Profiles are learned anew in every round: remove the file, or let the device take part."
        return ProfileError(f"cannot {what} the profile of person {self.number:06d}", [words], hint)


def home_of(devices: Path, number: int) -> AbstractSimulatedHome:
    """Opens the home of one simulated device: in a table of people where there is one, else a folder.

    Raises:
        ExampleError: The table is damaged.
    """
    table = table_at(devices)
    return folder_home(devices, number) if table is None else TableHome(table, number)


def table_at(devices: Path) -> PeopleTable | None:
    """Returns the table of people in a folder; None if it holds none. It stays open for the next who asks.

    Raises:
        ExampleError: It is damaged.
    """
    stamp = table_stamp(devices)
    return None if stamp is None else _table(devices, *stamp)


def table_stamp(devices: Path) -> tuple[int, int] | None:
    """Returns what changes when a folder gets another table of people; None if it holds none.

    Raises:
        ExampleError: The folder cannot be read.
    """
    try:
        found = os.stat(os.path.join(devices, MARK))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        problem = f"{MARK}: {error.strerror or type(error).__name__}"
        raise ExampleError(f"{devices} cannot be read", [problem]) from None
    return found.st_ino, found.st_mtime_ns


def people_in(devices: Path) -> int:
    """Returns how many people a folder has: those of its table, or its homes 000000, 000001, ...

    Raises:
        ExampleError: It has none, a damaged table, or homes that are numbered otherwise.
    """
    table = table_at(devices)
    if table is not None:
        return table.people
    try:
        names = [path.name for path in devices.iterdir()]
    except OSError as error:
        file = devices.is_file()
        problem = "it is a file" if file else error.strerror or type(error).__name__
        hint = _PACK.format(devices) if file else _PACK.format("FILE")
        raise ExampleError(f"{devices} is no folder of people", [problem], hint) from None
    homes = {name for name in names if _HOME.fullmatch(name)}
    if not homes:
        problem = f"it holds neither a table ({MARK}) nor homes (000000, 000001, ...)"
        raise ExampleError(f"{devices} is no folder of people", [problem], _PACK.format("FILE"))
    missing = sorted({device_folder(devices, number).name for number in range(len(homes))} - homes)
    if missing:
        problem = (
            f"it has {len(homes):,} homes, which are to be numbered from 000000 on; {missing[0]} is missing"
        )
        raise ExampleError(f"{devices} is no folder of people", [problem], "Number them anew.")
    return len(homes)


def people_digest(devices: Path) -> str:
    """Returns what tells a table of people from another; nothing for a folder of homes.

    Raises:
        ExampleError: The table is damaged.
    """
    table = table_at(devices)
    return "" if table is None else table.digest()[:16]


def missing_homes(devices: Path, total: int) -> list[str]:
    """Returns what keeps the first `total` devices of a folder from taking part."""
    try:
        table = table_at(devices)
    except UmbelError as error:
        return [f"{devices}: {problem}" for problem in error.problems] or [error.headline]
    if table is not None:
        lack = f"{devices} has {table.people:,} people, {total:,} are wanted"
        closed = f"{devices} cannot be written: people's profiles are kept beside them"
        lacks = [lack] if table.people < total else []
        return lacks if os.access(devices, os.W_OK) else [*lacks, closed]
    homes = (device_folder(devices, number) for number in range(total))
    return [f"no such home: {home}" for home in homes if not home.is_dir()]


@lru_cache(maxsize=2)
def _table(devices: Path, inode: int, written_ns: int) -> PeopleTable:
    """Opens a table; one that was written anew is another."""
    del inode, written_ns
    return PeopleTable(devices)


def _head_bytes(spec: ProfileSpec) -> int:
    return spec.file_bytes - spec.packed_bytes


def _head(release: Release) -> bytes:
    """Returns what every packed profile of a release begins with; it is not kept with each."""
    spec = release.manifest.profile
    return pack_profile(spec, spec.zeros(), release.release_id)[: _head_bytes(spec)]


def _bound(engine: Engine, examples: Encoded) -> bytes:
    """Returns what a reading belongs to: the reader, and the tokens of all texts that were read together."""
    tokens = examples.tokens
    return sha256_bytes(engine.reader.encode() + tokens.ids.tobytes() + tokens.mask.tobytes()).encode()
