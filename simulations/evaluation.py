"""Measures a release on people it has never met, by the device's own code, from k of their examples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from umbel.device_client.caution import cautious_profiles
from umbel.device_client.engine import Engine
from umbel.device_client.learning import Encoded, encode_examples, example_logits, read_once, together
from umbel.device_client.onboarding import examples_starter
from umbel.device_client.prediction import FLOAT32, reader
from umbel.shared.bias import fit_bias
from umbel.shared.checks import number_problems, parsed_json
from umbel.shared.errors import ConfigError
from umbel.shared.files import atomic_write, sha256_bytes
from umbel.shared.profile import FloatArray
from umbel.simulations.data.splits import UserExamples
from umbel.simulations.summary import UserAccuracies

_MODELS = ("generic", "bias", "personal")
OnUsers = Callable[[int, int], None]
Row = dict[str, dict[str, float]]
"""One person's accuracies: "generic", "bias", "personal" -> k -> accuracy."""


def evaluate_users(
    engine: Engine,
    users: Sequence[UserExamples],
    ks: Sequence[int],
    *,
    query: int,
    batch_users: int,
    journal: Path | None = None,
    on_users: OnUsers | None = None,
    precision: str = FLOAT32,
) -> dict[int, UserAccuracies]:
    """Returns every person's accuracies by k: generic, generic + private bias, personal.

    Args:
        engine: The release.
        users: People; `support[:k]` is learned from, `query` is predicted.
        ks: Counts of own examples; who has fewer uses what there is.
        query: Query examples per person, at most.
        batch_users: People who learn side by side in one graph run.
        journal: File in which finished people are kept, so that a stopped evaluation goes on where it was.
        on_users: Called with (people done, people in all).
        precision: How texts are read and learned from.

    Raises:
        ConfigError: There is no such precision.
        ExampleError: A label is not one of the release's.
    """
    engine = reader(engine, precision)
    identity = _identity(engine, users, ks, query, batch_users)
    rows = _read_journal(journal, identity, ks, batch_users, len(users))
    for start in range(len(rows), len(users), batch_users):
        batch = users[start : start + batch_users]
        rows += _evaluate_batch(engine, batch, ks, query)
        _append_journal(journal, rows[start:])
        if on_users is not None:
            on_users(len(rows), len(users))
    return {
        k: UserAccuracies(*(np.array([row[what][str(k)] for row in rows]) for what in _MODELS)) for k in ks
    }


def reachable(
    users: Sequence[UserExamples], ks: Sequence[int], say: Callable[[str], None]
) -> tuple[int, ...]:
    """Returns the counts for which somebody has enough examples, and says which ones are left out.

    Raises:
        ConfigError: There is none.
    """
    most = max((len(user.support) for user in users), default=0)
    kept = tuple(k for k in ks if k <= most)
    if not kept:
        raise ConfigError(
            "nobody has so many examples to learn from",
            [f"k = {', '.join(map(str, ks))}; at most {most} are left beside those to predict"],
            "Give smaller counts.",
        )
    if len(kept) < len(ks):
        left = ", ".join(str(k) for k in ks if k > most)
        say(f"left out: k = {left}, since nobody has so many examples to learn from")
    return kept


def _evaluate_batch(
    engine: Engine, users: Sequence[UserExamples], ks: Sequence[int], query: int
) -> list[Row]:
    supports = read_once(engine, [encode_examples(engine, user.support[: max(ks)]) for user in users])
    queries = read_once(engine, [encode_examples(engine, user.query[:query]) for user in users])
    nobody = engine.release.manifest.profile.zeros(1)
    generic = [example_logits(engine, part, nobody) for part in queries]
    own = [example_logits(engine, part, nobody) for part in supports]
    rows: list[Row] = [{model: {} for model in _MODELS} for _ in users]
    prior = engine.release.manifest.recipe.bias_prior
    for k in ks:
        personal = _personal_logits(engine, [support.first(k) for support in supports], queries)
        for row, support, wanted, plain, shown, mine in zip(
            rows, supports, queries, generic, own, personal, strict=True
        ):
            bias = fit_bias(shown[:k], support.labels[:k], prior)
            row["generic"][str(k)] = accuracy(plain, wanted)
            row["bias"][str(k)] = accuracy((plain + bias).astype(np.float32), wanted)
            row["personal"][str(k)] = accuracy(mine, wanted)
    return rows


def _personal_logits(
    engine: Engine, supports: Sequence[Encoded], queries: Sequence[Encoded]
) -> list[FloatArray]:
    recipe = engine.release.manifest.recipe.at(max(map(len, supports), default=0))
    start = examples_starter(engine, supports, recipe.start)
    profile, _ = cautious_profiles(engine, supports, recipe, start=start)
    owner = np.repeat(np.arange(len(queries)), [len(part) for part in queries])
    logits = example_logits(engine, together(queries), profile, owner=owner)
    ends = np.cumsum([len(part) for part in queries])
    return np.split(logits, ends[:-1])


def accuracy(logits: FloatArray, wanted: Encoded) -> float:
    """Returns the share of right answers."""
    return float((logits.argmax(1) == wanted.labels).mean())


def _identity(
    engine: Engine,
    users: Sequence[UserExamples],
    ks: Sequence[int],
    query: int,
    batch_users: int,
) -> str:
    people = [[u.user, [[e.text, e.label] for e in (*u.support[: max(ks)], *u.query[:query])]] for u in users]
    row = [engine.release.release_id, list(ks), query, batch_users, people]
    row += (
        [] if engine.precision == FLOAT32 else [engine.precision]
    )  # as it was hashed before there was another one
    return sha256_bytes(json.dumps(row).encode())


def _read_journal(
    journal: Path | None, identity: str, ks: Sequence[int], batch: int, users: int
) -> list[Row]:
    """Returns the people that an earlier, stopped evaluation of the same release and people has finished.

    What follows a malformed line is not used. Only whole batches count: who learns beside whom is part of
    what gives the same numbers to the last bit.
    """
    if journal is None:
        return []
    head = {"identity": identity}
    found = _whole_lines(journal) if journal.is_file() else []
    rows = found[1 : users + 1] if found[:1] == [head] else []
    rows = list(takewhile(lambda row: _is_row(row, ks), rows))
    if len(rows) < users:
        rows = rows[: len(rows) - len(rows) % batch]
    atomic_write(journal, "".join(json.dumps(row) + "\n" for row in (head, *rows)).encode())
    return rows


def _is_row(row: object, ks: Sequence[int]) -> bool:
    """Says whether a line holds one person's accuracies, every one of them, and nothing else."""
    if not isinstance(row, dict) or row.keys() != set(_MODELS):
        return False
    wanted = {str(k) for k in ks}
    return all(
        isinstance(part, dict)
        and part.keys() == wanted
        and not any(number_problems(k, value, 0.0, 1.0) for k, value in part.items())
        for part in row.values()
    )


def _whole_lines(journal: Path) -> list[Any]:
    """Returns the lines up to the first that was not written to its end."""
    rows: list[Any] = []
    for line in journal.read_bytes().splitlines(keepends=True):
        try:
            rows.append(parsed_json(line))
        except ValueError:
            break
        if not line.endswith(b"\n"):
            return rows[:-1]
    return rows


def _append_journal(journal: Path | None, rows: Sequence[Mapping[str, object]]) -> None:
    if journal is not None:
        with journal.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
