"""`umbel coordinator`: train what everyone shares, and publish it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.coordinator.channel.commands import OfflineFolder, ready
from umbel.coordinator.channel.commands import app as channel_app
from umbel.coordinator.service import commands as service_commands

if TYPE_CHECKING:
    from umbel.shared.answers import Int8

app = typer.Typer(
    no_args_is_help=True,
    help="Train what everyone shares on examples of seen users, and publish it as a release for devices.",
)
app.add_typer(channel_app, name="channel")

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="TOML file; an empty one takes every default.")
    ],
    examples: Annotated[
        Path, typer.Option("--examples", "-e", help="Examples of seen users (public, or given with consent).")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of checkpoints, metrics and the finished model.")
    ],
    threads: Annotated[int, typer.Option(min=1, max=256, help="Torch threads.")] = 2,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what is in the folder.")] = False,
    as_json: _Json = False,
) -> None:
    """Train the shared part of every method on the examples of seen users.

    CONFIG is a TOML file with seed, trainables and the sections backbone, task, methods.NAME, training,
    recipe and onboarding; an empty file takes every default. When stopped, give the same command again: it
    goes on from the last checkpoint, to the same weights.

    For instance: umbel coordinator train config.toml --examples seen.jsonl --out training

    With several processes: torchrun --nproc-per-node 2 -m umbel coordinator train config.toml ...

    Watch it with: tensorboard --logdir training, or read training/metrics.jsonl.
    """
    from umbel.coordinator.config import read_config
    from umbel.coordinator.train import train as run
    from umbel.coordinator.training.workers import is_helper
    from umbel.shared.examples import read_examples

    settings = read_config(config)
    rows = read_examples(examples, labels=settings.task.labels)
    helps = is_helper()
    with _bar(as_json or helps) as on_progress:
        trained = run(settings, rows, out, threads=threads, restart=restart, on_progress=on_progress)
    if helps:
        return  # the first one tells
    report = trained.report
    best = min(report["curve"], key=lambda row: row["heldout_loss"])
    found = {
        "out": str(out),
        "users": report["users"],
        "train_examples": report["train_examples"],
        "steps": report["steps"],
        "best_step": report["best_step"],
        "stopped": report["stopped"],
        "heldout_loss": best["heldout_loss"],
        "heldout_accuracy": best["heldout_accuracy"],
        "recipe": trained.recipe.as_json(),
    }
    _tell(
        found,
        f"Trained on {report['train_examples']} examples of {report['users']} people: {report['stopped']}; "
        f"the best of {report['steps']} steps was {report['best_step']} "
        f"(held-out accuracy {best['heldout_accuracy']:.3f}).\n"
        f"Publish it with: umbel coordinator publish {out} --out release",
        as_json,
    )


@app.command()
def publish(
    training: Annotated[Path, typer.Argument(metavar="TRAINING", help="Folder of a finished training.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the release.")],
    parent: Annotated[str | None, typer.Option(help="Id of the release that this one follows.")] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8/--no-int8", help="Also graphs that predict and learn with the encoder in 8 bits."
        ),
    ] = True,
    examples: Annotated[
        Path | None,
        typer.Option("--examples", "-e", help="Examples on whose texts 8 bits are compared with float32."),
    ] = None,
    channel: Annotated[
        Path | None, typer.Option(help="Channel whose devices fetch it from now on; it takes --keys.")
    ] = None,
    keys: Annotated[Path | None, typer.Option("--keys", "-k", help="Folder of the channel's keys.")] = None,
    offline: OfflineFolder = None,
    as_json: _Json = False,
) -> None:
    """Write a release: plain ONNX graphs, weights, tokenizer and manifest.

    TRAINING is the folder that `umbel coordinator train` wrote. torch and onnxruntime are compared on logits,
    loss and every gradient; a release that does not agree is refused.

    For instance: umbel coordinator publish training --out release
    """
    from umbel.coordinator.artifacts import load_trained
    from umbel.coordinator.publish import publish as run
    from umbel.shared.examples import read_examples

    served = ready(channel, keys, offline)
    trained = load_trained(training)
    texts = [] if examples is None else list(dict.fromkeys(row.text for row in read_examples(examples)))
    with _status(as_json) as on_phase:
        release = run(trained, out, parent=parent, int8=int8, texts=texts, on_phase=on_phase)
    if served is not None:
        served.add(release)
    manifest = release.manifest
    worst = max(manifest.parity.values())
    found = {
        "release": str(out),
        "id": release.release_id,
        "profile_bytes": manifest.profile.packed_bytes,
        "worst_relative_difference": worst,
        "int8": None if manifest.int8 is None else manifest.int8.as_json(),
        "blobs": {name: blob.size_bytes for name, blob in sorted(manifest.blobs.items())},
        "channel": None if channel is None else str(channel),
    }
    _tell(
        found,
        f"Release {release.release_id[:12]} is in {out}: {len(manifest.blobs)} blobs, "
        f"{sum(blob.size_bytes for blob in manifest.blobs.values()) / 1e6:.1f} MB; a profile takes "
        f"{manifest.profile.packed_bytes} bytes.\n"
        f"torch and onnxruntime agree within {worst:.1e} on logits, loss and every gradient.\n"
        f"{_int8_words(manifest.int8)}"
        + (f"Devices of {channel} fetch it from now on.\n" if channel else "")
        + f"On a device: umbel device learn --release {out} --examples mine.jsonl",
        as_json,
    )


def _int8_words(found: Int8 | None) -> str:
    if found is None:
        return ""
    return (
        f"In 8 bits, probabilities move by {found.moved:.2%} on average and {found.changed:.1%} of the most "
        f"likely labels are other ones ({found.texts} texts); gradients turn by {found.turned:.2g} "
        "(1 - cosine).\n"
    )


@app.command()
def grow(
    training: Annotated[Path, typer.Argument(metavar="TRAINING", help="Folder of a finished training.")],
    change: Annotated[
        list[str],
        typer.Option("--set", help="What grows: METHOD.OPTION=VALUE; can be repeated."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the grown training.")],
    as_json: _Json = False,
) -> None:
    """Make a finished training larger without changing anybody's predictions.

    X-PEFT's trained bank can grow: the adapters that are added lie around the mean of the bank, so that
    neither people's masks nor the generic model change.

    For instance: umbel coordinator grow training --set xpeft.adapters=120 --out grown
    """
    from umbel.coordinator.artifacts import load_trained, save_trained
    from umbel.coordinator.growth import grow as run
    from umbel.coordinator.growth import read_changes
    from umbel.shared.files import refuse_taken, sole_use

    changes = read_changes(change)
    refuse_taken(out)
    trained = run(load_trained(training), changes)
    with sole_use(out):
        save_trained(out, trained)
    _tell(
        {"out": str(out), "fingerprint": trained.fingerprint, "changes": changes},
        f"Grown: {', '.join(change)}.\nPublish it with: umbel coordinator publish {out} --out release",
        as_json,
    )


service_commands.add_to(app)


def _tell(found: dict[str, Any], words: str, as_json: bool) -> None:
    typer.echo(json.dumps(found, indent=2) if as_json else words)


@contextmanager
def _bar(quiet: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=quiet)
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, Any] = {}

        def on_progress(phase: str, done: int, total: int, words: str) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=total, words="")
            progress.update(tasks[phase], completed=done, total=total, words=words)

        yield on_progress


def _lines(console: Any) -> Any:
    """Returns what writes a line when a phase begins, and every minute."""
    from umbel.coordinator.pace import Pace

    pace = Pace()

    def on_progress(phase: str, done: int, total: int, words: str) -> None:
        if pace.due(phase):
            console.print(f"{phase}: {done}/{total} {words}".rstrip(), highlight=False, markup=False)

    return on_progress


@contextmanager
def _status(quiet: bool) -> Iterator[Any]:
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    if not console.is_terminal:
        yield lambda phase: console.print(phase, highlight=False, markup=False)
        return
    with console.status("load") as status:
        yield status.update
