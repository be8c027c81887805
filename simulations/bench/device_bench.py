"""`umbel bench device`: what one owner's device costs, beside the same in torch and transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from umbel.device_client.prediction import FLOAT32, INT8, PRECISIONS
from umbel.shared.examples import Example, write_examples
from umbel.shared.files import atomic_write
from umbel.shared.profile import pack_profile, unpack_profile
from umbel.shared.release import Release
from umbel.simulations.bench.processes import Ran, environment, run_once, umbel_command
from umbel.simulations.bench.releases import MAX_TOKENS, ONBOARDED
from umbel.simulations.bench.rows import Row, Sample
from umbel.simulations.bench.sides import Sides, alternated, check_same
from umbel.simulations.bench.staging import profiles_of
from umbel.simulations.bench.texts import labels_of, texts_of

EXAMPLES, TOKENS = 16, 64
_SIZE = f"{EXAMPLES} examples x {TOKENS} tokens"
_TEXT = f"one text of {TOKENS} tokens"
_RIVAL = "torch + transformers"
_START, _PREDICT_MEMORY, _LEARN_MEMORY, _LEARN, _STEP = 0.25, 0.35, 0.5, 1.5, 1.0
_LEARNED = 5e-3  # a profile is rounded to float16 after 16 steps that each add to a difference
_INT8_LEARNED = (
    0.1  # of losses in nats, and of 1 - cosine of gradients; publishing refuses what is further off
)

Once = Callable[[], Ran]


def start(sides: Sides, encoder: str) -> list[Row]:
    """Process start to first prediction, and what that process holds at most."""
    release, threads, place = sides.release(encoder), max(sides.settings.threads), sides.place(encoder)
    (text,) = texts_of(release, 1, TOKENS)
    named = ["--release", str(release.folder), "--profile", str(_person(release, place))]
    by_files = _umbel(threads, "predict", text, *named, "--json")
    theirs = _rival_predict(sides, encoder, [text], threads)
    if theirs is not None:
        exact = _umbel(threads, "predict", text, *named, "--precision", "float32", "--json")
        found = json.loads(exact().printed)["probabilities"]
        check_same("first prediction", [list(found.values())], json.loads(theirs().printed)["probabilities"])
    mine, other = _whole(sides.settings.repetitions, by_files, theirs)
    at_home = _umbel(threads, "predict", text, "--home", str(_home(release, place, threads)), "--json")
    at_home()
    sealed = [at_home() for _ in range(sides.settings.repetitions)]
    row: dict[str, Any] = {"encoder": encoder, "threads": threads, "against": _RIVAL, "sense": "share"}
    return [
        Row(part="start to first prediction", setting=f"{_TEXT}, from files", unit="s",
            ours=_seconds(mine), theirs=_seconds_or_none(other), bound=_START, **row),
        Row(part="start to first prediction", setting=f"{_TEXT}, from the sealed home", unit="s",
            ours=_seconds(sealed), theirs=_seconds_or_none(other), bound=_START, **row),
        Row(part="predict, peak memory", setting=_TEXT, unit="bytes",
            ours=_peak(mine), theirs=_peak_or_none(other), bound=_PREDICT_MEMORY, **row),
    ]  # fmt: skip


def learn(sides: Sides, encoder: str) -> list[Row]:
    """The whole process of learning a profile by the release's recipe, and what it holds at most.

    The rival computes in float32. So does umbel when both must give the same profile; then it learns in 8
    bits, as a device does.
    """
    release, threads, place = sides.release(encoder), max(sides.settings.threads), sides.place(encoder)
    examples, profile = _examples(release, place), place / "learned.umbel"
    named = ["--release", str(release.folder), "--examples", str(examples), "--profile", str(profile)]
    small, exact = (_umbel(threads, "learn", *named, "--precision", p, "--json") for p in (INT8, FLOAT32))
    theirs, kept = _rival_learn(sides, encoder, threads)
    if theirs is not None:
        told = theirs()
        _check_learned(release, exact(), profile, told, kept)
        _check_losses(small(), told)
    mine, other = _whole(sides.settings.few, small, theirs)
    plain, _ = _whole(sides.settings.few, exact, None)
    recipe = release.manifest.recipe
    setting = f"{_SIZE}, {recipe.steps} steps, {recipe.folds} folds"
    row: dict[str, Any] = {"encoder": encoder, "threads": threads, "against": _RIVAL}
    found = []
    for precision, runs, bounds in ((INT8, mine, (_LEARN, _LEARN_MEMORY)), (FLOAT32, plain, (None, None))):
        row["setting"] = f"{setting}, {precision}"
        found += [
            Row(part="learn, whole process", unit="s",
                ours=_seconds(runs), theirs=_seconds_or_none(other), bound=bounds[0], **row),
            Row(part="learn, peak memory", unit="bytes", sense="share",
                ours=_peak(runs), theirs=_peak_or_none(other), bound=bounds[1], **row),
        ]  # fmt: skip
    return found


def step(sides: Sides, encoder: str) -> list[Row]:
    """One step of learning in a running process: gradient of all examples, and AdamW."""
    release, found = sides.release(encoder), []
    texts, labels = _support(release)
    given: dict[str, Any] = {"texts": texts, "labels": labels}
    recipe = dict(release.manifest.recipe.as_json())
    for threads in sides.settings.threads:
        for precision in PRECISIONS:
            with sides.workers(threads) as (ours, theirs):
                answer = ours.prepare("step", release=str(release.folder), precision=precision, **given)
                if theirs is not None:
                    staged = str(sides.staged(encoder))
                    other = theirs.prepare(
                        "step", folder=staged, recipe=recipe, max_tokens=MAX_TOKENS, **given
                    )
                    _check_step(precision, answer, other)
                mine, rival = sides.in_turns(ours, theirs)
            found.append(
                Row(part="learn, per step", encoder=encoder, setting=f"{_SIZE}, {precision}", threads=threads,
                    unit="s", ours=mine, theirs=rival, against=_RIVAL, bound=_STEP)
            )  # fmt: skip
    return found


def _check_step(precision: str, ours: Any, theirs: Any) -> None:
    """Compares loss and gradient of the first step; of 8 bits how far the gradient turns."""
    if precision == FLOAT32:
        check_same("nll of the first step", ours[0], theirs[0])
        check_same("gradient of the first step", ours[1], theirs[1])
        return
    mine, other = np.array(ours[1]), np.array(theirs[1])
    cosine = float(mine @ other / (np.linalg.norm(mine) * np.linalg.norm(other)))
    check_same("nll of the first step in 8 bits", ours[0], theirs[0], _INT8_LEARNED)
    check_same("cosine of the gradients in 8 bits", [cosine], [1.0], _INT8_LEARNED)


def onboard(sides: Sides, encoder: str) -> list[Row]:
    """The whole process of a first profile, in one pass."""
    release, threads, place = (
        sides.release(encoder, ONBOARDED),
        max(sides.settings.threads),
        sides.place(encoder),
    )
    named = ["--release", str(release.folder), "--examples", str(_examples(release, place))]
    once = _umbel(threads, "onboard", *named, "--profile", str(place / "first.umbel"), "--json")
    once()
    runs = [once() for _ in range(sides.settings.repetitions)]
    row: dict[str, Any] = {"encoder": encoder, "threads": threads, "setting": _SIZE}
    return [
        Row(part="onboard, whole process", unit="s", ours=_seconds(runs), **row),
        Row(part="onboard, peak memory", unit="bytes", ours=_peak(runs), **row),
    ]


def _umbel(threads: int, command: str, *words: str) -> Once:
    """Returns what runs a command of the device's in a fresh process."""
    line = umbel_command("device", command, *words, "--threads", str(threads))
    return lambda: run_once(line, environment(threads))


def _rival_predict(sides: Sides, encoder: str, texts: list[str], threads: int) -> Once | None:
    if sides.rival is None:
        return None
    staged = sides.staged(encoder)
    order = {"folder": str(staged), "profile": str(staged / "person.safetensors")}
    order_of_texts: dict[str, Any] = {**order, "texts": texts, "max_tokens": MAX_TOKENS}
    return lambda: sides.rival_once("predict", order_of_texts, threads)


def _rival_learn(sides: Sides, encoder: str, threads: int) -> tuple[Once | None, Path]:
    kept = sides.place(encoder) / "learned.safetensors"
    if sides.rival is None:
        return None, kept
    release = sides.release(encoder)
    texts, labels = _support(release)
    order = {"folder": str(sides.staged(encoder)), "profile": str(kept), "max_tokens": MAX_TOKENS}
    whole = {**order, "texts": texts, "labels": labels, "recipe": dict(release.manifest.recipe.as_json())}
    return (lambda: sides.rival_once("learn", whole, threads)), kept


def _check_learned(release: Release, ours: Ran, profile: Path, theirs: Ran, kept: Path) -> None:
    """Compares what both sides told, and the very profiles that they keep."""
    from safetensors.numpy import load_file

    mine, other = json.loads(ours.printed), json.loads(theirs.printed)
    names = ("nll_generic", "nll_personal", "strength")
    check_same("learning", [mine[name] for name in names], [other[name] for name in names], _LEARNED)
    spec = release.manifest.profile
    found = unpack_profile(spec, profile.read_bytes(), release.release_id)["plora.user"]
    check_same("learned profile", found.ravel().tolist(), load_file(kept)["user"].ravel().tolist(), _LEARNED)


def _check_losses(ours: Ran, theirs: Ran) -> None:
    """Compares what came of learning in 8 bits with what came of it in float32."""
    names = ("nll_generic", "nll_personal")
    mine, other = ([json.loads(ran.printed)[name] for name in names] for ran in (ours, theirs))
    check_same("losses in 8 bits", mine, other, _INT8_LEARNED)


def _whole(repetitions: int, ours: Once, theirs: Once | None) -> tuple[list[Ran], list[Ran]]:
    """Runs whole processes of both sides in turns; each has run once before, so files lie in memory."""
    mine: list[Ran] = []
    other: list[Ran] = []

    def keep(runs: list[Ran], once: Once) -> float:
        runs.append(once())
        return runs[-1].seconds

    ours()
    alternated(
        repetitions,
        lambda: keep(mine, ours),
        None if theirs is None else lambda: keep(other, theirs),
    )
    return mine, other


def _seconds(runs: list[Ran]) -> Sample:
    return Sample(tuple(run.seconds for run in runs))


def _seconds_or_none(runs: list[Ran]) -> Sample | None:
    return _seconds(runs) if runs else None


def _peak(runs: list[Ran]) -> Sample:
    return Sample(tuple(float(run.peak_bytes) for run in runs))


def _peak_or_none(runs: list[Ran]) -> Sample | None:
    return _peak(runs) if runs else None


def _support(release: Release) -> tuple[list[str], list[int]]:
    return texts_of(release, EXAMPLES, TOKENS), labels_of(EXAMPLES, len(release.manifest.labels))


def _examples(release: Release, place: Path) -> Path:
    texts, labels = _support(release)
    names = release.manifest.labels
    path = place / "examples.jsonl"
    rows = [Example("owner", text, names[label]) for text, label in zip(texts, labels, strict=True)]
    write_examples(path, rows)
    return path


def _person(release: Release, place: Path) -> Path:
    """Keeps the profile of the person whom the rival has as well."""
    spec = release.manifest.profile
    path = place / "person.umbel"
    atomic_write(path, pack_profile(spec, profiles_of(spec, 1), release.release_id), mode=0o600)
    return path


def _home(release: Release, place: Path, threads: int) -> Path:
    """Makes a device's home with a profile that was learned from two examples, once for each release."""
    home = place / f"home-{release.release_id[:12]}"
    ready = place / f"{home.name}.ready"
    if not ready.is_file():
        shutil.rmtree(home, ignore_errors=True)
        few = place / "few.jsonl"
        few.write_text("\n".join(_examples(release, place).read_text().splitlines()[:2]) + "\n")
        for words in (
            ("enroll", "--release", str(release.folder)),
            ("add", "--examples", str(few)),
            ("learn", "--threads", str(threads)),
        ):
            run_once(umbel_command("device", *words, "--home", str(home)), environment(threads))
        ready.touch()
    return home
