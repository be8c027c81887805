"""`umbel bench serving`: one process that answers, for one owner or for many, beside torch and PEFT."""

from __future__ import annotations

from typing import Any

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
_COST, _MIXED, _SWITCHED = 1.10, 0.9, 3.0
_HELD, _HELD_BY_PEFT = (1, 128, 1024), (1, 128)


def latency(sides: Sides, encoder: str) -> list[Row]:
    """Answers of one owner, by counts and lengths of texts."""
    release, found = sides.release(encoder), []
    for threads in sides.settings.threads:
        with sides.workers(threads) as (ours, theirs):
            for count, tokens in SHAPES[:1] if sides.settings.quick else SHAPES:
                texts = texts_of(release, count, tokens)
                answer = ours.prepare("predict", release=str(release.folder), texts=texts, people=1)
                if theirs is not None:
                    staged = sides.staged(encoder)
                    given = {"folder": str(staged), "profiles": str(staged / PROFILES)}
                    other = theirs.prepare("predict", texts=texts, max_tokens=MAX_TOKENS, **given)
                    check_same("logits", answer, other)
                mine, rival = sides.in_turns(ours, theirs)
                found.append(
                    Row(part="predict", encoder=encoder, setting=f"{count} x {tokens} tokens, float32",
                        threads=threads, unit="s", ours=mine, theirs=rival, against=_TORCH)
                )  # fmt: skip
    return found


def personalization(sides: Sides, encoder: str) -> list[Row]:
    """What a method costs over the same encoder and head with nothing personal inside."""
    kinds = INSIDE if encoder == MINILM else INSIDE[:1]
    threads, found = min(sides.settings.threads), []
    plain = sides.release(encoder, BEHIND)
    for kind in kinds:
        release = sides.release(encoder, kind)
        with sides.our_worker(threads) as with_it, sides.our_worker(threads) as without:
            for count, tokens in (SHAPES[0], SHAPES[2]):
                texts = texts_of(release, count, tokens)
                with_it.prepare("predict", release=str(release.folder), texts=texts, people=1)
                without.prepare("predict", release=str(plain.folder), texts=texts, people=1)
                mine, other = sides.in_turns(with_it, without)
                found.append(
                    Row(part="personalization", encoder=encoder, threads=threads, unit="s",
                        setting=f"{kind}, {count} x {tokens} tokens", ours=mine, theirs=other,
                        against="the same encoder and head, nothing personal inside", sense="share",
                        bound=_COST)
                )  # fmt: skip
    return found


def owners(sides: Sides, encoder: str) -> list[Row]:
    """A text of each of many owners in one batch, beside one owner's batch, and beside PEFT."""
    release, threads = sides.release(encoder), min(sides.settings.threads)
    texts = texts_of(release, OWNERS, OWNED_TOKENS)
    row: dict[str, Any] = {"encoder": encoder, "threads": threads, "unit": "s"}
    setting = f"{OWNERS} owners, a text of {OWNED_TOKENS} tokens each"
    with sides.our_worker(threads) as many, sides.our_worker(threads) as one:
        answer = many.prepare("predict", release=str(release.folder), texts=texts, people=OWNERS)
        one.prepare("predict", release=str(release.folder), texts=texts, people=1)
        mine, single = sides.in_turns(many, one)
    found = [
        Row(part="many owners", setting=setting, ours=mine, theirs=single, bound=_MIXED,
            against="as many texts of one owner", **row)
    ]  # fmt: skip
    for task, against, bound in (
        ("switched", "PEFT, set_adapter for each owner", _SWITCHED),
        ("adapter_names", "PEFT, adapter_names in one batch", None),
        ("mixed", "torch, a bias per row written by hand", None),
    ):
        if sides.rival is None:
            continue
        staged = sides.staged(encoder)
        with sides.our_worker(threads) as ours, sides.rival_worker(threads) as theirs:
            ours.prepare("predict", release=str(release.folder), texts=texts, people=OWNERS)
            given = {"folder": str(staged), "profiles": str(staged / PROFILES)}
            other = theirs.prepare(task, texts=texts, max_tokens=MAX_TOKENS, **given)
            check_same(f"logits of many owners, {against}", answer, other)
            mine, rival = sides.in_turns(ours, theirs)
        found.append(
            Row(
                part="many owners",
                setting=setting,
                ours=mine,
                theirs=rival,
                against=against,
                bound=bound,
                **row,
            )
        )
    return found


def memory(sides: Sides, encoder: str) -> list[Row]:
    """What a process holds with so many owners, after a prediction."""
    release, threads, found = sides.release(encoder), min(sides.settings.threads), []
    texts = texts_of(release, 1, OWNED_TOKENS)
    for people in _HELD:
        with sides.our_worker(threads) as ours:
            mine = ours.prepare("held", release=str(release.folder), texts=texts, people=people)
        theirs = None
        if sides.rival is not None and people in _HELD_BY_PEFT:
            staged = sides.staged(encoder)
            given = {"folder": str(staged), "profiles": str(staged / PROFILES), "people": people}
            with sides.rival_worker(threads) as rival:
                held = rival.prepare("held", texts=texts, max_tokens=MAX_TOKENS, **given)
            theirs = Sample((float(held),))
        found.append(
            Row(part="memory held", encoder=encoder, setting=f"{people} owners", threads=threads,
                unit="bytes", ours=Sample((float(mine),)), theirs=theirs, sense="share",
                against="PEFT, an adapter for each owner" if theirs is not None else "")
        )  # fmt: skip
    return found
