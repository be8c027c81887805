"""One owner's learning, a graph run at a time: it can stop after any of them, and go on from its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from umbel.device_client.caution import CautiousLearning
from umbel.device_client.engine import Engine
from umbel.device_client.held_out import HeldOut, nll_of
from umbel.device_client.learning import Encoded, State, encode_examples, example_logits
from umbel.device_client.onboarding import Known, Starter, starter
from umbel.device_client.passes import Answering, Reading
from umbel.device_client.states import put, taken
from umbel.shared.errors import ExampleError
from umbel.shared.examples import Example
from umbel.shared.onboarding import UNKNOWN
from umbel.shared.profile import FloatArray, pack_profile
from umbel.shared.text import TokenBatch

_READ_ROWS = 64
_MOST_ROWS = 32
_MOST_TOKENS = 256  # as fast as 2,048 at a time, and 300 MB less with the gradients of a MiniLM
_IDLE = "learning does not start from onboarding here, so texts without labels are not used."


@final
@dataclass(frozen=True, slots=True)
class Learned:
    """What came of learning.

    Attributes:
        file_bytes: Size of the profile's file.
        nll_generic: Mean negative log-likelihood of the owner's examples without a profile, in nats.
        nll_personal: The same with the new profile.
        strength: Share of what was learned that is used, from 0 (generic) to 1: by cross-validation on the
            owner's examples, where the release asks for it.
        notes: What the owner should know about their examples.
        held_out: What examples say of profiles that were learned without them; None where there are too few,
            or the release does not hold any out.
        precision: How it was computed: "float32" or "int8".
    """

    file_bytes: int
    nll_generic: float
    nll_personal: float
    strength: float
    notes: tuple[str, ...]
    held_out: HeldOut | None = None
    precision: str = "float32"


@final
@dataclass(frozen=True, slots=True)
class Progress:
    """How far learning is.

    Attributes:
        doing: What it does.
        done: How much of that is done: steps, or passes over texts.
        total: How much of that there is.
    """

    doing: str
    done: int
    total: int


@final
class OwnTexts:
    """The owner's texts for one release: encoded, and read, if learning wants them read without a profile.

    A release behind the embedding wants every text read once in its life; one that starts from onboarding
    wants all of them read each time.

    Attributes:
        engine: The release.
        examples: The owner's examples.
        recipe: How it learns from so many.
        starts: Whether onboarding is given all of them.
        reading: What is left to read.
        rows: Texts of a graph run at most, where it works on tokens.
    """

    def __init__(
        self,
        engine: Engine,
        examples: Sequence[Example],
        texts: Sequence[str],
        known: Mapping[int, FloatArray] | None = None,
        rows: int | None = None,
        *,
        onboards: bool | None = None,
    ):
        """Encodes them, and finds what is to be read; other arguments as in `OwnLearning`.

        Args:
            engine: The release.
            examples: The owner's examples.
            texts: Further texts of theirs.
            known: What some texts were read as.
            rows: Texts of a graph run at most.
            onboards: Whether onboarding is to be given all of them; None: if learning starts from it.
        """
        self.engine, self.examples = engine, examples
        self._support = encode_examples(engine, examples)
        self.recipe = engine.release.manifest.recipe.at(len(examples))
        self.starts = engine.onboards and self.recipe.start != 0.0 if onboards is None else onboards
        self._all = engine.encode([*(example.text for example in examples), *texts])
        used = len(self._all) if self.starts else len(examples)
        self._known = {place: own for place, own in (known or {}).items() if place < used and engine.embeds}
        wanted = used if engine.embeds or self.starts else 0
        self._missing = np.array([n for n in range(wanted) if n not in self._known], np.int64)
        self.rows = min(rows or _MOST_ROWS, _usual_rows(self._all))
        self.reading = Reading(engine, self._all.rows(self._missing), self.rows)

    def read(self) -> OwnTexts:
        """Reads what is left to read, and returns itself."""
        while not self.reading.finished:
            self.reading.advance()
        return self

    def unread(self) -> list[int]:
        """Returns the places of the texts that were not known when it began."""
        return [int(place) for place in self._missing]

    def support(self) -> Encoded:
        """Returns the labelled examples, with what they were read as."""
        if not self.engine.embeds:
            return self._support
        return replace(self._support, embedding=self._embedding()[: len(self._support)])

    def fresh(self) -> dict[int, FloatArray]:
        """Returns what texts were read as that were not known, by their place, once all are read."""
        if not self.reading.finished:
            return {}
        return dict(zip(self._missing.tolist(), self.reading.embedding, strict=True))

    def starter(self) -> Starter | None:
        """Returns where learning starts; None: from zeros."""
        if not self.starts:
            return None
        return starter(self.engine, [self.known()], [len(self._support)], self.recipe.start)

    def known(self) -> Known:
        """Returns what is known of the owner, where onboarding is given all of it."""
        own, logits = self.everything(), self.reading.logits
        if self.engine.embeds:
            logits = example_logits(self.engine, own, self.engine.release.manifest.profile.zeros(1))
        return Known(logits, self._embedding(), own.labels)

    def everything(self) -> Encoded:
        """Returns the same, as it is answered under a profile."""
        unlabelled = np.full(len(self._all) - len(self._support), UNKNOWN, np.int64)
        labels = np.concatenate([self._support.labels, unlabelled])
        return Encoded(self._all, labels, self._embedding() if self.engine.embeds else None)

    def _embedding(self) -> FloatArray:
        found = np.zeros((len(self._known) + len(self._missing), self.engine.embedding_size), np.float32)
        for place, own in (self._known | self.fresh()).items():
            found[place] = own
        return found


@final
class OwnLearning:
    """What `learn_profile` does: reads texts, learns, holds out, and answers the examples once more.

    Attributes:
        readings_kept: Whether what was read is kept elsewhere, so that `state` need not hold it.
    """

    def __init__(
        self,
        engine: Engine,
        examples: Sequence[Example],
        texts: Sequence[str] = (),
        *,
        known: Mapping[int, FloatArray] | None = None,
        rows: int | None = None,
        own: OwnTexts | None = None,
    ):
        """Encodes the texts; no graph is run yet.

        Args:
            engine: The release.
            examples: The owner's examples.
            texts: Further texts of theirs.
            known: What some texts were read as, (d,), by their place among examples and further texts.
            rows: Texts of a graph run at most; see `ProfileLearning`.
            own: All of these as they have been prepared before, for other ends, and perhaps read.

        Raises:
            ExampleError: There are none, they are of several people, or a label is not one of the release's.
        """
        if not examples:
            raise ExampleError("there are no examples to learn from", hint="Add some: umbel device add.")
        check_one_owner(examples)
        self._engine, self._examples, self._rows = engine, examples, rows
        self.texts = own or OwnTexts(engine, examples, texts, known, rows)
        self._idle = bool(texts) and not self.texts.starts
        self._learning: CautiousLearning | None = None
        self._answers: list[Answering] = []
        self.readings_kept = False

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return len(self._answers) == 2 and self._answers[1].finished

    def advance(self) -> None:
        """Runs a graph once."""
        if not self.texts.reading.finished:
            self.texts.reading.advance()
        elif not self._cautious().finished:
            self._cautious().advance()
        else:
            self._answering().advance()

    def _cautious(self) -> CautiousLearning:
        if self._learning is None:
            self._learning = CautiousLearning(
                self._engine,
                [self.texts.support()],
                self.texts.recipe,
                start=self.texts.starter(),
                measured=True,
                rows=self._learned_rows(),
            )
        return self._learning

    def _answering(self) -> Answering:
        """Returns what answers the examples: without the profile, then with it."""
        if not self._answers or (len(self._answers) == 1 and self._answers[0].finished):
            zeros = self._engine.release.manifest.profile.zeros(1)
            profile = self._cautious().profiles() if self._answers else zeros
            support = self.texts.support()
            owner = np.zeros(len(support), np.int64)
            self._answers.append(Answering(self._engine, support, profile, owner, rows=self._learned_rows()))
        return self._answers[-1]

    def _learned_rows(self) -> int | None:
        """Returns the rows of a graph run in learning: more where texts have been read, which take little."""
        if not self._engine.embeds:
            return self.texts.rows
        return self._rows * _READ_ROWS if self._rows else None

    def progress(self) -> Progress:
        """Returns how far it is."""
        reading = self.texts.reading
        if not reading.finished:
            return Progress("reading your texts", reading.done, reading.total)
        if self._learning is None or not self._learning.finished:
            return Progress(*self._cautious().told())
        return Progress("looking at what came of it", sum(own.finished for own in self._answers), 2)

    def state(self) -> State:
        """Returns what it takes to go on from here to the same numbers."""
        found: State = {}
        if not self.readings_kept:
            put(found, "reading", self.texts.reading.state())
        if self._learning is not None:
            put(found, "learning", self._learning.state())
        for number, own in enumerate(self._answers):
            put(found, f"answers {number}", own.state())
        return found

    def restore(self, state: State) -> None:
        """Goes on from what `state` gave, of the same texts, release and rows.

        Raises:
            KeyError: Something is missing in it: what was read, for one, that is no longer kept elsewhere.
        """
        self.texts.reading.restore(taken(state, "reading"))
        learning = taken(state, "learning")
        if learning and not self.texts.reading.finished:
            raise KeyError("reading")
        if learning:
            self._cautious().restore(learning)
        for number in range(2):
            answers = taken(state, f"answers {number}")
            if answers:
                self._answering().restore(answers)

    def result(self) -> tuple[bytes, Learned]:
        """Returns the packed profile, and what came of learning it.

        Raises:
            ProfileError: It is not finite as it is stored.
        """
        learning, release = self._cautious(), self._engine.release
        data = pack_profile(release.manifest.profile, learning.profiles(), release.release_id)
        labels = self.texts.support().labels
        generic, personal = (float(nll_of(own.logits, labels).mean()) for own in self._answers)
        notes = ((_IDLE,) if self._idle else ()) + example_notes(self._examples)
        strength, held_out = float(learning.strengths()[0]), learning.held_out(0)
        notes += _worse_note(strength, held_out)
        precision = self._engine.precision
        return data, Learned(len(data), generic, personal, strength, notes, held_out, precision)


def check_one_owner(examples: Sequence[Example]) -> None:
    """Refuses examples of several people.

    Raises:
        ExampleError: They are.
    """
    users = len({example.user for example in examples})
    if users > 1:
        raise ExampleError(
            "a profile is learned from one person's examples",
            [f"found {users} users"],
            "Give a file with one user, or without a user column.",
        )


def example_notes(examples: Sequence[Example]) -> tuple[str, ...]:
    """Returns what their owner should know about examples."""
    notes = []
    if len(examples) == 1:
        notes.append("there is only one example, which says little of others. A few more will help.")
    if len({example.label for example in examples}) == 1 and len(examples) > 1:
        notes.append(
            "all examples have the same label; add some with another one, or predictions will lean to it."
        )
    return tuple(notes)


def _worse_note(strength: float, held_out: HeldOut | None) -> tuple[str, ...]:
    """Returns what to know of a profile that is used although it did worse on what was held out."""
    if held_out is None or strength == 0.0 or held_out.nll_personal.mean() <= held_out.nll_generic.mean():
        return ()
    return (
        "on examples that were held out, the profile did worse than none. It is used all the same, as far as "
        "they leave open that it helps; predict --generic leaves it aside.",
    )


def _usual_rows(tokens: TokenBatch) -> int:
    """Returns how many texts a graph run takes if nobody limits it, by the longest of them."""
    longest = int(tokens.mask.sum(1).max(initial=1))
    return max(1, min(_MOST_ROWS, _MOST_TOKENS // longest))
