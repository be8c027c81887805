"""`umbel bench serving`: one process that answers, for one owner or for many, beside torch and PEFT."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from umbel.device_client.prediction import FLOAT32, INT8, PRECISIONS
from umbel.shared.bias import softmax
from umbel.simulations.bench.encoders import MINILM
from umbel.simulations.bench.releases import BEHIND, MAX_TOKENS
from umbel.simulations.bench.rows import Row, Sample
from umbel.simulations.bench.sides import Sides, check_same
from umbel.simulations.bench.staging import PROFILES
from umbel.simulations.bench.texts import texts_of

SHAPES = ((1, 128), (1, 32), (32, 128))
OWNERS, OWNED_TOKENS = 128, 32
INSIDE = ("plora", "loratrf", "lopa", "xpeft", "pha")
"""Methods that act inside the encoder, which personalization's cost is told of."""
_TORCH = "torch eager, sdpa, the person merged into the weights"
_PLAIN = "the same encoder and head, nothing personal inside"
_COST, _MIXED, _SWITCHED, _INT8 = 1.10, 0.9, 3.0, 2.5
_INT8_TOLERANCE = 0.1  # of probabilities; publishing refuses what moves them by more on average
_OWNED = f"{OWNERS} owners, a text of {OWNED_TOKENS} tokens each"
_WAYS = (
    ("switched", "PEFT, set_adapter for each owner", _SWITCHED),
    ("adapter_names", "PEFT, adapter_names in one batch", None),
    ("mixed", "torch, a bias per row written by hand", None),
)
_HELD, _HELD_BY_PEFT = (1, 128, 1024), (1, 128)


def latency(sides: Sides, encoder: str) -> list[Row]:
    """Answers of one owner, by counts and lengths of texts, with the encoder in 32 bits and in 8."""
    release, found = sides.release(encoder), []
    for threads in sides.settings.threads:
        with sides.workers(threads) as (ours, theirs):
            for count, tokens in SHAPES[:1] if sides.settings.quick else SHAPES:
                texts = texts_of(release, count, tokens)
                other = None
                if theirs is not None:
                    other = theirs.prepare("predict", texts=texts, **_rival_options(sides, encoder))
                for precision in PRECISIONS:
                    given = {"texts": texts, "people": 1, "precision": precision}
                    _check(precision, ours.prepare("predict", release=str(release.folder), **given), other)
                    mine, rival = sides.in_turns(ours, theirs)
                    bounded = (count, tokens, threads, precision) == (*SHAPES[0], 1, INT8)
                    setting = f"{count} x {tokens} tokens, {precision}"
                    row = {"encoder": encoder, "threads": threads, "bound": _INT8 if bounded else None}
                    found.append(_seconds("predict", setting, mine, rival, _TORCH, **row))
    return found


def personalization(sides: Sides, encoder: str) -> list[Row]:
    """What a method costs over the same encoder and head with nothing personal inside."""
    kinds = INSIDE if encoder == MINILM else INSIDE[:1]
    threads, found = min(sides.settings.threads), []
    plain = sides.release(encoder, BEHIND)
    for kind in kinds:
        release = sides.release(encoder, kind)
        with sides.our_worker(threads) as with_it, sides.our_worker(threads) as without:
            for precision, (count, tokens) in product(PRECISIONS, (SHAPES[0], SHAPES[2])):
                given = {"texts": texts_of(release, count, tokens), "people": 1, "precision": precision}
                with_it.prepare("predict", release=str(release.folder), **given)
                without.prepare("predict", release=str(plain.folder), **given)
                mine, other = sides.in_turns(with_it, without)
                setting = f"{kind}, {count} x {tokens} tokens, {precision}"
                row = {"encoder": encoder, "threads": threads, "sense": "share", "bound": _COST}
                found.append(_seconds("personalization", setting, mine, other, _PLAIN, **row))
    return found


def owners(sides: Sides, encoder: str) -> list[Row]:
    """A text of each of many owners in one batch, beside one owner's batch, and beside PEFT."""
    found = [_beside_one_owner(sides, encoder, precision) for precision in PRECISIONS]
    if sides.rival is None:
        return found
    release, threads = sides.release(encoder), min(sides.settings.threads)
    texts = texts_of(release, OWNERS, OWNED_TOKENS)
    for task, against, bound in _WAYS:
        with sides.our_worker(threads) as ours, sides.rival_worker(threads) as theirs:
            other = theirs.prepare(task, texts=texts, **_rival_options(sides, encoder))
            given = {"texts": texts, "people": OWNERS, "precision": FLOAT32}
            check_same(against, ours.prepare("predict", release=str(release.folder), **given), other)
            mine, rival = sides.in_turns(ours, theirs)
        row = {"encoder": encoder, "threads": threads, "bound": bound}
        found.append(_seconds("many owners", f"{_OWNED}, {FLOAT32}", mine, rival, against, **row))
    return found


def _beside_one_owner(sides: Sides, encoder: str, precision: str) -> Row:
    release, threads = sides.release(encoder), min(sides.settings.threads)
    texts = texts_of(release, OWNERS, OWNED_TOKENS)
    with sides.our_worker(threads) as many, sides.our_worker(threads) as one:
        for worker, people in ((many, OWNERS), (one, 1)):
            given = {"texts": texts, "people": people, "precision": precision}
            worker.prepare("predict", release=str(release.folder), **given)
        mine, single = sides.in_turns(many, one)
    row = {"encoder": encoder, "threads": threads, "bound": _MIXED}
    return _seconds(
        "many owners", f"{_OWNED}, {precision}", mine, single, "as many texts of one owner", **row
    )


def _seconds(part: str, setting: str, ours: Sample, theirs: Sample | None, against: str, **more: Any) -> Row:
    return Row(part=part, setting=setting, unit="s", ours=ours, theirs=theirs, against=against, **more)


def _rival_options(sides: Sides, encoder: str) -> dict[str, Any]:
    staged = sides.staged(encoder)
    return {"folder": str(staged), "profiles": str(staged / PROFILES), "max_tokens": MAX_TOKENS}


def _check(precision: str, ours: list[list[float]], theirs: list[list[float]] | None) -> None:
    """Compares logits in 32 bits closely, and the probabilities of 8 bits as far as those can be the same."""
    if theirs is None:
        return
    if precision == FLOAT32:
        check_same("logits", ours, theirs)
        return
    mine, other = (softmax(np.asarray(rows, np.float32)) for rows in (ours, theirs))
    check_same("probabilities in 8 bits", mine.tolist(), other.tolist(), _INT8_TOLERANCE)


def memory(sides: Sides, encoder: str) -> list[Row]:
    """What a process holds with so many owners, after a prediction."""
    release, threads, found = sides.release(encoder), min(sides.settings.threads), []
    texts = texts_of(release, 1, OWNED_TOKENS)
    for people in _HELD:
        with sides.our_worker(threads) as ours:
            mine = ours.prepare("held", release=str(release.folder), texts=texts, people=people)
        theirs = None
        if sides.rival is not None and people in _HELD_BY_PEFT:
            with sides.rival_worker(threads) as rival:
                held = rival.prepare("held", texts=texts, people=people, **_rival_options(sides, encoder))
            theirs = Sample((float(held),))
        found.append(
            Row(part="memory held", encoder=encoder, setting=f"{people} owners", threads=threads,
                unit="bytes", ours=Sample((float(mine),)), theirs=theirs, sense="share",
                against="PEFT, an adapter for each owner" if theirs is not None else "")
        )  # fmt: skip
    return found
