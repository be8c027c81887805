"""`umbel rounds`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.simulations.options import Compute, EngineName

if TYPE_CHECKING:
    from umbel.simulations.rounds.running import Ran

app = typer.Typer(no_args_is_help=True, help="Run federated rounds among people of your own.")


@app.command(no_args_is_help=True)
def rounds(
    release: Annotated[
        Path,
        typer.Option(
            "--release", "-r", help="The release's folder, as 'umbel coordinator publish' wrote it."
        ),
    ],
    people: Annotated[
        Path,
        typer.Option(
            "--people", "-p", help="Folder of a table of people, as 'umbel data pack' wrote it, or of homes."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of what the rounds reach; one run in each.")
    ] = Path("runs/rounds"),
    count: Annotated[
        int | None, typer.Option("--rounds", min=1, help="How many rounds in all; 3 unless --config says.")
    ] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="How many people take part in a round; 8 unless --config says.")
    ] = None,
    evaluate: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="How many people's held-out examples are predicted after each round; none by default.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness; 0 by default.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="TOML file with seed and a section rounds, as of an experiment; options come first.",
        ),
    ] = None,
    engine: EngineName = None,
    workers: Annotated[
        int,
        typer.Option(min=1, max=256, help="How many threads or processes run the devices."),
    ] = 2,
    compute: Compute = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of a Ray cluster that is there already, or auto for the one started here; with "
            "--engine flower.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout instead of words.")
    ] = False,
) -> None:
    """Run federated rounds with a release of your own, among people of your own.

    In each round some people's devices, all on this machine, learn their profile and improve what everybody
    shares; what is reached is kept after every round. Give the same command again and it goes on where it
    was stopped, or, with more --rounds, further. A round takes the time and memory of those who take part,
    however many there are.

    What --config may hold in its section rounds: local_steps, local_rate, clip, server_rate, rule, secure,
    noise_multiplier and more, as for 'umbel simulate': docs/experiments.md.

    For instance: umbel data pack people.parquet --heldout-share 0.2 --out people

    Then: umbel rounds --release release --people people --rounds 10 --clients 100 --evaluate 50 --out rounds

    Then, a release of what they reached: umbel coordinator publish-rounds rounds --release release --out next
    """
    from umbel.simulations.progress import Progress
    from umbel.simulations.rounds.running import Where, run_own

    progress = Progress(quiet=as_json)
    progress.say(f"umbel rounds in {out}")
    changes = _changes(seed, rounds=count, clients=clients, evaluate_clients=evaluate, engine=engine)
    where = Where(release, people, out, workers, compute, ray_address)
    ran = run_own(where, config, changes, progress)
    typer.echo(json.dumps(ran.as_json(), indent=2) if as_json else _words(ran, release))


def _changes(seed: int | None, **given: Any) -> dict[str, dict[str, Any]]:
    """Returns section -> key -> value of what was given."""
    top = {} if seed is None else {"seed": seed}
    return {"": top, "rounds": {name: value for name, value in given.items() if value is not None}}


def _words(ran: Ran, release: Path) -> str:
    """Returns where it lies what was reached, and how it becomes a release."""
    if ran.tensors is None:
        return "No round began: the privacy budget pays for none."
    done = len(ran.rounds)
    counted = f"{done} rounds are" if done > 1 else "1 round is"
    now = f", {done - ran.before} of them now" if ran.before else ""
    if ran.before == done:
        now = " since an earlier call; more --rounds would go on"
    lines = [f"{counted} done{now}. {ran.out / 'rounds.json'} has a line for each."]
    if not any(record.clients for record in ran.rounds):
        return "\n".join([*lines, "Nobody's change could be used, so nothing has moved: its notes say why."])
    lines.append(f"The shared tensors after them are in {ran.tensors}.")
    publish = f"umbel coordinator publish-rounds {ran.out} --release {release} --out NEXT"
    return "\n".join([*lines, f"Make a release of them: {publish}"])
