"""docs/performance.md: what was measured, beside what must hold, with its figures as SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from umbel.shared.checks import number_problems, parsed_json, shown
from umbel.shared.files import atomic_write
from umbel.simulations.bench import plots
from umbel.simulations.bench.encoders import TITLES
from umbel.simulations.bench.releases import RECIPE
from umbel.simulations.bench.rows import RESULT, BenchError, Measured, Row, read_measured
from umbel.simulations.bench.terminal import bound, figure, ratio, span
from umbel.simulations.report.markdown import prose, table
from umbel.simulations.report.words import NBSP, percent, points

PAGE = "performance.md"
_Figure = tuple[Callable[[Sequence[Row]], str], Callable[[Row], bool]]
_FIGURES: Mapping[str, _Figure] = {
    "performance-ratios.svg": (plots.advantages, lambda row: row.bound is not None),
    "performance-owners.svg": (plots.many_owners, lambda row: row.part == "many owners"),
    "performance-rounds.svg": (plots.users_per_second, lambda row: row.users > 0),
}
_COMMANDS = ("device", "serving", "simulation", "population", "training")
_ASKED = "\n".join([*(f"umbel bench {name}" for name in _COMMANDS), "umbel bench page runs/bench --out docs"])
_NONE = "–"
_MOST_LOST = 0.005
_METHOD = (
    "Both sides work on the same texts with the same weights in float32, at the thread counts that "
    "are stated (those of "
    "every pool of threads). Before any time is taken, logits, the gradient of a step and learned "
    "profiles of both "
    "sides are compared; where they differ, nothing is told. Medians are shown, and ratios of "
    "medians. Both sides "
    "are measured in turns, so that a machine that slows down slows both.",
    "Whole processes are fresh ones whose files lie in memory: seconds from their start to their "
    "end, and the most "
    "memory that this very process held. What runs per step or per batch is timed in a running "
    "process after two "
    "warm-up runs; a sample is the mean over about a quarter of a second.",
    "The other side is written for speed: torch eager with sdpa attention and inference mode, "
    "weights mapped from "
    "safetensors, transformers' BertModel without its pooler, what people share merged into the "
    "weights, and, where "
    "one person is served, the person too. PEFT's adapters are the smallest that give the same "
    "answers: rank 1, "
    "with a bias. umbel computes the shared low-rank part in every run.",
    f"Learning is by the default recipe: {RECIPE.steps} steps on all examples, and a cross-validation in "
    f"{RECIPE.folds} folds, which the other side does as well. Weights of the larger encoder and of "
    f"the methods are "
    "random: they change no time. The other side computes in float32. Before a time in 8 bits is told, both "
    "sides must give the same profile, loss and gradient in float32, and umbel nearly these in 8 bits.",
    "The environment's bytes are those of files, of umbel with the device extra and all that it "
    "requires; Python, "
    "pip and setuptools are not counted. It was installed with `pip install --no-compile`, and "
    "counted after the "
    "device's commands had run once: Python keeps the bytecode of what is imported. Without "
    "`--no-compile`, pip "
    "compiles every module of every package, which takes about 40 MB more.",
)

_ROUNDS = (
    "A round is everything from choosing who takes part to the moved tensors. All sides do the same "
    "rounds: the same people, examples in the same order, the same private steps, the same shared step, "
    "clip and mean; before a time is told, all must have reached umbel's tensors to 1e-5, and to a "
    "hundredth of the way that each tensor has gone. Each side runs in fresh processes, people's homes "
    "are as new, and the first round, which warms up, is not counted. Flower's engine and pfl-research "
    "have a process of one thread for each thread of the others. Peak memory is the sum over a side's "
    "processes; Flower's is not told. pfl-research and the plain loop have all texts encoded beforehand "
    "and keep everything in memory; umbel's engines read examples from the people's homes and write "
    "their profiles there. Where texts are read once there are a hundred rounds: in the first ones most "
    "of those who are asked are asked for the first time, in most rounds hardly anybody is.",
    "By its FLOP alone: what the matrix products of a round compute (2 m k n each; no embedding, no "
    "softmax, nothing computed twice), at the speed of large float32 products, measured in the same run "
    "with the same threads, as the mean over the rounds; the ratio is the share of that ceiling that is "
    "reached. By its bytes alone: "
    "what they touch if each reads its operands from memory and writes its result there, at the "
    "measured speed of memory; small products find theirs in caches, so this is no bound. "
    "simulations/bench/roofline.py has the formulas; a test counts the same products with torch.",
)
_AMONG = (
    "Among ever more people, who takes part in a round is drawn from all who are registered. Each size runs "
    "in fresh processes. Those of all sizes do a round each in turn, so that what disturbs one disturbs all; "
    "medians are over the rounds of all of a size, without each one's first. "
    "What somebody's texts are as tokens is kept in memory for the next time that they are asked: among a "
    "thousand people many soon are, among a million nobody is. So that like is compared with like, too, "
    "rounds are run besides that forget this after each round.",
)
_NOTES = {"device": _METHOD, "serving": _METHOD, "simulation": _ROUNDS, "population": _AMONG}


def write_page(run: Path, out: Path, accuracy: Path | None = None) -> list[Path]:
    """Writes the page of what lies in a work folder, and its figures, and returns their paths.

    Args:
        run: The work folder.
        out: Where the page and its figures go.
        accuracy: A file with what 8 bits cost in accuracy; see `read_accuracy`.

    Raises:
        BenchError: Nothing was measured there, a result is damaged, or `accuracy` is no such file.
    """
    known = None if accuracy is None else read_accuracy(accuracy)
    found = [_measured(run, command) for command in _COMMANDS if (run / command / RESULT).is_file()]
    if not found:
        raise BenchError(
            f"nothing was measured in {run}",
            hint=f"Run: umbel bench {', '.join(_COMMANDS[:-1])} or {_COMMANDS[-1]}.",
        )
    rows = [row for measured in found for row in measured.rows]
    out.mkdir(parents=True, exist_ok=True)
    written = [out / PAGE]
    figures = []
    for name, (draw, shows) in _FIGURES.items():
        wanted = [row for row in rows if shows(row) and row.theirs is not None]
        if wanted:
            atomic_write(out / name, draw(wanted).encode())
            written.append(out / name)
            figures.append(name)
    atomic_write(out / PAGE, page(found, figures, known).encode())
    return written


def _measured(run: Path, command: str) -> Measured:
    """Returns what a command has measured."""
    path = run / command / RESULT
    found = read_measured(path)
    wrong = [f"command is '{shown(found.command)}', expected {command}"] if found.command != command else []
    strange = sorted({row.encoder for row in found.rows} - {"", *TITLES})
    wrong += [f"encoder '{shown(name)}' is not known" for name in strange]
    if wrong:
        raise BenchError(f"{path} cannot be shown", wrong, f"Make it again: umbel bench {command}.")
    return found


def page(
    found: Sequence[Measured],
    figures: Sequence[str] = (),
    accuracy: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Returns the page as Markdown.

    Args:
        found: What was measured.
        figures: Names of the figures beside the page.
        accuracy: Data set -> the share of right answers in float32 and in int8.
    """
    rows = [row for measured in found for row in measured.rows]
    parts = [
        "# Performance",
        prose(
            "What an owner's device costs, what one process costs that answers for many owners, beside "
            "torch, transformers and PEFT, and what simulated rounds cost, beside Flower's engine, "
            "pfl-research and a plain torch loop, on the same machine in the same run."
        ),
        *(prose(text) for text in _machines(found)),
        *(prose(note) for measured in found for note in measured.notes),
        "These commands measure what is missing and write this page:",
        f"```bash\n{_ASKED}\n```",
        *_bounds(rows),
        *(f"![{_ALT[name]}]({name})" for name in figures),
        *_accuracy(accuracy),
        *(part for measured in found for part in _all_rows(measured)),
        "## How it was measured",
        *(prose(text) for text in _notes(found)),
    ]
    return "\n\n".join(parts).replace(NBSP, " ") + "\n"


def _notes(found: Sequence[Measured]) -> list[str]:
    """Returns how what is on the page was measured, each paragraph once."""
    return list(dict.fromkeys(text for own in found for text in _NOTES.get(own.command, ())))


_ALT = {
    "performance-ratios.svg": "How many times less each bounded figure is than what it is compared with",
    "performance-owners.svg": "Milliseconds for a text of each of many owners, by every way",
    "performance-rounds.svg": "Users whose work of a round is done in a second, by every side and at most",
}
_TITLES = {
    "device": "One owner's device",
    "serving": "One process, one owner or many",
    "simulation": "Simulated rounds",
    "population": "Rounds among ever more people",
    "training": "Training",
}


def _machines(found: Sequence[Measured]) -> list[str]:
    """Says of each machine, with the libraries there, what was measured on it."""
    sections: dict[str, list[str]] = {}
    for measured in found:
        sections.setdefault(_machine(measured), []).append(_TITLES[measured.command])
    return [f"{'; '.join(titles)}: {machine}" for machine, titles in sections.items()]


def _machine(found: Measured) -> str:
    told = dict(found.machine)
    libraries = [f"{name} {told[name]}" for name in ("umbel", "onnxruntime", "numpy") if name in told]
    rival = [
        f"{name.removeprefix('rival ')} {value}" for name, value in told.items() if name.startswith("rival ")
    ]
    return (
        f"measured on {told.get('processor')} ({told.get('cores')} cores; {told.get('instructions')}), "
        f"{told.get('system')}, Python {told.get('python')}, {', '.join(libraries)}"
        + (f"; beside {', '.join(rival)}." if rival else ".")
    )


def _bounds(rows: Sequence[Row]) -> list[str]:
    """Says of each bound whether it holds, in the fewest lines."""
    bounded = [row for row in rows if row.bound is not None]
    if not bounded:
        return []
    kept = sum(row.holds is True for row in bounded)
    compared = sum(row.holds is not None for row in bounded)
    words = (
        f"Of {compared} bounds that could be compared, {kept} hold. A ratio with × says how many "
        f"times as fast, "
        "one without what share of the other's."
    )
    lines = [
        (
            row.part,
            row.setting,
            _NONE if not row.encoder else row.encoder,
            _threads(row),
            _shown(row),
            _verdict(row),
        )
        for row in bounded
    ]
    head = ("what", "setting", "encoder", "threads", "ratio", "must be")
    return ["## What must hold", prose(words), table(head, lines, right=(3, 4))]


def read_accuracy(path: Path) -> dict[str, tuple[float, float]]:
    """Reads what 8 bits cost in accuracy: an object, data set -> {"float32": share, "int8": share}.

    Raises:
        BenchError: The file is missing or is none.
    """
    try:
        row = parsed_json(path.read_bytes())
        found = {str(name): (own["float32"], own["int8"]) for name, own in row.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found = {}
    wrong = [
        name for name, shares in found.items() for share in shares if number_problems(name, share, 0.0, 1.0)
    ]
    if wrong or not found:
        expected = 'Write: {"movielens": {"float32": 0.64, "int8": 0.639}}, shares of right answers.'
        raise BenchError(f"{path} tells no accuracies", wrong, expected)
    return found


def _accuracy(accuracy: Mapping[str, tuple[float, float]] | None) -> list[str]:
    """Says what 8 bits cost in right answers, where that was measured."""
    if not accuracy:
        return []
    lines = []
    for name, (exact, small) in accuracy.items():
        lost = round(exact - small, 6)
        held = "holds" if lost <= _MOST_LOST else "does not hold"
        told = f"at most {100 * _MOST_LOST:g} points lost: **{held}**"
        lines.append((name, percent(exact), percent(small), points(small - exact), told))
    head = ("data set", "float32", "int8", "difference, points", "must be")
    return ["## Right answers in 8 bits", table(head, lines)]


def _all_rows(found: Measured) -> list[str]:
    parts = [f"## {_TITLES[found.command]}"]
    for encoder in dict.fromkeys(row.encoder for row in found.rows):
        own = [row for row in found.rows if row.encoder == encoder]
        lines = [
            (
                row.part,
                row.setting,
                _threads(row),
                _told(row, ours=True),
                _told(row, ours=False),
                _shown(row),
                row.against,
            )
            for row in own
        ]
        head = ("what", "setting", "threads", "umbel", "other", "ratio", "the other is")
        parts += [f"### {TITLES[encoder]}"] if encoder else []
        parts.append(table(head, lines, right=(2, 3, 4, 5)))
    return parts


def _told(row: Row, *, ours: bool) -> str:
    sample = row.ours if ours else row.theirs
    if sample is None:
        return _NONE
    ends = span(row, sample)
    return figure(row, sample.median) + (f" ({ends})" if ends else "")


def _threads(row: Row) -> str:
    return str(row.threads) if row.threads else _NONE


def _shown(row: Row) -> str:
    return ratio(row).replace("x", "×") or _NONE


def _verdict(row: Row) -> str:
    words, _, held = bound(row).partition(": ")
    return f"{words}: **{held}**" if held else words
