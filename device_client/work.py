"""What `learn`, `onboard` and `predict` work on: the device's home, or files that are named."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Self, final

from umbel.device_client.home_commands import HOME
from umbel.device_client.prediction import INT8, Prediction, predict_texts
from umbel.device_client.texts import file_texts
from umbel.shared.errors import ConfigError, ExampleError
from umbel.shared.examples import Example, read_examples
from umbel.shared.release import Release, read_release

if TYPE_CHECKING:
    from umbel.device_client.device import Onboarded
    from umbel.device_client.own_learning import Progress
    from umbel.device_client.owner import Device
    from umbel.device_client.runs import Budget, Outcome

OnProgress = Callable[["Progress"], None]


class Work(ABC):
    """One owner's release, examples and profile, wherever they are.

    Attributes:
        release: The release, checked.
        where: Where the profile is, for people.
        use: The command that predicts with it.
    """

    release: Release
    where: str
    use: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Lets go of what is open."""

    @abstractmethod
    def known(self) -> tuple[list[Example], list[str]]:
        """Returns the owner's examples, and further texts of theirs."""

    @abstractmethod
    def has_profile(self) -> bool:
        """Says whether there is a profile."""

    @abstractmethod
    def learn(
        self, budget: Budget, anew: bool, stopped: Callable[[], bool], on_progress: OnProgress | None
    ) -> Outcome:
        """Learns the profile and keeps it."""

    @abstractmethod
    def onboard(self, explain: bool, precision: str, threads: int) -> Onboarded:
        """Writes a first profile and keeps it."""

    @abstractmethod
    def predict(self, texts: Sequence[str], generic: bool, precision: str, threads: int) -> list[Prediction]:
        """Predicts with the profile, or without."""


@final
class FileWork(Work):
    """A release's folder, a file of examples, one of texts, and one for the profile."""

    def __init__(self, release: Path, examples: Path | None, texts: Path | None, profile: Path):
        self.release = read_release(release)
        self.where = str(profile)
        places = f"--release {quote(str(release))} --profile {quote(str(profile))}"
        self.use = f'umbel device predict {places} "some text"'
        self._examples, self._texts, self._profile = examples, texts, profile

    def close(self) -> None:
        """Nothing is open."""

    @cached_property
    def _known(self) -> tuple[list[Example], list[str]]:
        labels = self.release.manifest.labels
        found = self._examples
        rows = [] if found is None else read_examples(found, labels=labels, default_user="owner")
        return rows, file_texts(self._texts)

    def known(self) -> tuple[list[Example], list[str]]:
        """Reads the files, once."""
        return self._known

    def has_profile(self) -> bool:
        """Looks for the file."""
        return self._profile.exists()

    def learn(
        self, budget: Budget, anew: bool, stopped: Callable[[], bool], on_progress: OnProgress | None
    ) -> Outcome:
        """Learns from the files, from the beginning to the end.

        Raises:
            ConfigError: It is to stop after some time, and nothing here keeps what it would have then.
            ExampleError: There are no examples.
        """
        if budget.seconds is not None:
            raise ConfigError(
                "--max-seconds needs the device's home, which keeps what is not finished",
                hint="Entrust your examples to it: umbel device enroll, then umbel device add.",
            )
        if self._examples is None:
            raise ExampleError("there are no examples to learn from", hint="Give a file: --examples FILE.")
        from umbel.device_client.device import learn_profile
        from umbel.device_client.runs import Outcome, told_of

        begun = time.perf_counter()
        examples, texts = self.known()
        found = learn_profile(
            self.release,
            examples,
            self._profile,
            texts=texts,
            threads=budget.threads,
            memory_mib=budget.memory_mib,
            precision=budget.precision or INT8,
            on_progress=on_progress,
        )
        about = {"examples": len(examples), **told_of(found, self.release.manifest.recipe.steps)}
        return Outcome(True, seconds=time.perf_counter() - begun, about=about, notes=found.notes)

    def onboard(self, explain: bool, precision: str, threads: int) -> Onboarded:
        """Onboards from the files."""
        from umbel.device_client.device import onboard_profile

        examples, texts = self.known()
        return onboard_profile(
            self.release,
            examples,
            texts,
            self._profile,
            explain=explain,
            threads=threads,
            precision=precision,
        )

    def predict(self, texts: Sequence[str], generic: bool, precision: str, threads: int) -> list[Prediction]:
        """Predicts with the profile's file."""
        own = None if generic else self._profile
        return predict_texts(self.release, texts, own, threads=threads, precision=precision)


@final
class HomeWork(Work):
    """The device's home."""

    def __init__(self, device: Device, home: Path):
        self.device = device
        try:
            self.release = device.release
        except BaseException:
            device.close()
            raise
        self.where = str(home)
        elsewhere = "" if home == HOME else f"--home {quote(str(home))} "
        self.use = f'umbel device predict {elsewhere}"some text"'

    def close(self) -> None:
        """Closes the store."""
        self.device.close()

    def known(self) -> tuple[list[Example], list[str]]:
        """Reads the store."""
        return self.device.known()

    def has_profile(self) -> bool:
        """Looks into the store."""
        return self.device.profile() is not None

    def learn(
        self, budget: Budget, anew: bool, stopped: Callable[[], bool], on_progress: OnProgress | None
    ) -> Outcome:
        """Learns from the store, or goes on with what was stopped."""
        return self.device.learn(
            threads=budget.threads,
            seconds=budget.seconds,
            memory_mib=budget.memory_mib,
            precision=budget.precision,
            anew=anew,
            stopped=stopped,
            on_progress=on_progress,
        )

    def onboard(self, explain: bool, precision: str, threads: int) -> Onboarded:
        """Onboards from the store."""
        return self.device.onboard(explain=explain, precision=precision, threads=threads)

    def predict(self, texts: Sequence[str], generic: bool, precision: str, threads: int) -> list[Prediction]:
        """Predicts with the profile in the store; without one, as for everybody."""
        return self.device.predict(texts, generic=generic, precision=precision, threads=threads)
