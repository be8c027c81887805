"""Runs a comparison cell by cell, in one process or in several; a cell that is finished is not run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from umbel.coordinator.backbone import load_backbone
from umbel.coordinator.config import read_toml, validated
from umbel.coordinator.train import arithmetic
from umbel.shared.errors import ConfigError
from umbel.shared.files import refuse_taken, sole_use
from umbel.simulations.comparison.config import ComparisonConfig
from umbel.simulations.comparison.measuring import measured_cell
from umbel.simulations.comparison.place import Place, settings_of
from umbel.simulations.comparison.results import (
    Cell,
    Comparison,
    ComparisonError,
    cell_name,
    read_cell,
    read_comparison,
    write_cell,
    write_comparison,
)
from umbel.simulations.comparison.rivals import REGISTRY
from umbel.simulations.comparison.workers import run_apart
from umbel.simulations.data.importers import import_data
from umbel.simulations.experiment import CONFIG
from umbel.simulations.progress import Progress
from umbel.simulations.simulate import machine

RESULT = "result.json"


@final
@dataclass(frozen=True, slots=True)
class _Run:
    """What every process of a run has to know.

    Attributes:
        config: What is compared.
        contestants: Who takes part.
        out: The run's folder.
        folder: Folder of the public data sets.
        threads: Torch's threads in each process.
        restart: Run finished cells again.
    """

    config: ComparisonConfig
    contestants: tuple[str, ...]
    out: Path
    folder: Path
    threads: int
    restart: bool


def compare(
    config: ComparisonConfig,
    out: Path,
    folder: Path | None,
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    threads: int = 2,
    workers: int = 1,
    restart: bool = False,
    taken: Path | None = None,
    progress: Progress,
) -> Comparison:
    """Runs what is missing of a comparison, and writes all cells as result.json.

    Args:
        config: What is compared.
        out: The run's folder; finished cells lie in its folder `cells`.
        folder: Folder of the public data sets; those that are not there are left out.
        only: Names of data sets and contestants to which the run is limited; empty for all.
        seeds: Only these; empty for all.
        threads: Torch's threads in each process.
        workers: Processes; each takes a data set under a seed at a time.
        restart: Run finished cells again.
        taken: result.json of an earlier run, whose cells need not be run again where nothing has changed that
            they depend on.
        progress: Shows people how it goes.

    Raises:
        BusyError: Another process is at work in `out`.
        ComparisonError: A worker was stopped from outside, or `taken` is no result.
        ConfigError: A name is not known, or no data set is there.
    """
    names, numbers, contestants = _chosen(config, folder, only, seeds, progress)
    _check_data(config, folder or Path(), names)
    run = _Run(config, tuple(contestants), out, folder or Path(), threads, restart)
    places = [(name, seed) for seed in numbers for name in names]  # a first seed of everything comes first
    earlier = read_comparison(taken).cells if taken is not None else ()
    refuse_taken(out, own="cells")
    with sole_use(out):
        _take(earlier, config, out)
        jobs = [(run, *place, f"{n}/{len(places)}") for n, place in enumerate(places, 1)]
        if min(workers, len(places)) > 1:
            quiet = [(*job, progress.console.quiet) for job in jobs]
            examples = run_apart(_measure_apart, quiet, min(workers, len(places)))
        else:
            examples = [_measure(*job, progress) for job in jobs]
        found = Comparison(
            schema="umbel.comparison/1",
            config=config.model_dump(mode="json"),
            machine=machine(threads),
            cells=tuple(finished_cells(config, out, dict(zip(places, examples, strict=True)), progress)),
        )
        write_comparison(out / RESULT, found)
    return found


def finished_cells(
    config: ComparisonConfig, out: Path, examples: Mapping[tuple[str, int], str], progress: Progress
) -> list[Cell]:
    """Returns the cells that are there and would come out the same, in the configuration's order.

    Those that cannot be read, or were run with another configuration, other weights or other examples, are
    told of and left out: they are run again when they are asked for.

    Args:
        config: What is compared.
        out: The run's folder.
        examples: What the cells of a data set and seed depend on, as far as it is known (`Place.examples`).
        progress: Tells people.
    """
    found, damaged, stale = [], [], 0
    for name in config.data:
        for seed in config.seeds:
            for contestant in config.on(name):
                path = out / "cells" / cell_name(name, seed, contestant)
                if not path.is_file():
                    continue
                cell = _readable(path)
                if cell is None:
                    damaged.append(path.name)
                    continue
                fits = (cell.data, cell.seed, cell.contestant) == (name, seed, contestant)
                fits = fits and _fits(cell, config)
                if fits and cell.examples == examples.get((name, seed), cell.examples):
                    found.append(cell)
                else:
                    stale += 1
    for path_name in damaged:
        progress.say(f"left out: cells/{path_name} cannot be read; run it again")
    if stale:
        progress.say(f"left out: {stale} cells of another configuration, model or data; run them again")
    return found


def read_comparison_config(folder: Path) -> ComparisonConfig:
    """Reads the configuration of a comparison.

    Raises:
        ConfigError: Keys are unknown or values out of range: all are listed.
    """
    path = folder / CONFIG
    return validated(ComparisonConfig, read_toml(path), str(path))


def _take(cells: Sequence[Cell], config: ComparisonConfig, out: Path) -> None:
    """Puts an earlier run's cells where none lie that fit; those that do not fit are run again."""
    for cell in cells:
        path = out / "cells" / cell_name(cell.data, cell.seed, cell.contestant)
        here = _readable(path)
        if here is None or (_fits(cell, config) and not _fits(here, config)):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_cell(path, cell)


def _fits(cell: Cell, config: ComparisonConfig) -> bool:
    """Says whether a cell is of this configuration; whether its data and weights are, a place must say."""
    known = cell.data in config.data and cell.contestant in config.on(cell.data)
    return known and cell.settings == settings_of(config, cell.data, cell.seed, cell.contestant)


def _readable(path: Path) -> Cell | None:
    """Returns a cell; None where there is none that can be read."""
    try:
        return read_cell(path) if path.is_file() else None
    except ComparisonError:
        return None


def _measure_apart(run: _Run, name: str, seed: int, number: str, quiet: bool) -> str:
    return _measure(run, name, seed, number, Progress(quiet=quiet, lines=True))


def _measure(run: _Run, name: str, seed: int, number: str, progress: Progress) -> str:
    """Runs what is missing of one data set under one seed; returns what its cells depend on."""
    backbone = load_backbone(run.config.backbone.name, sha256=run.config.backbone.sha256)
    with arithmetic(run.threads):
        place = Place(name, seed, run.config, run.folder, run.out, backbone, restart=run.restart)
        here = [contestant for contestant in run.config.on(name) if contestant in run.contestants]
        for at, contestant in enumerate(here, 1):
            path = run.out / "cells" / cell_name(name, seed, contestant)
            if not run.restart and _is_finished(path, place, contestant):
                continue
            words = f"[{number}] {name}, seed {seed}: {contestant} ({at}/{len(here)})"
            cell = measured_cell(place, contestant, words, progress)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_cell(path, cell)
        return place.examples


def _is_finished(path: Path, place: Place, contestant: str) -> bool:
    """Says whether a cell is there, is what its name says, and would come out the same."""
    cell = _readable(path)
    if cell is None or (cell.data, cell.seed, cell.contestant) != (place.name, place.seed, contestant):
        return False
    ks = {"0"} if not cell.learned else {str(k) for k in place.section.k}
    return cell.identity == place.identity(contestant, cell.precision) and ks <= set(cell.k)


def _check_data(config: ComparisonConfig, folder: Path, names: Sequence[str]) -> None:
    """Finds what is wrong with data sets and encoder before the first of them is measured.

    Raises:
        ConfigError: The encoder has fewer layers or positions than are asked for: all problems are listed.
        DataError: A folder cannot be read as its data set.
    """
    shape = load_backbone(config.backbone.name, sha256=config.backbone.sha256).shape
    problems = []
    for name in names:
        section = config.data[name]
        if section.personal_layers > shape.layers:
            problems.append(
                f"data.{name}.personal_layers is {section.personal_layers}, it has {shape.layers} layers"
            )
        if section.max_tokens > shape.max_tokens:
            problems.append(f"data.{name}.max_tokens is {section.max_tokens}, it reads {shape.max_tokens}")
        if section.source != "community":
            import_data(section.source, folder / section.folder)
    if problems:
        raise ConfigError("the encoder does not fit the comparison", problems, "Give smaller numbers.")


def _chosen(
    config: ComparisonConfig,
    folder: Path | None,
    only: Sequence[str],
    seeds: Sequence[int],
    progress: Progress,
) -> tuple[list[str], list[int], list[str]]:
    everyone = (*config.rivals, *config.contestants)
    strangers = [name for name in config.rivals if name not in REGISTRY]
    if strangers:
        hint = f"Rivals are: {', '.join(REGISTRY)}."
        raise ConfigError(
            "the comparison has no such rivals", [f"there is no '{n}'" for n in strangers], hint
        )
    problems = [f"there is no '{name}'" for name in only if name not in (*config.data, *everyone)]
    problems += [f"there is no seed {seed}" for seed in seeds if seed not in config.seeds]
    if problems:
        hint = f"Data sets: {', '.join(config.data)}. Contestants: {', '.join(everyone)}. "
        raise ConfigError(
            "the comparison has no such part", problems, hint + f"Seeds: {', '.join(map(str, config.seeds))}."
        )
    wanted = [name for name in config.data if name in only] or list(config.data)
    there = [name for name in wanted if _is_there(config, name, folder)]
    left = [f"{name}: no folder '{config.data[name].folder}'" for name in wanted if name not in there]
    public = [name for name in wanted if config.data[name].source != "community"]
    if not there or (folder is not None and public and not set(public) & set(there)):
        raise ConfigError(
            "none of the data sets is there", left, "Give --data FOLDER, which holds the data sets' folders."
        )
    for words in left:
        progress.say(f"left out: {words} in --data")
    return (
        there,
        [seed for seed in config.seeds if not seeds or seed in seeds],
        [name for name in everyone if name in only] or list(everyone),
    )


def _is_there(config: ComparisonConfig, name: str, folder: Path | None) -> bool:
    section = config.data[name]
    return section.source == "community" or (folder is not None and (folder / section.folder).is_dir())
