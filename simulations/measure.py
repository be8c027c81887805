"""`umbel evaluate`: measures a release on any file of people."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from umbel.device_client.engine import Engine
from umbel.device_client.prediction import FLOAT32, INT8, check_precision
from umbel.shared.errors import ReleaseError
from umbel.shared.examples import read_examples
from umbel.shared.files import refuse_taken
from umbel.shared.release import read_release
from umbel.simulations.data.splits import split_population
from umbel.simulations.evaluation import evaluate_users, reachable
from umbel.simulations.progress import Progress
from umbel.simulations.results import Backbone, Data, Result
from umbel.simulations.simulate import machine, write_outputs
from umbel.simulations.summary import summarise_unseen


def measure(
    release_folder: Path,
    data: Path,
    ks: Sequence[int],
    *,
    query: int,
    seed: int,
    out: Path | None,
    threads: int,
    progress: Progress,
    precision: str = FLOAT32,
) -> tuple[Result, Path | None]:
    """Measures a release on the people of a file, all of them new.

    Args:
        release_folder: The release.
        data: File of examples.
        ks: Counts of own examples.
        query: Query examples per person, at most.
        seed: Of the split of each person's examples.
        out: Where result.json and report.html go; nowhere if None.
        threads: Threads of a graph run.
        progress: Shows people how it goes.
        precision: How texts are read and learned from, "float32" or "int8".

    Raises:
        ReleaseError: The release cannot be used, or does not read in 8 bits though it is to.
        ExampleError: The file is malformed, has unknown labels, or nobody has enough examples.
        ConfigError: There is no such precision, nobody has as many
            examples as the smallest of `ks`, or `out` holds something else.
        OSError: `out` cannot be written.
    """
    begun = time.perf_counter()
    check_precision(precision)
    if out is not None:
        refuse_taken(out)
        out.mkdir(parents=True, exist_ok=True)  # where it cannot be made, that is told before the work
    release = read_release(release_folder)
    if precision == INT8 and release.manifest.int8 is None:
        raise ReleaseError("the release does not read texts in 8 bits", hint="Publish it without --no-int8.")
    labels = release.manifest.labels
    with progress.phase("read people"):
        examples = read_examples(data, labels=labels)
        population = split_population(examples, seed=seed, unseen_share=1.0, labels=labels)
    users = list(population.unseen.values())
    kept = reachable(users, ks, progress.say)
    engine = Engine(release, threads=threads)
    with progress.phase("measure people") as bar:
        by_k = evaluate_users(
            engine, users, kept, query=query, batch_users=8, on_users=bar.step, precision=precision
        )
    result = Result(
        experiment="evaluate",
        seed=seed,
        engine="none",
        data=Data(
            name=data.name,
            users_seen=0,
            users_unseen=len(users),
            users_skipped=len(population.skipped),
            examples=len(examples),
            labels=len(labels),
        ),
        backbone=Backbone(name=release.manifest.backbone["name"], sha256=release.manifest.backbone["sha256"]),
        methods=tuple(release.manifest.methods),
        profile_bytes=release.manifest.profile.packed_bytes,
        release=release.release_id,
        rounds=(),
        seen=None,
        unseen=summarise_unseen(by_k, seed=seed),
        training=None,
        seconds={"evaluate": time.perf_counter() - begun},
        machine=machine(threads),
        config={"k": list(kept), "query": query, "seed": seed, "precision": precision},
    )
    if out is not None:
        write_outputs(out, result)
    return result, out
