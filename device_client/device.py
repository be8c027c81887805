"""What a device does for its owner: learn a profile from their examples, or write a first one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from umbel.device_client.caution import CautiousLearning
from umbel.device_client.cross_validation import cross_validated
from umbel.device_client.engine import Engine
from umbel.device_client.held_out import HeldOut
from umbel.device_client.learning import Encoded, encode_examples, example_logits, read_once
from umbel.device_client.onboarding import Starter, influences, onboarded, read_known, starter
from umbel.device_client.profile_file import check_profile_place
from umbel.shared.bias import softmax
from umbel.shared.errors import ExampleError
from umbel.shared.examples import Example
from umbel.shared.files import atomic_write
from umbel.shared.profile import FloatArray, pack_profile
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Release
from umbel.shared.text import IntArray

_LIKENESSES = 3
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
    """

    file_bytes: int
    nll_generic: float
    nll_personal: float
    strength: float
    notes: tuple[str, ...]
    held_out: HeldOut | None = None


@final
@dataclass(frozen=True, slots=True)
class Likeness:
    """A prototype that the owner is like.

    Attributes:
        weight: How much of the owner it stands for, from 0 to 1.
        examples: Public texts, each with the label that shows what the prototype stands for.
    """

    weight: float
    examples: tuple[tuple[str, str], ...]


@final
@dataclass(frozen=True, slots=True)
class Onboarded:
    """What came of onboarding.

    Attributes:
        file_bytes: Size of the profile's file.
        changed: Share of the owner's texts whose most likely label is another one with the profile.
        moved: Mean change of the probabilities of the owner's texts, from 0 to 1 (total variation).
        likenesses: The prototypes that the owner is most like, the first one most.
        influences: For each text, labelled ones first, its share in what moved the profile; empty unless
            asked for.
        notes: What the owner should know about their examples.
    """

    file_bytes: int
    changed: float
    moved: float
    likenesses: tuple[Likeness, ...]
    influences: tuple[float, ...]
    notes: tuple[str, ...]


def onboard_profile(
    release: Release,
    examples: Sequence[Example],
    texts: Sequence[str],
    path: Path,
    *,
    explain: bool = True,
    threads: int = 1,
) -> Onboarded:
    """Writes the owner's first profile from what is known of them, in one pass, and keeps it in a file.

    Args:
        release: A release that has onboarding.
        examples: Labelled texts of the owner; there may be none.
        texts: Further texts of theirs.
        path: Where the profile is kept; an older one there is replaced once the new one is whole.
        explain: Also find each text's influence, which takes a profile without each of them.
        threads: Threads of a graph run.

    Raises:
        ExampleError: There is nothing, the examples are of several people, or a label is not the release's.
        OSError: The profile cannot be written; an older one is untouched.
        ProfileError: Something else than a profile is there.
        ReleaseError: The release has no onboarding.
    """
    check_profile_place(path)
    packed, found = packed_onboarding(release, examples, texts, explain=explain, threads=threads)
    atomic_write(path, packed, mode=0o600)
    return found


def packed_onboarding(
    release: Release,
    examples: Sequence[Example],
    texts: Sequence[str],
    *,
    explain: bool = True,
    threads: int = 1,
) -> tuple[bytes, Onboarded]:
    """Returns the packed profile that `onboard_profile` keeps, and what came of it; see there."""
    if not examples and not texts:
        raise ExampleError(
            "there is nothing to begin with",
            hint="Add texts of yours, with labels or without: umbel device add. With --release, give files: "
            "--texts, --examples.",
        )
    _check_one_owner(examples)
    engine = Engine(release, threads=threads)
    known = read_known(engine, encode_examples(engine, examples), engine.encode(texts))
    exact, weights = onboarded(engine, [known])
    profile = release.manifest.profile.rounded(exact)
    data = pack_profile(release.manifest.profile, profile, release.release_id)
    tokens = engine.encode([*(example.text for example in examples), *texts])
    seen = Encoded(tokens, known.labels, known.embedding if engine.embeds else None)
    before, after = softmax(known.logits), softmax(example_logits(engine, seen, profile))
    return data, Onboarded(
        len(data),
        float((before.argmax(1) != after.argmax(1)).mean()),
        float(0.5 * np.abs(after - before).sum(1).mean()),
        _likenesses(release, weights[0]),
        tuple(float(value) for value in influences(engine, known)) if explain else (),
        _notes(examples),
    )


def _likenesses(release: Release, weights: FloatArray) -> tuple[Likeness, ...]:
    assert release.manifest.onboarding is not None
    rows = release.manifest.onboarding.prototypes
    order = np.argsort(-weights, kind="stable")[:_LIKENESSES]
    return tuple(
        Likeness(float(weights[n]), tuple((shown.text, shown.label) for shown in rows[n])) for n in order
    )


def learn_profile(
    release: Release,
    examples: Sequence[Example],
    path: Path,
    *,
    texts: Sequence[str] = (),
    threads: int = 1,
    on_step: Callable[[int, float], None] | None = None,
) -> Learned:
    """Learns the owner's profile and keeps it in a file, by an atomic write that only the owner can read.

    Args:
        release: The release.
        examples: The owner's examples, all of one person.
        path: Where the profile is kept; an older one there is replaced once the new one is whole.
        texts: Further texts of the owner, without labels; only onboarding makes use of them.
        threads: Threads of a graph run.
        on_step: Called after every step with its number and the mean nll.

    Raises:
        ExampleError: There are none, they are of several people, or a label is not the release's.
        OSError: The profile cannot be written; an older one is untouched.
        ProfileError: Something else than a profile is there, or learning did not converge.
    """
    check_profile_place(path)
    packed, found = packed_learning(release, examples, texts=texts, threads=threads, on_step=on_step)
    atomic_write(path, packed, mode=0o600)
    return found


def packed_learning(
    release: Release,
    examples: Sequence[Example],
    *,
    texts: Sequence[str] = (),
    begin: Mapping[str, FloatArray] | None = None,
    threads: int = 1,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[bytes, Learned]:
    """Returns the packed profile that `learn_profile` keeps, and what came of it; see there.

    With `begin`, (1, *shape), the first step is made from there; the prior pulls to where learning starts
    otherwise.
    """
    engine = Engine(release, threads=threads)
    support, recipe, start = _prepared(engine, examples, texts)
    learning = CautiousLearning(engine, [support], recipe, start=start, begin=begin, measured=True)
    while not learning.finished:
        nll = learning.advance()
        if nll is not None and on_step is not None:
            on_step(learning.steps, nll)
    profile = learning.profiles()
    data = pack_profile(release.manifest.profile, profile, release.release_id)
    before = example_logits(engine, support, release.manifest.profile.zeros(1))
    after = example_logits(engine, support, profile)
    return data, Learned(
        len(data),
        _nll(before, support.labels),
        _nll(after, support.labels),
        float(learning.strengths()[0]),
        ((_IDLE,) if texts and start is None else ()) + _notes(examples),
        learning.held_out(0),
    )


def cross_validate(
    release: Release,
    examples: Sequence[Example],
    folds: Sequence[int] | IntArray,
    *,
    texts: Sequence[str] = (),
    threads: int = 1,
) -> HeldOut | None:
    """Returns what the owner's examples say of a release, each held out in the fold that is given.

    Args:
        release: The release.
        examples: The owner's examples, all of one person.
        folds: (n,) fold of each: `umbel.device_client.held_out.text_folds` gives the same for any release.
        texts: Further texts of the owner, without labels; only onboarding makes use of them.
        threads: Threads of a graph run.

    Returns:
        None where there are less than two folds.

    Raises:
        ExampleError: The examples are of several people, or a label is not the release's.
        ProfileError: Learning did not converge.
    """
    engine = Engine(release, threads=threads)
    support, recipe, start = _prepared(engine, examples, texts)
    return cross_validated(engine, support, recipe, folds, start=start)


def _prepared(
    engine: Engine, examples: Sequence[Example], texts: Sequence[str]
) -> tuple[Encoded, LearningRecipe, Starter | None]:
    """Returns the owner's examples, read once if they can be, the recipe for so many, and the start."""
    _check_one_owner(examples)
    (support,) = read_once(engine, [encode_examples(engine, examples)])
    recipe = engine.release.manifest.recipe.at(len(support))
    if not (engine.onboards and recipe.start):
        return support, recipe, None
    known = read_known(engine, support, engine.encode(texts))
    return support, recipe, starter(engine, [known], [len(support)], recipe.start)


def _check_one_owner(examples: Sequence[Example]) -> None:
    users = len({example.user for example in examples})
    if users > 1:
        raise ExampleError(
            "a profile is learned from one person's examples",
            [f"found {users} users"],
            "Give a file with one user, or without a user column.",
        )


def _notes(examples: Sequence[Example]) -> tuple[str, ...]:
    notes = []
    if len(examples) == 1:
        notes.append("there is only one example, which says little of others. A few more will help.")
    if len({example.label for example in examples}) == 1 and len(examples) > 1:
        notes.append(
            "all examples have the same label; add some with another one, or predictions will lean to it."
        )
    return tuple(notes)


def _nll(logits: FloatArray, labels: IntArray) -> float:
    probability = softmax(logits)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(probability, 1e-12)).mean())
