"""A device and its owner: a home that holds a sealed store and the release in use.

home/                      ~/.umbel unless UMBEL_HOME or --home says otherwise; its owner's alone
  store.sqlite             examples, profiles, log: every private piece sealed (`vault/`)
  key                      where the key is held in a file: 32 random bytes, mode 0600
  releases/<id>/           releases that were taken over
  trust/                   what a channel has said so far, signed by its publisher; not private
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from umbel.device_client.egress.policy import Policy
from umbel.device_client.egress.totals import NOTHING, added
from umbel.device_client.engine import Engine
from umbel.device_client.events import event as _event
from umbel.device_client.events import now as _now
from umbel.device_client.gain import gain_of
from umbel.device_client.known import known
from umbel.device_client.prediction import INT8, Prediction, check_precision, predict_owners, reader
from umbel.device_client.releases.installed import installed
from umbel.device_client.vault.keys import Ask, KeyFile, KeyHolder, Keyring, Passphrase
from umbel.device_client.vault.store import (
    Added,
    Entry,
    Erased,
    Holders,
    KeptProfile,
    Store,
    destroy,
    is_taken,
    taken_place,
)
from umbel.shared.errors import ConfigError, ExampleError, ReleaseError, StoreError
from umbel.shared.examples import Example, text_problems
from umbel.shared.files import clear_unfinished, sha256_bytes, sole_use
from umbel.shared.profile import FloatArray, unpack_profile
from umbel.shared.release import MANIFEST, Release, parse_manifest

if TYPE_CHECKING:
    from umbel.device_client.device import Onboarded
    from umbel.device_client.joining.membership import Membership
    from umbel.device_client.own_learning import Progress
    from umbel.device_client.releases.fetching import OnBytes
    from umbel.device_client.releases.trust import Pin
    from umbel.device_client.releases.updating import Hears, Updated, Wanted
    from umbel.device_client.runs import Outcome

STORE = "store.sqlite"
KEYS = ("file", "keyring", "passphrase")
_KEY, _RELEASES = "key", "releases"
_RELEASE, _CHANNEL, _POLICY, _CLIENT = "release", "channel", "policy", "client"
_MEMBERSHIP, _ROUNDING, _GAIN = "membership", "rounding", "gain"
_ROUNDING_BYTES = 32
_OWN = ("learned", "onboarded")
_RUNS = ("learned", "stopped learning", "onboarded")
_SEARCHED, _TOLD_RUNS = 50, 3


def unasked() -> str:
    """Stands for a passphrase that nobody was asked for.

    Raises:
        StoreError: Always.
    """
    raise StoreError("this store needs its passphrase", hint="Give it: Device.open(home, ask=...).")


@final
class Device:
    """One owner's device.

    Everything that is learned or added is kept before a method returns.

    Example:
        device = Device.enroll(Path("home"), Path("release"))
        device.add([Example("owner", "A slow, quiet story.", "yes")])
        device.learn()
        device.predict(["A loud film."])
    """

    def __init__(self, home: Path, store: Store):
        self.home = home
        self._store = store
        self._release: Release | None = None
        self._engine: Engine | None = None

    @classmethod
    def enroll(
        cls,
        home: Path,
        release: Path | str,
        *,
        pin: Pin | None = None,
        key: str = "file",
        ask: Ask = unasked,
        on_bytes: OnBytes | None = None,
    ) -> Device:
        """Takes a release over and makes a store for its owner.

        Args:
            home: The device's home; made for its owner alone.
            release: The release's folder, or a channel's folder or address (https://...).
            pin: Whose releases a channel's are; they are trusted from then on.
            key: Who holds the store's key: "file", "keyring" or "passphrase".
            ask: Gives the passphrase.
            on_bytes: Hears how many bytes were fetched, of how many.

        Raises:
            ConfigError: There is no such holder.
            ReleaseError: The release cannot be used, or the channel is not to be believed.
            StoreError: The home has a store, or cannot have one.
        """
        from umbel.device_client.releases.origin import begin

        _check_key(key)
        if is_taken(home / STORE):
            raise taken_place(home / STORE)  # before a release is copied
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        taken, channel = begin(str(release), pin, home, on_bytes)
        settings: dict[str, Any] = {_RELEASE: taken.release_id}
        event = _event("enrolled", release=taken.release_id)
        if channel is not None:
            settings[_CHANNEL] = channel.as_setting()
            event |= {"channel": channel.source, "pin": channel.pin}
        return cls(home, Store.create(home / STORE, key, _holders(home, ask), settings, event))

    @classmethod
    def open(cls, home: Path, *, ask: Ask = unasked) -> Device:
        """Opens a device.

        Raises:
            StoreError: There is none, or it does not open.
        """
        clear_unfinished(home)
        return cls(home, Store.open(home / STORE, _holders(home, ask)))

    def close(self) -> None:
        """Lets go of the store."""
        self._store.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def release(self) -> Release:
        """The release in use, checked when it is first asked for; another process may have updated since.

        Raises:
            ReleaseError: It is missing or damaged.
        """
        used = self.release_id
        if self._release is None or self._release.release_id != used:
            self._release = installed(self.home / _RELEASES, used)
        return self._release

    @property
    def release_id(self) -> str:
        """The id of the release in use."""
        return str(self._store.setting(_RELEASE))

    @property
    def release_folder(self) -> Path:
        """Where the release in use lies."""
        return self.home / _RELEASES / self.release_id

    def add(self, examples: Sequence[Example], texts: Sequence[str] = ()) -> Added:
        """Keeps examples and texts without labels, all or none; a known text may get another label.

        Raises:
            ExampleError: A label is not the release's, examples are of several people, or a text is none.
        """
        _check(examples, texts, self.release.manifest.labels)
        now = _now()
        entries = [Entry(example.text, example.label, now) for example in examples]
        return self._store.add(entries + [Entry(text, None, now) for text in texts])

    def counts(self) -> tuple[int, int]:
        """Returns how many examples there are, and how many texts without a label."""
        return self._store.counts()

    def entries(self) -> list[Entry]:
        """Returns what was added, oldest first."""
        return self._store.entries()

    def onboard(self, *, explain: bool = True, precision: str = INT8, threads: int = 1) -> Onboarded:
        """Writes a first profile from all that was added, in one pass, and keeps it.

        Args:
            explain: Also find each text's influence, which takes a profile without each of them.
            precision: "int8" reads texts in 8 bits where the release can; "float32" does not.
            threads: Threads of a graph run.

        Raises:
            ConfigError: There is no such precision.
            ExampleError: Nothing was added yet.
            ReleaseError: The release has no onboarding.
        """
        from umbel.device_client.device import check_known, onboarding_of
        from umbel.device_client.entrusted import Entrusted
        from umbel.device_client.own_learning import OwnTexts

        began, own = time.perf_counter(), Entrusted(self._store)
        engine = reader(self.engine(threads), precision)
        check_known(own.examples, own.texts)
        texts = OwnTexts(engine, own.examples, own.texts, own.readings(engine), onboards=True).read()
        own.keep_readings(engine, texts.fresh())
        packed, found = onboarding_of(texts, explain=explain)
        before = own.state, own.erasures
        told = {"texts": len(own.texts)}
        self._keep(engine.release, packed, before, "onboarded", own.examples, began, told)
        return found

    def learn(
        self,
        *,
        threads: int = 1,
        seconds: float | None = None,
        memory_mib: int | None = None,
        precision: str | None = None,
        anew: bool = False,
        stopped: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Outcome:
        """Learns the profile from all that was added, and keeps it.

        If it stops before it is done, what it has is kept, and the next call goes on, to the same numbers.
        Where the profile was learned from just these examples, in this precision, nothing is done.

        Args:
            threads: Threads of a graph run.
            seconds: How long it may take; None: until it is done.
            memory_mib: What the process may have in memory at most, in MiB; None: as much as it takes.
            precision: "int8" computes with the encoder in 8 bits where the release can; "float32" does not.
                None: as what was begun, or the profile, was computed; "int8" at first.
            anew: Whether to learn from the beginning, whatever is there.
            stopped: Asked between graph runs whether to stop.
            on_progress: Called after every graph run.

        Raises:
            ConfigError: There is no such precision, or one text at a time takes more memory than it may.
            ExampleError: No example with a label was added yet.
            ProfileError: Learning did not converge; the old profile stays.
            StoreError: Something was forgotten meanwhile; what was learned from it is not kept.
        """
        from umbel.device_client.runs import Budget, HomeLearning

        budget = Budget(threads, seconds, memory_mib, precision)
        engine = self.engine(threads)
        learning = HomeLearning(self._store, engine.release, budget, anew=anew, engine=engine)
        return learning.learn(stopped, on_progress)

    def predict(
        self,
        texts: Sequence[str],
        *,
        generic: bool = False,
        compare: bool = True,
        precision: str = INT8,
        threads: int = 1,
    ) -> list[Prediction]:
        """Predicts with the owner's profile; without one, or if so wanted, as for everybody.

        Args:
            texts: The texts.
            generic: Leave the profile aside.
            compare: Also find the label for everybody; see `predict_owners`.
            precision: "int8" reads texts in 8 bits where the release can; "float32" does not.
            threads: Threads of a graph run.

        Raises:
            ConfigError: There is no such precision.
            ProfileError: The profile is damaged.
        """
        engine = reader(self.engine(threads), precision)
        profile = None if generic else self.profile(engine.release)
        return predict_owners(engine, texts, np.zeros(len(texts), np.int64), [profile], compare=compare)

    def engine(self, threads: int = 1) -> Engine:
        """Returns the release's graphs; they stay open for the next call, with one copy of the weights."""
        release = self.release
        if self._engine is None or self._engine.release != release or self._engine.threads != threads:
            self._engine = Engine(release, threads=threads, alone=True)
        return self._engine

    def profile(self, release: Release | None = None) -> dict[str, FloatArray] | None:
        """Returns the profile for the release in use, name -> (1, *shape); None if there is none.

        Raises:
            ProfileError: It is damaged.
        """
        release = release or self.release
        kept = self._store.profile(release.release_id)
        return (
            None
            if kept is None
            else unpack_profile(release.manifest.profile, kept.packed, release.release_id)
        )

    def update(
        self,
        wanted: Wanted | None = None,
        *,
        precision: str | None = None,
        threads: int = 1,
        hears: Hears | None = None,
    ) -> Updated:
        """Looks for a newer release, and takes it over if it is at least as good on the owner's examples.

        The release in use serves until then, and goes on where the new one is not as good. With a profile, a
        new one is learned from all that was added.

        Args:
            wanted: Where to look, and what else an owner may say of it; None: the channel that is trusted.
            precision: "int8" computes with encoders in 8 bits where releases can; "float32" does not. None:
                as the profile was computed; "int8" at first.
            threads: Threads of a graph run.
            hears: Hears how far it is.

        Raises:
            BusyError: Another process updates this device.
            ConfigError: There is no such precision.
            OSError: The home cannot be written; what was there goes on.
            ReleaseError: There is nowhere to look, what was found is not to be believed, or does not fit.
            StoreError: Some of what the new profile was learned from has been forgotten meanwhile.
        """
        from umbel.device_client.releases.updating import Update, Wanted

        chosen = precision or self._usual_precision()
        check_precision(chosen)

        def engine_of(release: Release) -> Engine:
            return reader(Engine(release, threads=threads, alone=True), chosen)

        found = Update(self.home, self._store, wanted or Wanted(), engine_of, chosen, hears).run()
        self._release = None  # what was damaged may have been fetched again
        return found

    def _usual_precision(self) -> str:
        from umbel.device_client.runs import usual_precision

        used = self.release_id
        place = self.home / _RELEASES / used / MANIFEST
        try:  # the manifest alone: an update reads and checks the whole release by itself
            return usual_precision(self._store, used, parse_manifest(place.read_bytes(), str(place)))
        except (OSError, ReleaseError):  # it is damaged, and another one is to take over
            return INT8

    def status(self) -> dict[str, Any]:
        """Returns what is held, since when, and what came of learning; no text and no number of a profile."""
        labelled, others = self._store.counts()
        release = self.release_id
        kept = self._store.profile(release)
        state = self._store.state()
        own = None
        if kept is not None:
            own = {"bytes": len(kept.packed), **kept.about, "current": kept.about["state"] == state}
            del own["state"]
        channel = self._store.setting(_CHANNEL)
        return {
            "home": str(self.home),
            "store": self._store.number,
            "key": self._store.holder,
            "release": release,
            "channel": None if channel is None else channel["source"],
            "pin": None if channel is None else sha256_bytes(channel["root"].encode()),
            "examples": labelled,
            "texts": others,
            "since": self._store.first_added(),
            "profile": own,
            "egress": {"policy": self.policy().rule, **self.left()},
            "unfinished": self._unfinished(release, state),
            "runs": [row for row in self._store.log(_SEARCHED) if row["what"] in _RUNS][-_TOLD_RUNS:],
            "store_bytes": sum(file.stat().st_size for file in self.home.glob(f"{STORE}*")),
        }

    def _unfinished(self, release: str, state: str) -> dict[str, Any] | None:
        """Returns how far the learning is that was stopped, and whether it can be gone on with."""
        about = self._store.run_about(release)
        if about is None:
            return None
        told = {name: about[name] for name in ("began", "seconds", "doing", "done", "total")}
        return {**told, "current": about["state"] == state}

    def log(self, last: int | None = None) -> list[dict[str, Any]]:
        """Returns what this device did, oldest first; no text and no number of a profile is in it.

        Args:
            last: So many of the last events; None: all.
        """
        return self._store.log(-1 if last is None else last)

    def egress(self, last: int | None = None) -> list[dict[str, Any]]:
        """Returns what left this device, and what was refused and why, oldest first; `last` as in `log`."""
        return self._store.egress(-1 if last is None else last)

    def left(self) -> dict[str, Any]:
        """Returns how many messages left this device, their bytes, and when the last one did."""
        return dict(self._store.egress_total(added) or NOTHING)

    def policy(self) -> Policy:
        """Returns what the owner allows to leave."""
        return Policy.from_json(self._store.setting(_POLICY))

    def keep_policy(self, policy: Policy) -> None:
        """Keeps what the owner allows to leave from now on."""
        told = _event("policy", rule=policy.rule, report_gain=policy.report_gain)
        self._store.switch({_POLICY: policy.as_json()}, {}, told)

    def enter(self, judge: Callable[[Any, int], tuple[Any, Mapping[str, Any]]]) -> Mapping[str, Any]:
        """Writes an entry of the egress log, and what the policy is after it; see `Store.enter`."""
        return self._store.enter(_POLICY, judge, added)

    def client_number(self, fresh: int) -> int:
        """Returns the number by which coordinators know this device; `fresh` if it has none yet."""
        return int(self._store.first_setting(_CLIENT, fresh))

    def rounding_key(self) -> bytes:
        """Returns the secret that decides how changes are rounded in secure sums: made once, kept sealed."""
        return bytes.fromhex(self._store.first_setting(_ROUNDING, secrets.token_hex(_ROUNDING_BYTES)))

    def gain(self) -> float | None:
        """Returns how many more held-out examples are right with the profile, of all; None: not known."""
        kept = self._store.profile(self.release_id)
        return None if kept is None else gain_of(kept.about)

    def noised_gain(self, release: str, fresh: int) -> int:
        """Returns what is told of the gain with a release; `fresh` if nothing was made ready yet.

        It stays the same, whatever is learned or forgotten later: of several, a coordinator could take the
        mean, and the noise would be gone.
        """
        return int(self._store.first_setting(f"{_GAIN} {release}", fresh))

    def membership(self) -> Membership | None:
        """Returns the device's place at the coordinator that it joined; None if there is none."""
        from umbel.device_client.joining.membership import Membership

        row = self._store.setting(_MEMBERSHIP)
        return None if row is None else Membership.from_setting(row)

    def keep_membership(self, membership: Membership | None) -> None:
        """Keeps the device's place at a coordinator, its key sealed; None to leave.

        Who leaves forgets the number, too: the next coordinator, or the same one, meets another device.
        """
        told = None
        if membership is None or membership.joined:
            where = {} if membership is None else {"coordinator": membership.url}
            told = _event("left" if membership is None else "joined", **where)
        row = None if membership is None else membership.as_setting()
        forgotten = {_CLIENT: None} if membership is None else {}
        self._store.switch({_MEMBERSHIP: row, **forgotten}, {}, told)

    def before(self) -> tuple[str, int]:
        """Returns what tells, once a profile is learned, whether examples were changed or forgotten."""
        return self._store.state(), self._store.erasures()

    def keep_from_round(self, release: Release, packed: bytes, before: tuple[str, int]) -> None:
        """Keeps a profile that was learned in a round, unless the owner has learned or onboarded one.

        Theirs was learned for the release that they have, and a round's for values on the way to another.

        Args:
            release: For which it was learned.
            packed: The profile's file.
            before: What `before` said before the examples were read.

        Raises:
            StoreError: Something was forgotten meanwhile; nothing is kept.
        """
        state, erasures = before
        examples = self._store.counts()[0]
        kept = KeptProfile(
            packed, {"how": "learned in a round", "at": _now(), "state": state, "examples": examples}
        )
        event = _event("took part", release=release.release_id, examples=examples)
        self._store.save_profile(release.release_id, kept, erasures, event, staying=_OWN)

    def forget(self, numbers: Sequence[int]) -> Erased:
        """Erases entries by their number, and all that came of them; `learn` learns without them.

        Raises:
            StoreError: It cannot be written; or it is erased, but its bytes are not overwritten yet.
        """
        return self._store.remove(numbers, _event("forgot"))

    def how(self) -> str | None:
        """Returns how the profile in use came about: "learned" or "onboarded"; None if there is none."""
        kept = self._store.profile(self.release_id)
        return None if kept is None else str(kept.about["how"])

    def rekey(self, key: str, ask: Ask = unasked) -> None:
        """Gives the store's key to another holder, or takes another passphrase; nothing is sealed again.

        Args:
            key: Who holds it from now on: "file", "keyring" or "passphrase".
            ask: Gives the new passphrase.

        Raises:
            BusyError: Another process does the same.
            ConfigError: There is no such holder, or it holds the key already.
            StoreError: It cannot keep the key; the old one still opens the store. Or another process has
                changed the holder since the store was opened.
        """
        _check_key(key)
        with sole_use(self.home):  # of two at once, one would erase the key that the other has just made
            self._store.check_holder()
            if self._store.holder != KeyFile.kind:
                KeyFile(self.home / _KEY).erase()  # one may lie there still, if this was interrupted before
            if key == self._store.holder != Passphrase.kind:
                raise ConfigError(f"the store's key is held that way already: {key}")
            self._store.rekey(_holders(self.home, ask)(key, self._store.number), _event("rekeyed", key=key))

    def export(self, path: Path, ask: Ask) -> int:
        """Writes all of it, sealed by a passphrase of its own, into one file for another device.

        Returns:
            The file's size in bytes.
        """
        from umbel.device_client.vault.portable import Exported, write_export

        inside = path.resolve().parent
        if inside == self.home.resolve():
            raise StoreError("an export would lie among the files of the home", hint="Name another folder.")
        entries, profiles = self._store.snapshot()
        size = write_export(path, Exported(self._store.number, tuple(entries), profiles), ask)
        self._store.note(_event("exported", bytes=size))
        return size

    def import_(self, path: Path, ask: Ask) -> Added:
        """Takes over what another device exported: entries, and profiles for releases that have none here.

        A text that has a label here keeps it.

        Raises:
            ExampleError: Labels are not this release's, or texts are none; then nothing is taken over.
            StoreError: It is no export, was changed, or has another passphrase; then nothing is taken over.
        """
        from umbel.device_client.vault.portable import read_export

        found = read_export(path, ask)
        examples, texts = known(found.entries)
        _check(examples, texts, self.release.manifest.labels)
        own = self._store.profiles()
        profiles = {name: kept for name, kept in found.profiles.items() if name not in own}
        event = _event("imported", entries=len(found.entries), source=found.store)
        return self._store.add(found.entries, profiles, event, relabel=False)

    def known(self) -> tuple[list[Example], list[str]]:
        """Returns the owner's examples, and their texts without a label."""
        return known(self._store.entries())

    def _keep(
        self,
        release: Release,
        packed: bytes,
        before: tuple[str, int],
        how: str,
        examples: Sequence[Example],
        began: float,
        told: Mapping[str, Any],
    ) -> None:
        seconds = round(time.perf_counter() - began, 3)
        state, erasures = before
        about = {"how": how, "at": _now(), "state": state, "examples": len(examples), **told}
        event = _event(how, release=release.release_id, examples=len(examples), seconds=seconds)
        self._store.save_profile(release.release_id, KeptProfile(packed, about), erasures, event)


def erase(home: Path, ask: Ask = unasked) -> None:
    """Erases a device's store and its key for good, whether or not it opens; releases, not private, stay.

    Raises:
        StoreError: There is none.
    """
    destroy(home / STORE, _holders(home, ask))


def has_store(home: Path) -> bool:
    """Whether a store, or what is left of one, lies in a home."""
    return any((home / f"{STORE}{ending}").exists() for ending in ("", "-wal", "-shm"))


def _holders(home: Path, ask: Ask) -> Holders:
    def holder(kind: str, number: str) -> KeyHolder:
        if kind == KeyFile.kind:
            return KeyFile(home / _KEY)
        if kind == Keyring.kind:
            return Keyring(number)
        if kind == Passphrase.kind:
            return Passphrase(ask)
        raise StoreError(f"the store {home / STORE} is damaged", ["nobody knows who holds its key"])

    return holder


def _check_key(key: str) -> None:
    if key not in KEYS:
        raise ConfigError(f"'{key}' holds no keys", hint=f"Choose one of: {', '.join(KEYS)}.")


def _check(examples: Sequence[Example], texts: Sequence[str], labels: Sequence[str]) -> None:
    problems = [
        f"example {n}: its label is not one of the release's"
        for n, example in enumerate(examples, 1)
        if example.label not in labels
    ]
    known = {f"example {n}": example.text for n, example in enumerate(examples, 1)}
    known |= {f"text {n}": text for n, text in enumerate(texts, 1)}
    problems += [f"{place}: {problem}" for place, text in known.items() for problem in text_problems(text)]
    if len({example.user for example in examples}) > 1:
        problems.append("they are of several people")
    if problems:
        raise ExampleError("these examples cannot be kept", problems, f"Labels: {', '.join(labels)}.")
