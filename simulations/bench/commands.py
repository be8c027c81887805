"""`umbel bench`: what a device, serving many owners, simulated rounds and training cost, beside others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from umbel.simulations.bench.rows import Measured
    from umbel.simulations.bench.sides import Settings

app = typer.Typer(
    no_args_is_help=True,
    help="Measure what a device, serving many owners, simulated rounds and training cost, "
    "beside torch, transformers, PEFT and Flower in the same run.",
)

_WIDE = 1000  # wider than any table
_Model = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="An encoder: minilm, bert-base or tiny; may be given repeatedly; by default the first two.",
    ),
]
_Out = Annotated[Path, typer.Option("--out", "-o", help="The work folder; what is in it is used again.")]
_RivalEnv = Annotated[
    Path | None,
    typer.Option(help="An environment that has torch, transformers and peft; one is made otherwise."),
]
_Alone = Annotated[bool, typer.Option("--alone", help="Measure umbel alone: nothing is compared.")]
_Threads = Annotated[str, typer.Option(help="Counts of threads, with commas.")]
_Repetitions = Annotated[int, typer.Option(min=1, max=1000, help="Samples of a figure, taken in turns.")]
_Fresh = Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")]
_Quick = Annotated[
    bool, typer.Option("--quick", help="A tiny encoder, alone, once: shows that everything works.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout instead of a table.")]
_RUN = Path("runs/bench")


@app.command()
def device(
    model: _Model = None,
    out: _Out = _RUN,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only this: environment, start, learn, step or onboard; may be given repeatedly."),
    ] = None,
    skip_env: Annotated[
        bool, typer.Option("--skip-env", help="Do not make a device's environment to count its bytes.")
    ] = False,
    rival_env: _RivalEnv = None,
    alone: _Alone = False,
    threads: _Threads = "1,2",
    repetitions: _Repetitions = 5,
    fresh: _Fresh = False,
    quick: _Quick = False,
    as_json: _Json = False,
) -> None:
    """Measure one owner's device: installed bytes, start, memory, learning, onboarding.

    The same work is done by torch and transformers, in an environment that this command makes, and both sides
    must give the same answers before any time is told. What was measured is kept: a stopped run goes on.

    For instance: umbel bench device

    Or: umbel bench device --model minilm --only step --threads 1
    """
    skip = ("environment",) if skip_env or quick else ()
    _bench("device", model, out, only, skip, rival_env, alone, threads, repetitions, fresh, quick, as_json)


@app.command()
def serving(
    model: _Model = None,
    out: _Out = _RUN,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only this: latency, personalization, owners or memory; may be given repeatedly."),
    ] = None,
    rival_env: _RivalEnv = None,
    alone: _Alone = False,
    threads: _Threads = "1,2",
    repetitions: _Repetitions = 5,
    fresh: _Fresh = False,
    quick: _Quick = False,
    as_json: _Json = False,
) -> None:
    """Measure a process that answers one owner or many: latency, what a profile costs, mixed batches, memory.

    For instance: umbel bench serving

    Or: umbel bench serving --model minilm --only owners
    """
    skip = ("personalization",) if quick else ()
    _bench("serving", model, out, only, skip, rival_env, alone, threads, repetitions, fresh, quick, as_json)


@app.command()
def simulation(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="An encoder: small, minilm or tiny; may be given repeatedly; by default the first two.",
        ),
    ] = None,
    out: _Out = _RUN,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Rounds of this method: plora or headbias; may be given repeatedly."),
    ] = None,
    rival_env: Annotated[
        Path | None,
        typer.Option(help="An environment that has torch, transformers and pfl; one is made otherwise."),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Leave pfl-research out.")] = False,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: torch runs devices' graphs there, in bfloat16.")
    ] = "cpu",
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads or processes of each side.")] = 2,
    fresh: _Fresh = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A tiny encoder and few people, pfl-research only with --rival-env."),
    ] = False,
    as_json: _Json = False,
) -> None:
    """Measure simulated rounds: the cohort beside Flower's engine, pfl-research, the serial one, torch alone.

    All do the same rounds with the same seed, and must reach the same tensors before any time is told.
    pfl-research runs in an environment of its own, which this command makes. What was measured is kept: a
    stopped run goes on.

    For instance: umbel bench simulation --model small

    Or: umbel bench simulation --method plora --alone

    Or, on a GPU, beside Flower's engine with processes that share it: umbel bench simulation --model minilm
    --method plora --device cuda
    """
    from umbel.simulations.bench.encoders import MINILM, SMALL, TINY
    from umbel.simulations.bench.sides import Settings

    _check_device(device)
    models = tuple(model or ((TINY,) if quick else (SMALL, MINILM)))
    settings = Settings(models, (threads,), 1, quick, device)
    alone = alone or device != "cpu" or (quick and rival_env is None)
    more = {"rival_env": rival_env, "alone": alone, "only": method or ()}
    _run("simulation", out, settings, as_json, fresh=fresh, **more)


@app.command()
def population(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="An encoder: tiny or small; may be given repeatedly; by default both."
        ),
    ] = None,
    out: _Out = _RUN,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of the engine.")] = 2,
    repetitions: Annotated[
        int, typer.Option(min=1, max=100, help="Processes for each size, and as many that forget.")
    ] = 5,
    fresh: _Fresh = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny encoder and few people: shows that everything works.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Measure rounds of 100 people among 1,000, 10,000, 100,000 and 1,000,000 registered ones.

    Seconds of a round and peak memory must stay within 10 % of those among 1,000. The people are generated,
    in 330 MB of disk for a million, and kept in the work folder. Every size runs in fresh processes, which
    do a round each in turn; before any time is told, the serial engine must reach the same tensors. A row
    says how many were asked before: among few people many soon are, and cost less. Rounds that forget are
    measured, too.

    For instance: umbel bench population --model small
    """
    from umbel.simulations.bench.encoders import SMALL, TINY
    from umbel.simulations.bench.sides import Settings

    settings = Settings(tuple(model or ((TINY,) if quick else (TINY, SMALL))), (threads,), repetitions, quick)
    _run("population", out, settings, as_json, alone=True, fresh=fresh)


@app.command()
def training(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="An encoder: minilm, bert-base, small or tiny; may be given repeatedly; by default minilm.",
        ),
    ] = None,
    out: _Out = _RUN,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Of plora, xpeft, lopa, pha and loratrf, only this; may be given repeatedly."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of both sides.")] = 2,
    repetitions: _Repetitions = 5,
    fresh: _Fresh = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny encoder, once: shows that everything works.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Measure a training step of each method beside plain LoRA's, and beside the machine's ceilings.

    Loss and gradients of each side are compared with an eager float32 twin's before any time is told. On a
    GPU steps are in bfloat16, and 40 % of the measured ceiling of matrix products is asked for.

    For instance: umbel bench training --model minilm

    Or, on a GPU: umbel bench training --model bert-base --device cuda
    """
    from umbel.simulations.bench.encoders import MINILM, TINY
    from umbel.simulations.bench.sides import Settings

    _check_device(device)
    models = tuple(model or ((TINY,) if quick else (MINILM,)))
    settings = Settings(models, (threads,), 1 if quick else repetitions, quick, device)
    _run("training", out, settings, as_json, alone=True, fresh=fresh, only=method or ())


@app.command()
def page(
    run: Annotated[Path, typer.Argument(metavar="FOLDER", help="The work folder of the benchmarks.")] = _RUN,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the page and its figures.")] = Path(
        "docs"
    ),
    accuracy: Annotated[
        Path | None,
        typer.Option(help='What 8 bits cost: {"DATA SET": {"float32": 0.64, "int8": 0.639}}, as JSON.'),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write performance.md from what was measured, with its figures beside it.

    For instance: umbel bench page runs/bench --out docs
    """
    from umbel.simulations.bench.page import write_page
    from umbel.simulations.progress import told_written

    typer.echo(told_written(write_page(run, out, accuracy), as_json))


def _check_device(device: str) -> None:
    """Refuses a device that is not there, before anything is made."""
    from umbel.shared.errors import ConfigError

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"there is no device '{device[:40]}'", hint="Choose cpu or cuda.")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(
                "torch sees no GPU", hint="Leave --device out, or run this on a machine with one."
            )


def _bench(
    command: str,
    models: list[str] | None,
    out: Path,
    only: list[str] | None,
    skip: tuple[str, ...],
    rival_env: Path | None,
    alone: bool,
    threads: str,
    repetitions: int,
    fresh: bool,
    quick: bool,
    as_json: bool,
) -> None:
    from umbel.simulations.bench.encoders import BASE, MINILM, TINY
    from umbel.simulations.bench.sides import Settings

    usual = (TINY,) if quick else (MINILM, BASE)
    settings = Settings(
        models=tuple(models or usual),
        threads=(1,) if quick else _counts(threads),
        repetitions=1 if quick else repetitions,
        quick=quick,
    )
    more = {"rival_env": rival_env, "alone": alone or quick, "only": only or (), "skip": skip}
    _run(command, out, settings, as_json, fresh=fresh, **more)


def _run(command: str, out: Path, settings: Settings, as_json: bool, **more: Any) -> None:
    from umbel.simulations.bench.benches import Request, run_bench
    from umbel.simulations.bench.rows import rendered
    from umbel.simulations.progress import Progress

    request = Request(command=command, folder=out, settings=settings, **more)
    found = run_bench(request, Progress(quiet=as_json))
    if as_json:
        typer.echo(rendered(found))
        return
    _show(found)
    typer.echo(f"Measured in {found.seconds:.0f} s; every figure is in {out / command / 'result.json'}.")


def _show(found: Measured) -> None:
    from rich.console import Console
    from rich.measure import Measurement

    from umbel.simulations.bench.terminal import terminal_table

    console, table = Console(width=_WIDE), terminal_table(found)
    # As wide as its figures want: a narrow terminal wraps the lines, which costs no column.
    console.print(table, width=Measurement.get(console, console.options, table).maximum)


def _counts(text: str) -> tuple[int, ...]:
    from umbel.shared.errors import ConfigError

    parts = [part.strip() for part in text.split(",")]
    wrong = [
        part for part in parts if not (part.isascii() and part.isdecimal() and 1 <= int(part[:4]) <= 256)
    ]
    if wrong:
        raise ConfigError(
            "--threads cannot be read", [f"'{part}' is not a count" for part in wrong], "Write: --threads 1,2"
        )
    return tuple(sorted({int(part) for part in parts}))
