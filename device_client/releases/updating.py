"""Exchanging a device's release for a newer one: found, fetched, tried on the owner's examples, taken over.

Until one transaction of the store says otherwise, the release in use serves, whatever ends the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from umbel.device_client.device import onboarding_of
from umbel.device_client.engine import Engine
from umbel.device_client.entrusted import Entrusted
from umbel.device_client.events import event, now
from umbel.device_client.known import known
from umbel.device_client.own_learning import Learned, OwnLearning, OwnTexts, Progress
from umbel.device_client.releases.fetching import OnBytes, fetch, missing_bytes
from umbel.device_client.releases.installed import install, installed, keep_only, whole
from umbel.device_client.releases.origin import RELEASES, TRUST, Channel, trusted
from umbel.device_client.releases.proving import Proof, Trial, is_quick
from umbel.device_client.releases.sources import source_of
from umbel.device_client.releases.trust import Offer, Pin
from umbel.device_client.runs import told_of
from umbel.device_client.vault.store import KeptProfile, Store
from umbel.shared.errors import BusyError, ReleaseError
from umbel.shared.examples import Example
from umbel.shared.files import sole_use
from umbel.shared.release import Release, read_release

RELEASE, CHANNEL = "release", "channel"
_PREVIOUS, _VERDICT = "previous", "verdict"


@final
@dataclass(frozen=True, slots=True)
class Wanted:
    """What an owner says of an update.

    Attributes:
        check: Only look.
        back: Go back to the release before the one in use.
        source: Another place of the trusted channel, this time; with `pin` the channel from now on.
        release: A release's folder in place of the channel's.
        pin: Whom to trust from now on.
        force: Take it over even if it is not as good.
    """

    check: bool = False
    back: bool = False
    source: str | None = None
    release: Path | None = None
    pin: Pin | None = None
    force: bool = False

    def __post_init__(self) -> None:
        alone = self.release is not None and (self.source is not None or self.pin is not None)
        if alone or (self.back and (self.check or self.source or self.release or self.pin or self.force)):
            raise ReleaseError(
                "these do not go together",
                hint="Give a release's folder, or speak of a channel; to go back, nothing else.",
            )


@final
@dataclass(frozen=True, slots=True)
class Updated:
    """What came of looking for a newer release.

    Attributes:
        outcome: "current": the one in use is offered; "available": another one is; "adopted": it is in use
            now; "kept": it is not as good, so the old one goes on; "back": the previous one is in use again.
        release: The release in use now.
        other: The one that was in use, or that is offered or not taken; None if there is none.
        to_fetch: How many bytes of an available one are not here.
        proof: How both did on the owner's examples; None without examples.
        tried_before: Whether that is known from an earlier update.
        unread: Whether the one that was in use was damaged or missing, so that nothing was compared.
    """

    outcome: str
    release: str
    other: str | None = None
    to_fetch: int = 0
    proof: Proof | None = None
    tried_before: bool = False
    unread: bool = False

    def as_json(self) -> dict[str, Any]:
        """Returns it for scripts."""
        return asdict(self)


@final
@dataclass(frozen=True, slots=True)
class Hears:
    """Who hears how far an update is.

    Attributes:
        on_bytes: Hears how many bytes were fetched, of how many.
        on_phase: Hears what is done next.
        on_progress: Hears how far learning is.
    """

    on_bytes: OnBytes | None = None
    on_phase: Callable[[str], None] = field(default=lambda phase: None)
    on_progress: Callable[[Progress], None] | None = None


@final
class Update:
    """One update of one device."""

    def __init__(
        self,
        home: Path,
        store: Store,
        wanted: Wanted,
        engine_of: Callable[[Release], Engine],
        precision: str,
        hears: Hears | None,
    ):
        self._precision = precision
        self._home, self._store, self._wanted, self._engine_of = home, store, wanted, engine_of
        self._releases, self._hears = home / RELEASES, hears or Hears()
        self._used = str(store.setting(RELEASE))

    def run(self) -> Updated:
        """Does what is wanted; see `Device.update`."""
        with sole_use(self._home / TRUST):
            self._used = str(self._store.setting(RELEASE))  # the one before may have been an update, too
            if self._wanted.back:
                return self._back()
            self._hears.on_phase("looking")
            channel = self._channel()
            offer = self._offer(channel)
            if offer.release_id == self._used:
                if not self._wanted.check and whole(self._releases, self._used) is None:
                    self._taken(channel, offer)  # what was damaged is fetched again
                return Updated("current", self._used)
            own = Entrusted(self._store)
            _check_labels(own.examples, offer)
            verdict = self._verdict(offer.release_id, own.state)
            if self._wanted.check:
                to_fetch = 0 if self._wanted.release else missing_bytes(offer, self._releases)
                return Updated("available", self._used, offer.release_id, to_fetch, *_known_of(verdict))
            old = self._old()
            if verdict is not None and not self._wanted.force:
                return Updated("kept", self._used, offer.release_id, 0, *_known_of(verdict))
            new = self._taken(channel, offer)
            return self._tried(old, new, own)

    def _channel(self) -> Channel | None:
        """Returns the channel to look at; one that is trusted anew is kept."""
        wanted = self._wanted
        if wanted.release is not None:
            return None
        kept = Channel.from_setting(self._store.setting(CHANNEL))
        if wanted.pin is None:
            if kept is None:
                raise ReleaseError(
                    "this device follows no channel",
                    hint="Give a release's folder: --release FOLDER. Or a channel and whom to trust: "
                    "--source CHANNEL --pin PIN.",
                )
            return kept
        place = wanted.source or (kept.source if kept else None)
        if place is None:
            raise ReleaseError(
                "say which channel to trust", hint="Give its folder or address: --source CHANNEL."
            )
        return trusted(place, wanted.pin)

    def _offer(self, channel: Channel | None) -> Offer:
        if channel is None:
            assert self._wanted.release is not None
            read = read_release(self._wanted.release)
            return Offer(read.release_id, read.manifest)
        offer = channel.look(self._home, self._wanted.source)
        if self._wanted.pin is not None:
            told = event("trusted", channel=channel.source, pin=channel.pin)
            self._store.switch({CHANNEL: channel.as_setting()}, {}, told)
        return offer

    def _old(self) -> Release | None:
        """Returns the release in use; None where it cannot be read and its owner wants another one anyway."""
        try:
            return installed(self._releases, self._used)
        except ReleaseError as error:
            if self._wanted.force:
                return None
            raise ReleaseError(
                "the release in use is damaged or missing, so that the new one cannot be compared with it",
                [error.headline, *error.problems],
                "Take the new one over without a comparison: umbel device update --force.",
            ) from None

    def _taken(self, channel: Channel | None, offer: Offer) -> Release:
        if channel is None:
            assert self._wanted.release is not None
            taken = install(self._wanted.release, self._releases)
        else:
            self._hears.on_phase("fetching")
            source = source_of(self._wanted.source or channel.source)
            taken = fetch(source, offer, self._releases, on_bytes=self._hears.on_bytes)
        if taken.release_id != offer.release_id:
            raise ReleaseError("what was fetched is another release than was offered", hint="Try again.")
        return taken

    def _tried(self, old: Release | None, new: Release, own: Entrusted) -> Updated:
        """Compares a new release with the one in use, if that can be read; takes it over or leaves it."""
        kept = self._store.profile(self._used)
        quick = is_quick(new) and (old is None or is_quick(old))
        trial = Trial(_how(kept, own.examples), own.examples, own.texts, quick=quick)
        before = None
        if old is not None and own.examples:
            self._hears.on_phase("trying it on your examples")
            before = self._nll_old(trial, self._engine_of(old), own)
        engine = self._engine_of(new)
        texts = trial.texts(engine, own.readings(engine))  # read once, to be tried and to be learned from
        after = None if before is None else trial.nll(texts.read())
        proof = None if before is None or after is None else Proof(len(own.examples), before, after)
        if proof is not None and not proof.as_good and not self._wanted.force:
            return self._left(new, proof, own.state)
        self._hears.on_phase("learning your profile for it")
        profile = self._profile(trial.how, texts, own)
        own.keep_readings(engine, texts.fresh())
        return self._adopted(old, new, proof, profile, own)

    def _nll_old(self, trial: Trial, engine: Engine, own: Entrusted) -> float | None:
        """Returns what the release in use loses; what it reads for it is kept, as long as it is in use."""
        texts = trial.texts(engine, own.readings(engine)).read()
        own.keep_readings(engine, texts.fresh())
        return trial.nll(texts)

    def _adopted(
        self,
        old: Release | None,
        new: Release,
        proof: Proof | None,
        profile: KeptProfile | None,
        own: Entrusted,
    ) -> Updated:
        """Takes a release over, with its profile, in one transaction."""
        told = {} if proof is None else proof.as_json()
        previous = self._used if old is not None else self._store.setting(_PREVIOUS)
        previous = None if previous == new.release_id else previous
        here = [name for name in (new.release_id, previous) if name]
        self._store.switch(
            {RELEASE: new.release_id, _PREVIOUS: previous, _VERDICT: None},
            {} if profile is None else {new.release_id: profile},
            event("updated", release=new.release_id, before=self._used, **told),
            keep=here,
            erasures=own.erasures,
        )
        self._tidy(*here)
        return Updated("adopted", new.release_id, self._used, 0, proof, unread=old is None)

    def _profile(self, how: str | None, texts: OwnTexts, own: Entrusted) -> KeptProfile | None:
        """Returns the profile for a new release, made as it was tried; None where it can make none."""
        began, release = time.perf_counter(), texts.engine.release
        if how == "learned":
            packed, found = self._learned(texts, own)
            about = {"how": how, **told_of(found, release.manifest.recipe.steps)}
        elif how == "onboarded" and texts.engine.onboards:
            packed, _ = onboarding_of(texts.read(), explain=False)
            about = {"how": how, "texts": len(own.texts)}
        else:
            return None
        told = {"at": now(), "state": own.state, "examples": len(own.examples)}
        return KeptProfile(packed, about | told | {"seconds": round(time.perf_counter() - began, 3)})

    def _learned(self, texts: OwnTexts, own: Entrusted) -> tuple[bytes, Learned]:
        learning = OwnLearning(texts.engine, own.examples, own.texts, own=texts)
        while not learning.finished:
            learning.advance()
            if self._hears.on_progress is not None:
                self._hears.on_progress(learning.progress())
        return learning.result()

    def _left(self, new: Release, proof: Proof, state: str) -> Updated:
        """Remembers that a release is not as good, so that it is not tried again on the same examples."""
        same = self._compared(new.release_id, state)
        verdict = {**same, "proof": proof.as_json()}
        told = event("kept", release=self._used, offered=new.release_id, **proof.as_json())
        self._store.switch({_VERDICT: verdict}, {}, told)
        self._tidy(self._used, new.release_id, self._store.setting(_PREVIOUS))
        return Updated("kept", self._used, new.release_id, 0, proof)

    def _verdict(self, offered: str, state: str) -> Mapping[str, Any] | None:
        """Returns what is known of an offered release from an earlier try on the same examples."""
        kept: Mapping[str, Any] | None = self._store.setting(_VERDICT)
        known = kept is not None and self._compared(offered, state).items() <= kept.items()
        return kept if known else None

    def _compared(self, offered: str, state: str) -> dict[str, Any]:
        """Returns what a verdict on an offered release is of."""
        return {"release": offered, "used": self._used, "state": state, "precision": self._precision}

    def _back(self) -> Updated:
        """Goes back to the release before, and does not come back to the one in use by itself."""
        previous = self._store.setting(_PREVIOUS)
        if previous is None:
            raise ReleaseError("there is no release before the one in use")
        old, before = installed(self._releases, previous), (self._store.state(), self._store.erasures())
        _check_labels(known(self._store.entries())[0], Offer(old.release_id, old.manifest))
        told = {"used": previous, "state": before[0], "precision": self._precision}
        verdict = {"release": self._used, **told, "proof": None}
        self._store.switch(
            {RELEASE: previous, _PREVIOUS: self._used, _VERDICT: verdict},
            {},
            event("went back", release=previous, before=self._used),
            erasures=before[1],
        )
        return Updated("back", previous, self._used)

    def _tidy(self, *releases: str | None) -> None:
        """Removes other releases' files; what cannot be removed now is by the next update."""
        with suppress(BusyError, OSError):
            keep_only(self._releases, {name for name in releases if name})


def _how(kept: KeptProfile | None, examples: Sequence[Example]) -> str | None:
    """Returns how a profile comes about: learned, at home or in a round, or onboarded; None: not at all."""
    if kept is None:
        return None
    return "learned" if examples and kept.about["how"] != "onboarded" else "onboarded"


def _check_labels(examples: Sequence[Example], offer: Offer) -> None:
    known = set(offer.manifest.labels)
    strange = sum(example.label not in known for example in examples)
    if strange:
        raise ReleaseError(
            "the release does not know all of your labels, so it was not taken over",
            [f"{strange} of your {len(examples)} examples have another label than it knows"],
            "What this device has goes on working. Relabel or forget those examples to take that release.",
        )


def _known_of(verdict: Mapping[str, Any] | None) -> tuple[Proof | None, bool]:
    if verdict is None:
        return None, False
    return None if verdict["proof"] is None else Proof.from_json(verdict["proof"]), True
