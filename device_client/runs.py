"""Learning at home within a budget: kept while it is under way, stopped in time, gone on with later."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from umbel.device_client.engine import Engine
from umbel.device_client.entrusted import Entrusted
from umbel.device_client.events import event, now
from umbel.device_client.memory import fitting_rows
from umbel.device_client.own_learning import Learned, OwnLearning, Progress
from umbel.device_client.prediction import INT8, reader
from umbel.device_client.states import packed, unpacked
from umbel.device_client.vault.runs import HOLDER, RUN, KeptRun
from umbel.device_client.vault.store import KeptProfile, Store
from umbel.shared.errors import ExampleError
from umbel.shared.profile import FloatArray
from umbel.shared.release import Manifest, Release

_FORMAT = 2  # of what a run keeps, its pieces included; another one is begun anew
_SECONDS = 1.0  # between two times that a run is kept
_SHARE = 0.02  # of the time, for keeping it
_REMEMBERED = 16  # graph runs by which the next one's time is judged
_SPARE = 1.25


@final
@dataclass(frozen=True, slots=True)
class Budget:
    """What learning may take.

    Attributes:
        threads: Threads of a graph run.
        seconds: How long it may take, from its beginning; then it stops and is kept. None: until it is done.
        memory_mib: What the process may have in memory at most, in MiB; None: as much as it takes.
        precision: "int8" computes with the encoder in 8 bits where the release can; "float32" does not. None:
            as `usual_precision` says.
    """

    threads: int = 1
    seconds: float | None = None
    memory_mib: int | None = None
    precision: str | None = None


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call to learn.

    Attributes:
        finished: Whether the profile is learned; if not, the next call goes on.
        changed: False where nothing was new, so that the profile is as it was.
        resumed: Whether it went on with what an earlier call had begun.
        seconds: How long it took, earlier calls of this learning included.
        progress: Where it stopped, if it did.
        about: What is known of the profile: examples, bytes, steps, nll_generic, nll_personal, strength,
            precision, held_out; empty if it stopped.
        notes: What the owner should know about their examples.
    """

    finished: bool
    changed: bool = True
    resumed: bool = False
    seconds: float = 0.0
    progress: Progress | None = None
    about: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def usual_precision(store: Store, release_id: str, manifest: Manifest) -> str:
    """Returns how learning computes if its owner does not say: as what is under way, or the profile was.

    In 8 bits at first. Where a release had no choice, nobody has chosen.
    """
    if manifest.int8 is None:
        return INT8
    run, kept = store.run_about(release_id), store.profile(release_id)
    going_on = run is not None and run.get("state") == store.state()
    about = run if going_on else None if kept is None else kept.about
    return INT8 if about is None else str(about.get("precision", INT8))


def told_of(learned: Learned, steps: int) -> dict[str, Any]:
    """Returns what is told of a profile that was learned."""
    return {
        "bytes": learned.file_bytes,
        "steps": steps,
        "nll_generic": learned.nll_generic,
        "nll_personal": learned.nll_personal,
        "strength": learned.strength,
        "precision": learned.precision,
        "held_out": None if learned.held_out is None else learned.held_out.figures(),
    }


@final
class Pace:
    """Whether the next graph run still fits into the time that is left, by how long the last ones took."""

    def __init__(self, seconds: float | None, began: float, clock: Callable[[], float] = time.perf_counter):
        """Takes the time that there is, from `began` on as the clock tells it."""
        self._seconds, self._began, self._clock = seconds, began, clock
        self._last: deque[float] = deque(maxlen=_REMEMBERED)

    def elapsed(self) -> float:
        """Returns the seconds since it began."""
        return self._clock() - self._began

    def fits(self) -> bool:
        """Says so; always of the first one, for otherwise too little time would never lead anywhere."""
        if self._seconds is None or not self._last:
            return True
        return self.elapsed() + _SPARE * max(self._last) <= self._seconds

    def timed(self, work: Callable[[], None]) -> None:
        """Does a piece of work, and remembers how long it took."""
        begun = self._clock()
        work()
        self._last.append(self._clock() - begun)


@final
class Keeper:
    """Keeps a learning in the store while it is under way: what changed of it, about every second."""

    def __init__(
        self, store: Store, release: str, about: Mapping[str, Any], erasures: int, kept: KeptRun | None
    ):
        """Takes what the learning is of, and what the store has of it if it is gone on with."""
        self._store, self._release, self._erasures = store, release, erasures
        self._held: dict[str, bytes] = dict(kept.parts) if kept is not None else {}
        self._last = str(kept.about[HOLDER]) if kept is not None else None
        self._about = {**about, HOLDER: secrets.token_hex(8)}
        self._due = time.perf_counter() + _SECONDS

    def due(self) -> bool:
        """Says whether it is time to keep it: seldom enough that it takes no more than 2 % of the time."""
        return time.perf_counter() >= self._due

    def keep(self, learning: OwnLearning, elapsed: float, said: Mapping[str, Any] | None = None) -> None:
        """Keeps it as it is now."""
        begun = time.perf_counter()
        blobs = {part: packed(arrays) for part, arrays in learning.state().items()}
        changed: dict[str, bytes | None] = dict.fromkeys(self._held.keys() - blobs.keys())
        changed |= {part: data for part, data in blobs.items() if self._held.get(part) != data}
        at = learning.progress()
        how_far = {"doing": at.doing, "done": at.done, "total": at.total, "seconds": round(elapsed, 3)}
        about = self._about | how_far
        self._store.keep_run(self._release, about, changed, self._erasures, self._last, said)
        self._held, self._last = blobs, about[HOLDER]
        took = time.perf_counter() - begun
        self._due = time.perf_counter() + max(_SECONDS, took / _SHARE)


@final
class HomeLearning:
    """The learning of what a store holds, for one release."""

    def __init__(
        self,
        store: Store,
        release: Release,
        budget: Budget,
        *,
        anew: bool = False,
        engine: Engine | None = None,
    ):
        """Reads what the store has, and finds what there is to do; no graph is run yet.

        Args:
            store: The owner's.
            release: What is learned for.
            budget: What it may take.
            anew: Whether to begin at the beginning, whatever is there.
            engine: The release's graphs, if they are open already.

        Raises:
            ConfigError: There is no such precision, or one text at a time takes more memory than it may.
            ExampleError: There are no examples.
        """
        self._began = time.perf_counter()
        self._store, self._release, self._budget, self._anew = store, release, budget, anew
        engine = engine or Engine(release, threads=budget.threads, alone=True)
        self._engine = reader(
            engine, budget.precision or usual_precision(store, release.release_id, release.manifest)
        )
        self._own = Entrusted(store)
        self._state = self._own.state
        if not self._own.examples:
            hint = "Add some: umbel device add --examples FILE."
            raise ExampleError("there are no examples to learn from", hint=hint)
        self._read = False

    def learn(
        self,
        stopped: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Outcome:
        """Learns until it is done, the time is up, or it is told to stop; then what it has is kept.

        Args:
            stopped: Asked between graph runs whether to stop.
            on_progress: Called after every graph run.

        Raises:
            ProfileError: Learning did not converge; the old profile stays.
            StoreError: Something was forgotten meanwhile; what was learned from it is not kept.
        """
        kept = None if self._anew else self._kept_run()
        as_before = None if self._anew or kept else self._unchanged()  # one begun anew is gone on with
        if as_before is not None:
            return as_before
        engine = self._engine
        learning, about, kept = self._prepared(engine, kept)
        keeper = Keeper(self._store, self._release.release_id, about, self._own.erasures, kept)
        pace = Pace(self._budget.seconds, self._began)
        before, resumed = float(kept.about["seconds"]) if kept else 0.0, kept is not None
        while not learning.finished:
            if stopped() or not pace.fits():
                return self._stopped(learning, keeper, before + pace.elapsed(), resumed)
            pace.timed(learning.advance)
            self._keep_readings(engine, learning)
            if keeper.due():
                keeper.keep(learning, before + pace.elapsed())
            if on_progress is not None:
                on_progress(learning.progress())
        return self._finished(learning, before + pace.elapsed(), resumed)

    def _unchanged(self) -> Outcome | None:
        """Returns what is said where the profile was learned from just these examples."""
        kept = self._store.profile(self._release.release_id)
        wanted = {"how": "learned", "state": self._state, "precision": self._engine.precision}
        if kept is None or any(kept.about.get(name) != value for name, value in wanted.items()):
            return None
        about = {"bytes": len(kept.packed), **kept.about}
        return Outcome(True, changed=False, seconds=time.perf_counter() - self._began, about=about)

    def _kept_run(self) -> KeptRun | None:
        """Returns the run that can be gone on with."""
        about = self._store.run_about(self._release.release_id)
        if about is None or any(about.get(name) != value for name, value in self._identity().items()):
            return None
        return self._store.run(self._release.release_id)

    def _identity(self) -> dict[str, Any]:
        """Returns what must be the same for a run to be gone on with."""
        memory, precision = self._budget.memory_mib, self._engine.precision
        return {"format": _FORMAT, "state": self._state, "memory": memory, "precision": precision}

    def _prepared(
        self, engine: Engine, kept: KeptRun | None
    ) -> tuple[OwnLearning, dict[str, Any], KeptRun | None]:
        """Returns the learning where it is to go on, what it is of, and the run if it does go on with it."""
        known = self._own.readings(engine)
        if kept is not None:
            learning = self._learning(engine, known, kept.about["rows"])
            unread = self._unread(learning)
            same = not unread or unread == kept.about["unread"]  # else it was to read other texts together
            if same and _restored(learning, kept):
                return learning, dict(kept.about), kept
        rows = self._fitting(engine)
        learning = self._learning(engine, known, rows)
        about = {
            RUN: secrets.token_hex(8),
            **self._identity(),
            "rows": rows,
            "unread": self._unread(learning),
            "began": now(),
        }
        return learning, about, None

    def _learning(self, engine: Engine, known: Mapping[int, FloatArray], rows: int | None) -> OwnLearning:
        return OwnLearning(engine, self._own.examples, self._own.texts, known=known, rows=rows)

    def _unread(self, learning: OwnLearning) -> list[int]:
        return [self._own.number(place) for place in learning.texts.unread()]

    def _fitting(self, engine: Engine) -> int | None:
        limit = self._budget.memory_mib
        return None if limit is None else fitting_rows(engine, self._own.examples, self._own.texts, limit)

    def _keep_readings(self, engine: Engine, learning: OwnLearning) -> None:
        """Keeps what texts were read as once all are read, so that none of them is read again."""
        if self._read or not engine.embeds or not learning.texts.reading.finished:
            return
        self._read = True
        learning.readings_kept = self._own.keep_readings(engine, learning.texts.fresh())

    def _stopped(self, learning: OwnLearning, keeper: Keeper, seconds: float, resumed: bool) -> Outcome:
        at = learning.progress()
        how_far = {"doing": at.doing, "done": at.done, "total": at.total}
        keeper.keep(learning, seconds, self._event("stopped learning", seconds, how_far))
        return Outcome(False, resumed=resumed, seconds=seconds, progress=at)

    def _finished(self, learning: OwnLearning, seconds: float, resumed: bool) -> Outcome:
        data, found = learning.result()
        steps = self._release.manifest.recipe.steps
        told = told_of(found, steps)
        about = {
            "how": "learned",
            "at": now(),
            "state": self._state,
            "examples": len(self._own.examples),
            "seconds": round(seconds, 3),
            **told,
        }
        said = self._event("learned", seconds, {"steps": steps})
        kept = KeptProfile(data, about)
        self._store.save_profile(self._release.release_id, kept, self._own.erasures, said, ends_run=True)
        return Outcome(True, resumed=resumed, seconds=seconds, about=about, notes=found.notes)

    def _event(self, what: str, seconds: float, told: Mapping[str, Any]) -> dict[str, Any]:
        own = {"release": self._release.release_id, "examples": len(self._own.examples)}
        return event(what, **own, seconds=round(seconds, 3), **told)


def _restored(learning: OwnLearning, kept: KeptRun) -> bool:
    """Goes on from a kept run; False where another umbel has kept it otherwise."""
    try:
        learning.restore({part: unpacked(data) for part, data in kept.parts.items()})
    except KeyError:
        return False
    return True
