"""What a device does for its owner: learn a profile from their examples, or write a first one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from umbel.device_client.cross_validation import cross_validated
from umbel.device_client.engine import Engine
from umbel.device_client.held_out import HeldOut
from umbel.device_client.learning import example_logits
from umbel.device_client.memory import fitting_rows
from umbel.device_client.onboarding import influences, onboarded
from umbel.device_client.own_learning import (
    Learned,
    OwnLearning,
    OwnTexts,
    Progress,
    check_one_owner,
    example_notes,
)
from umbel.device_client.prediction import INT8, reader
from umbel.device_client.profile_file import check_profile_place
from umbel.shared.bias import softmax
from umbel.shared.errors import ExampleError
from umbel.shared.examples import Example
from umbel.shared.files import atomic_write
from umbel.shared.profile import FloatArray, pack_profile
from umbel.shared.release import Release
from umbel.shared.text import IntArray

_LIKENESSES = 3

OnProgress = Callable[[Progress], None]


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
    precision: str = INT8,
) -> Onboarded:
    """Writes the owner's first profile from what is known of them, in one pass, and keeps it in a file.

    Args:
        release: A release that has onboarding.
        examples: Labelled texts of the owner; there may be none.
        texts: Further texts of theirs.
        path: Where the profile is kept; an older one there is replaced once the new one is whole.
        explain: Also find each text's influence, which takes a profile without each of them.
        threads: Threads of a graph run.
        precision: "int8" reads texts in 8 bits where the release can; "float32" does not.

    Raises:
        ConfigError: There is no such precision.
        ExampleError: There is nothing, the examples are of several people, or a label is not the release's.
        OSError: The profile cannot be written; an older one is untouched.
        ProfileError: Something else than a profile is there.
        ReleaseError: The release has no onboarding.
    """
    check_profile_place(path)
    packed, found = packed_onboarding(
        release, examples, texts, explain=explain, threads=threads, precision=precision
    )
    atomic_write(path, packed, mode=0o600)
    return found


def packed_onboarding(
    release: Release,
    examples: Sequence[Example],
    texts: Sequence[str],
    *,
    explain: bool = True,
    threads: int = 1,
    precision: str = INT8,
) -> tuple[bytes, Onboarded]:
    """Returns the packed profile that `onboard_profile` keeps, and what came of it; see there."""
    check_known(examples, texts)
    engine = reader(Engine(release, threads=threads, alone=True), precision)
    return onboarding_of(OwnTexts(engine, examples, texts, onboards=True).read(), explain=explain)


def check_known(examples: Sequence[Example], texts: Sequence[str]) -> None:
    """Refuses what no first profile can be made from.

    Raises:
        ExampleError: There is nothing, or the examples are of several people.
    """
    if not examples and not texts:
        raise ExampleError(
            "there is nothing to begin with",
            hint="Add texts of yours, with labels or without: umbel device add. With --release, give files: "
            "--texts, --examples.",
        )
    check_one_owner(examples)


def onboarding_of(own: OwnTexts, *, explain: bool = True) -> tuple[bytes, Onboarded]:
    """Returns the packed profile that onboarding makes of texts that it is given and that have been read.

    Args:
        own: The texts.
        explain: Also find each text's influence.

    Raises:
        ReleaseError: The release has no onboarding.
    """
    engine, known = own.engine, own.known()
    exact, weights = onboarded(engine, [known])
    release = engine.release
    profile = release.manifest.profile.rounded(exact)
    data = pack_profile(release.manifest.profile, profile, release.release_id)
    before, after = softmax(known.logits), softmax(example_logits(engine, own.everything(), profile))
    return data, Onboarded(
        len(data),
        float((before.argmax(1) != after.argmax(1)).mean()),
        float(0.5 * np.abs(after - before).sum(1).mean()),
        _likenesses(release, weights[0]),
        tuple(float(value) for value in influences(engine, known)) if explain else (),
        example_notes(own.examples),
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
    memory_mib: int | None = None,
    precision: str = INT8,
    on_progress: OnProgress | None = None,
) -> Learned:
    """Learns the owner's profile and keeps it in a file, by an atomic write that only the owner can read.

    Args:
        release: The release.
        examples: The owner's examples, all of one person.
        path: Where the profile is kept; an older one there is replaced once the new one is whole.
        texts: Further texts of the owner, without labels; only onboarding makes use of them.
        threads: Threads of a graph run.
        memory_mib: What the process may take at most, in MiB; None: as much as it takes.
        precision: "int8" computes with the encoder in 8 bits where the release can; "float32" does not.
        on_progress: Called after every graph run.

    Raises:
        ConfigError: There is no such precision, or one text at a time takes more memory than it may.
        ExampleError: There are none, they are of several people, or a label is not the release's.
        OSError: The profile cannot be written; an older one is untouched.
        ProfileError: Something else than a profile is there, or learning did not converge.
    """
    check_profile_place(path)
    packed, found = packed_learning(
        release,
        examples,
        texts=texts,
        threads=threads,
        memory_mib=memory_mib,
        precision=precision,
        on_progress=on_progress,
    )
    atomic_write(path, packed, mode=0o600)
    return found


def packed_learning(
    release: Release,
    examples: Sequence[Example],
    *,
    texts: Sequence[str] = (),
    threads: int = 1,
    memory_mib: int | None = None,
    precision: str = INT8,
    on_progress: OnProgress | None = None,
) -> tuple[bytes, Learned]:
    """Returns the packed profile that `learn_profile` keeps, and what came of it; see there."""
    engine = reader(Engine(release, threads=threads, alone=True), precision)
    rows = None if memory_mib is None else fitting_rows(engine, examples, texts, memory_mib)
    learning = OwnLearning(engine, examples, texts, rows=rows)
    while not learning.finished:
        learning.advance()
        if on_progress is not None:
            on_progress(learning.progress())
    return learning.result()


def cross_validate(
    release: Release,
    examples: Sequence[Example],
    folds: Sequence[int] | IntArray,
    *,
    texts: Sequence[str] = (),
    threads: int = 1,
    precision: str = INT8,
) -> HeldOut | None:
    """Returns what the owner's examples say of a release, each held out in the fold that is given.

    Args:
        release: The release.
        examples: The owner's examples, all of one person.
        folds: (n,) fold of each: `umbel.device_client.held_out.text_folds` gives the same for any release.
        texts: Further texts of the owner, without labels; only onboarding makes use of them.
        threads: Threads of a graph run.
        precision: As in `learn_profile`.

    Returns:
        None where there are less than two folds.

    Raises:
        ExampleError: The examples are of several people, or a label is not the release's.
        ProfileError: Learning did not converge.
    """
    check_one_owner(examples)
    own = OwnTexts(reader(Engine(release, threads=threads, alone=True), precision), examples, texts).read()
    return cross_validated(own.engine, own.support(), own.recipe, folds, start=own.starter())
