"""`umbel simulate` and `umbel evaluate`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.simulations.options import Compute, EngineName

if TYPE_CHECKING:
    from umbel.simulations.comparison.results import Comparison
    from umbel.simulations.results import Result

app = typer.Typer(no_args_is_help=True, help="Run experiments, and measure releases.")

_TABLE_WIDTH = 80
_WIDE_TABLE = 1000  # wider than any table
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout instead of a table.")]
_Threads = Annotated[int, typer.Option(min=1, max=256, help="Threads for training and measuring.")]


@app.command()
def simulate(
    experiment: Annotated[
        str, typer.Argument(metavar="EXPERIMENT", help="Name or folder of an experiment.")
    ] = "demo",
    data: Annotated[
        Path | None, typer.Option(help="Folder or file of the examples, where the experiment needs one.")
    ] = None,
    users: Annotated[int | None, typer.Option(min=4, help="How many people take part.")] = None,
    rounds: Annotated[int | None, typer.Option(min=0, help="How many federated rounds.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness.")] = None,
    engine: EngineName = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="How the devices' changes become one: mean, or one that liars cannot steer: median, "
            "trimmed-mean, krum, multi-krum."
        ),
    ] = None,
    noise_multiplier: Annotated[
        float | None,
        typer.Option(help="Noise on a round's sum over the clip, under a privacy budget; 0 for none."),
    ] = None,
    epsilon_budget: Annotated[
        float | None, typer.Option(help="With noise: rounds end before they cost more than this epsilon.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder; by default runs/EXPERIMENT.")
    ] = None,
    threads: _Threads = 2,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=256,
            help="Processes that devices run in (flower engine), or that measure a comparison's data sets.",
        ),
    ] = 1,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of a Ray cluster that is there already, or auto for the one started here: the "
            "flower engine runs devices on all its machines, in a process for each core.",
        ),
    ] = None,
    compute: Compute = None,
    training: Annotated[
        Path | None,
        typer.Option(
            help="A finished training of the same people and configuration to take instead of training, as "
            "in runs/demo/training; the section recipe may differ."
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin again, whatever the run's folder holds.")
    ] = False,
    take: Annotated[
        Path | None,
        typer.Option(
            help="Of a comparison: result.json of an earlier run, whose cells are not run again unless "
            "something has changed that they depend on."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Of a comparison: only this data set or contestant; may be given repeatedly."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Run an experiment: data, training, release, federated rounds, people never met, report.

    EXPERIMENT is the name of one that comes with umbel (demo, movielens, methods, onboarding,
    federated-against-central) or a folder with a config.toml. A stopped run goes on where it was when the
    same command is given again.

    For instance: umbel simulate demo

    Or, with the devices' graphs on a GPU: umbel simulate demo --compute torch:cuda

    Or, on real film ratings: umbel simulate movielens --data ml-latest-small

    Or, every method against what one would try instead: umbel simulate methods --data FOLDER

    Or, a new person's first minute: umbel simulate onboarding --data FOLDER

    Or, rounds against training the same on pooled examples: umbel simulate federated-against-central --data
    ml-latest-small
    """
    from umbel.simulations.against_central.config import is_against_central
    from umbel.simulations.experiment import experiment_folder, read_experiment
    from umbel.simulations.progress import Progress
    from umbel.simulations.simulate import RESULT
    from umbel.simulations.simulate import simulate as run

    folder = experiment_folder(experiment)
    if is_comparison(folder):
        refused = {
            "--users": users, "--rounds": rounds, "--engine": engine, "--rule": rule,
            "--noise-multiplier": noise_multiplier, "--epsilon-budget": epsilon_budget,
            "--training": training, "--ray-address": ray_address, "--compute": compute,
        }  # fmt: skip
        _refuse(refused, "this experiment is a comparison of methods")
        _compare(folder, data, out, seed, only or [], threads, workers, restart, take, as_json)
        return
    _refuse({"--only": only, "--take": take}, "this experiment is not a comparison of methods")
    if is_against_central(folder):
        refused = {
            "--users": users, "--rounds": rounds, "--engine": engine, "--rule": rule,
            "--noise-multiplier": noise_multiplier, "--epsilon-budget": epsilon_budget,
            "--training": training, "--ray-address": ray_address, "--compute": compute,
        }  # fmt: skip
        _refuse(refused, "this experiment holds rounds against central training")
        _against_central(folder, data, out, seed, threads, restart, as_json)
        return
    changes = _changes(
        data=data,
        users=users,
        rounds=rounds,
        seed=seed,
        engine=engine,
        rule=rule,
        noise_multiplier=noise_multiplier,
        epsilon_budget=epsilon_budget,
    )
    config = read_experiment(folder, changes)
    target = out or Path("runs") / folder.name
    progress = Progress(quiet=as_json)
    fresh = restart or not (target / RESULT).is_file()
    progress.console.print(
        f"[bold]umbel simulate {folder.name}[/bold]  [dim]in {target}[/dim]", highlight=False
    )
    begun = time.perf_counter()
    result = run(
        folder.name,
        config,
        target,
        threads=threads,
        workers=workers,
        ray_address=ray_address,
        compute=compute,
        restart=restart,
        training=training,
        progress=progress,
    )
    _show(result, target, as_json)
    if not as_json:
        _farewell(target, fresh, time.perf_counter() - begun)


def is_comparison(folder: Path) -> bool:
    """Says whether an experiment's configuration is that of a comparison."""
    from umbel.coordinator.config import read_toml
    from umbel.simulations.experiment import CONFIG

    return "contestants" in read_toml(folder / CONFIG)


def _against_central(
    folder: Path,
    data: Path | None,
    out: Path | None,
    seed: int | None,
    threads: int,
    restart: bool,
    as_json: bool,
) -> None:
    from umbel.simulations.against_central.config import read_against_central
    from umbel.simulations.against_central.page import headline, write_page
    from umbel.simulations.against_central.run import RESULT, run_against_central
    from umbel.simulations.progress import Progress

    config = read_against_central(folder, data, seed)
    target = out or Path("runs") / folder.name
    progress = Progress(quiet=as_json)
    progress.say(f"umbel simulate {folder.name} in {target}")
    found = run_against_central(config, target, threads=threads, restart=restart, progress=progress)
    written = write_page(found, target)[0]
    if as_json:
        typer.echo((target / RESULT).read_text(encoding="utf-8"), nl=False)
        return
    typer.echo(headline(found).replace("\u00a0", " "))
    typer.echo(f"Look at {written}; every figure is in {target / RESULT}.")


def _refuse(given: dict[str, Any], why: str) -> None:
    from umbel.shared.errors import ConfigError

    wrong = [f"{name} does not apply" for name, value in given.items() if value is not None and value != []]
    if wrong:
        raise ConfigError(why, wrong, "Leave them out.")


def _compare(
    folder: Path,
    data: Path | None,
    out: Path | None,
    seed: int | None,
    only: list[str],
    threads: int,
    workers: int,
    restart: bool,
    take: Path | None,
    as_json: bool,
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.measure import Measurement

    from umbel.simulations.comparison.cells import RESULT, compare, read_comparison_config
    from umbel.simulations.comparison.page import write_page
    from umbel.simulations.comparison.terminal import terminal_tables
    from umbel.simulations.progress import Progress

    config = read_comparison_config(folder)
    target = out or Path("runs") / folder.name
    progress = Progress(quiet=as_json)
    progress.console.print(
        f"[bold]umbel simulate {escape(folder.name)}[/bold]  [dim]in {escape(str(target))}[/dim]",
        highlight=False,
    )
    begun = time.perf_counter()
    seeds = () if seed is None else (seed,)
    found = compare(
        config,
        target,
        data,
        only=only,
        seeds=seeds,
        threads=threads,
        workers=workers,
        restart=restart,
        taken=take,
        progress=progress,
    )
    page = write_page(found, target, _regenerating(found, target / RESULT))[0]
    if as_json:
        typer.echo((target / RESULT).read_text(encoding="utf-8"), nl=False)
        return
    console = Console(width=_WIDE_TABLE)
    for table in terminal_tables(found):
        # As wide as its figures want: a narrow terminal wraps the lines, which costs no column.
        console.print(table, width=Measurement.get(console, console.options, table).maximum)
    seconds = time.perf_counter() - begun
    typer.echo(f"Done in {seconds:.0f} s. Look at {page}; every figure is in {target / RESULT}.")


@app.command()
def results(
    result: Annotated[
        Path,
        typer.Argument(
            metavar="RESULT", help="result.json of a comparison, or of federated-against-central."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the page and its figures.")] = Path(
        "."
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write the results page of a comparison from its JSON, with its figures beside it.

    For instance: umbel results runs/methods/result.json --out docs/results
    """
    from umbel.simulations.comparison.page import write_page
    from umbel.simulations.comparison.results import read_comparison
    from umbel.simulations.progress import told_written

    if _is_against_central(result):
        from umbel.simulations.against_central.page import write_page as write_against_central
        from umbel.simulations.against_central.results import AgainstCentral, read

        written = write_against_central(read(AgainstCentral, result), out)
    else:
        found = read_comparison(result)
        written = write_page(found, out, _regenerating(found, result))
    typer.echo(told_written(written, as_json))


def _is_against_central(result: Path) -> bool:
    """Says whether a file claims to be a result of this kind."""
    from umbel.shared.checks import parsed_json
    from umbel.simulations.against_central.results import SCHEMA

    try:
        row = parsed_json(result.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and row.get("schema") == SCHEMA


def _regenerating(found: Comparison, result: Path) -> str | None:
    """Returns what runs what is missing and writes the page; None for a comparison that comes with umbel."""
    from umbel.simulations.comparison.cells import read_comparison_config
    from umbel.simulations.comparison.studies import study_of
    from umbel.simulations.experiment import experiment_folder

    shipped = read_comparison_config(experiment_folder(study_of(found).name))
    if shipped.model_dump(mode="json") == found.config:
        return None
    return f"umbel simulate EXPERIMENT --data DATA --out {result.parent}\numbel results {result} --out FOLDER"


def _changes(**given: Any) -> dict[str, dict[str, Any]]:
    places = {
        "data": ("data", "path"),
        "users": ("data", "users"),
        "rounds": ("rounds", "rounds"),
        "engine": ("rounds", "engine"),
        "rule": ("rounds", "rule"),
        "noise_multiplier": ("rounds", "noise_multiplier"),
        "epsilon_budget": ("rounds", "epsilon_budget"),
        "seed": ("", "seed"),
    }
    changes: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        if value is not None:
            section, key = places[name]
            changes.setdefault(section, {})[key] = str(value) if isinstance(value, Path) else value
    return changes


def _show(result: Result, folder: Path, as_json: bool) -> None:
    from umbel.simulations.simulate import RESULT

    if as_json:
        typer.echo((folder / RESULT).read_text(encoding="utf-8"), nl=False)
        return
    _print_table(result)


def _print_table(result: Result) -> None:
    from rich.console import Console

    from umbel.simulations.report import terminal_table

    console = Console()
    # A narrow terminal wraps the lines, which costs no column.
    console.print(terminal_table(result), width=max(console.width, _TABLE_WIDTH), crop=False)


def _farewell(folder: Path, fresh: bool, seconds: float) -> None:
    from umbel.simulations.simulate import REPORT, RESULT

    if fresh:
        typer.echo(
            f"Done in {seconds:.0f} s. Look at {folder / REPORT}; every figure is in {folder / RESULT}."
        )
    else:
        typer.echo(
            f"This run was finished before; look at {folder / REPORT}. Pass --restart to run it again."
        )


@app.command()
def evaluate(
    release: Annotated[Path, typer.Option("--release", "-r", help="Folder of the release.")],
    data: Annotated[Path, typer.Option("--data", "-d", help="File of examples: .jsonl, .csv or .parquet.")],
    k: Annotated[
        str, typer.Option(help="Counts of own examples to learn from, with commas.")
    ] = "0,1,2,4,8,16,32",
    query: Annotated[int, typer.Option(min=1, help="Examples to predict per person, at most.")] = 40,
    seed: Annotated[
        int, typer.Option(help="Seed of the split into examples to learn from and to predict.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for result.json and report.html.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help="How texts are read and learned from: float32, or int8 as on a device."),
    ] = "float32",
    threads: _Threads = 2,
    as_json: _Json = False,
) -> None:
    """Measure a release on a file of your own people, all of them new to it.

    Every person's examples are split into some to learn from and some to predict; profiles are learned by the
    device's own code, from k examples.

    For instance: umbel evaluate --release runs/demo/release --data people.jsonl --k 0,4,16
    """
    from umbel.simulations.measure import measure
    from umbel.simulations.progress import Progress

    result, folder = measure(
        release,
        data,
        _ks(k),
        query=query,
        seed=seed,
        out=out,
        threads=threads,
        precision=precision,
        progress=Progress(quiet=as_json),
    )
    if as_json:
        from umbel.simulations.results import rendered

        typer.echo(rendered(result))
        return
    _print_table(result)
    if folder is not None:
        typer.echo(f"Look at {folder / 'report.html'}; every figure is in {folder / 'result.json'}.")


def _ks(text: str) -> tuple[int, ...]:
    from umbel.shared.errors import ConfigError

    parts = [part.strip() for part in text.split(",")]
    # Length first: int() refuses thousands of digits in its own words.
    wrong = [p for p in parts if not (p.isascii() and p.isdecimal()) or len(p) > 9 or int(p) > 100_000]
    if wrong:
        raise ConfigError(
            "--k cannot be read", [f"'{part}' is not a count" for part in wrong], "Write it like: --k 0,4,16"
        )
    return tuple(sorted({int(part) for part in parts}))
