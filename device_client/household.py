"""A household: several owners' devices on one machine, asked side by side in one batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import final

import numpy as np

from umbel.device_client.engine import Engine
from umbel.device_client.owner import Device, unasked
from umbel.device_client.prediction import INT8, Prediction, predict_owners, reader
from umbel.device_client.vault.keys import Ask
from umbel.shared.errors import ExampleError, ReleaseError, StoreError, UmbelError
from umbel.shared.profile import FloatArray
from umbel.shared.release import Release

AskFor = Callable[[str], Ask]
"""An owner's name -> what gives their passphrase."""


def _nobody_asked(_: str) -> Ask:
    return unasked


@final
class Household:
    """Several owners' devices, each with its own home and key, and one copy of every release's weights.

    Example:
        with Household.open({"ann": Path("ann"), "bob": Path("bob")}) as household:
            household.predict(["A slow, quiet story.", "A loud film."], ["ann", "bob"])
    """

    def __init__(self, devices: Mapping[str, Device], *, threads: int = 1):
        """Takes over devices that are open; `close` closes them.

        Args:
            devices: Owner's name -> their device.
            threads: Threads of a graph run.

        Raises:
            ReleaseError: Somebody's release is missing or damaged; all are told.
        """
        self.devices = dict(devices)
        self._threads = threads
        self._releases: dict[str, Release] = {}
        self._engines: dict[str, Engine] = {}
        self._engines_of(self.devices)

    @classmethod
    def open(cls, homes: Mapping[str, Path], *, ask: AskFor = _nobody_asked, threads: int = 1) -> Household:
        """Opens the devices of a household.

        Args:
            homes: Owner's name -> their device's home.
            ask: Gives what asks for an owner's passphrase.
            threads: Threads of a graph run.

        Raises:
            ReleaseError: Somebody's release is missing or damaged; all are told.
            StoreError: There is nobody, or a device does not open; all that do not are told, none stays open.
        """
        if not homes:
            raise StoreError("a household has somebody in it", hint="Name each owner and their home.")
        problems: list[str] = []
        with ExitStack() as opened:
            devices = {}
            for name, home in homes.items():
                try:
                    devices[name] = opened.enter_context(Device.open(home, ask=ask(name)))
                except UmbelError as error:
                    problems.append(_told(name, error))
            if problems:
                raise StoreError("some of the household do not open", problems)
            household = cls(devices, threads=threads)
            opened.pop_all()
        return household

    def close(self) -> None:
        """Lets go of every store."""
        for device in self.devices.values():
            device.close()

    def __enter__(self) -> Household:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def predict(
        self,
        texts: Sequence[str],
        owners: Sequence[str],
        *,
        compare: bool = False,
        precision: str = INT8,
    ) -> list[Prediction]:
        """Predicts each text with its owner's profile; who has none is answered as everybody is.

        Owners of one release share a batch. What is answered to one does not depend on the others.

        Args:
            texts: The texts.
            owners: Whose each text is.
            compare: Also find the labels for everybody.
            precision: As of `Device.predict`.

        Returns:
            A prediction for each text, in the order given.

        Raises:
            ConfigError: There is no such precision.
            ExampleError: Texts and owners are not as many, or an owner is not of the household.
            ProfileError: A profile is damaged.
            ReleaseError: Somebody has updated since, and what they have now is missing or damaged.
        """
        self._check(texts, owners)
        engines = self._engines_of(set(owners))
        of_release: dict[str, list[int]] = {}
        for number, owner in enumerate(owners):
            of_release.setdefault(engines[owner].release.release_id, []).append(number)
        found: dict[int, Prediction] = {}
        for numbers in of_release.values():
            engine = reader(engines[owners[numbers[0]]], precision)
            names = sorted({owners[number] for number in numbers})
            profiles: list[Mapping[str, FloatArray] | None] = [
                self.devices[name].profile(engine.release) for name in names
            ]
            place = {name: at for at, name in enumerate(names)}
            index = np.array([place[owners[number]] for number in numbers], np.int64)
            some = [texts[number] for number in numbers]
            answers = predict_owners(engine, some, index, profiles, compare=compare)
            found |= dict(zip(numbers, answers, strict=True))
        return [found[number] for number in range(len(texts))]

    def _engines_of(self, names: Collection[str]) -> dict[str, Engine]:
        """Returns each one's graphs, those of a release once; another process may have updated a device."""
        problems = []
        for name in (name for name in self.devices if name in names):
            try:
                self._releases[name] = release = self.devices[name].release
                if release.release_id not in self._engines:
                    self._engines[release.release_id] = Engine(release, threads=self._threads, alone=True)
            except UmbelError as error:
                problems.append(_told(name, error))
        if problems:
            raise ReleaseError("some of the household cannot be asked", problems)
        found = {name: self._engines[self._releases[name].release_id] for name in names}
        # A home removes what it no longer uses, so nobody reads from the copy of one who has another now.
        used = list(self._releases.values())
        self._engines = {id_: own for id_, own in self._engines.items() if own.release in used}
        return found

    def _check(self, texts: Sequence[str], owners: Sequence[str]) -> None:
        problems = []
        if len(texts) != len(owners):
            problems.append(f"found {len(texts)} texts and {len(owners)} owners")
        problems += [
            f"text {number}: its owner is not of the household"
            for number, owner in enumerate(owners, 1)
            if owner not in self.devices
        ]
        if problems:
            hint = f"The household: {', '.join(self.devices)}."
            raise ExampleError("the household cannot answer this", problems, hint)


def _told(name: str, error: UmbelError) -> str:
    return ": ".join((name, error.headline, *(["; ".join(error.problems)] if error.problems else [])))
