"""A household: several owners' devices on one machine, asked side by side in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        self._engines: dict[str, Engine] = {}
        problems = []
        for name, device in self.devices.items():
            try:
                if device.release_id not in self._engines:
                    self._engines[device.release_id] = Engine(device.release, threads=threads)
            except UmbelError as error:
                problems += _told(name, error)
        if problems:
            raise ReleaseError("some of the household cannot be asked", problems)

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
                    problems += _told(name, error)
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
        """
        self._check(texts, owners)
        of_release: dict[str, list[int]] = {}
        for number, owner in enumerate(owners):
            of_release.setdefault(self.devices[owner].release_id, []).append(number)
        found: dict[int, Prediction] = {}
        for release, numbers in of_release.items():
            engine = reader(self._engines[release], precision)
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


def _told(name: str, error: UmbelError) -> list[str]:
    return [f"{name}: {problem}" for problem in (error.problems or (error.headline,))]
