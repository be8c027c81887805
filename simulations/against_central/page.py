"""The page of a result: Markdown, with its figure beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from umbel.shared.files import atomic_write
from umbel.simulations.against_central.gains import Estimate, Gains, gains, late_gains
from umbel.simulations.against_central.plot import accuracy_by_round
from umbel.simulations.against_central.results import AgainstCentral, Seed, Tried, chosen
from umbel.simulations.report.markdown import prose, table
from umbel.simulations.report.words import NBSP, counted, duration, interval, percent, points, size

NAME = "federated-against-central"
TARGET = 0.98
_HOW = (
    "The people are divided anew under each seed. The public people's examples are what the coordinator has "
    "for its first release, the start of both sides. Central training has theirs and those of everybody with "
    "a device, in the clear, and trains by the coordinator's own steps (AdamW, everybody's private numbers "
    "jointly). Rounds have the same devices' examples, which stay there: a device learns its private "
    "numbers anew, takes its shared steps, and its clipped change leaves.",
    "Options, and where training ends, were chosen by the nll of validation people on both sides alike; "
    "nothing was trained on them. New people are measured under the release that follows, by the device's "
    "own code: k examples to learn a profile from, further ones to predict. The figure's line is what they "
    "reached on the way; nothing was chosen by it.",
    "A person's accuracy is the share of their questions that is answered right; the mean is taken over a "
    "seed's people, then over seeds. The nll is the mean negative log-likelihood of the right label; it "
    "turns on every answer, not on those near one half alone, and so tells small differences better.",
    "Intervals are 95 %, from a paired bootstrap over people, each for all the seeds that measure "
    "them: they speak of other people, not of other seeds or another training.",
)


def write_page(result: AgainstCentral, folder: Path) -> list[Path]:
    """Writes the page and its figure into a folder; equal results give equal bytes.

    Raises:
        OSError: The folder cannot be written.
    """
    texts = {f"{NAME}.md": page(result), f"{NAME}.svg": accuracy_by_round(result)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        atomic_write(folder / name, text.encode())
    return [folder / name for name in texts]


def page(result: AgainstCentral) -> str:
    """Returns the page as Markdown."""
    parts = [
        "# Rounds against central training",
        prose(headline(result)),
        f"![right answers by round]({NAME}.svg)",
        _gains_table(result),
        prose(_late(result)),
        prose(_machine(result)),
        "These commands run what is missing and write this page:",
        f"```bash\numbel simulate {NAME} --data DATA --threads 1\n"
        f"umbel results runs/{NAME}/result.json --out docs/results\n```",
        "## What leaves a device",
        table(
            ("seed", "rounds", "devices per round", "up", "down", "s per round"),
            [_traffic_row(seed) for seed in result.seeds],
        ),
        *_secure(result.seeds),
        "## Seed by seed",
        table(
            (
                "seed",
                "public",
                "devices",
                "validation",
                "new",
                "start",
                "central",
                "rounds",
                "share of the gain",
            ),
            [_seed_row(seed) for seed in result.seeds],
        ),
        "## What was tried",
        table(
            ("seed", "side", "options", "validation nll", "at", "took", "chosen"),
            [row for seed in result.seeds for row in _tried_rows(seed)],
            right=(3, 4, 5),
        ),
        "## How it was measured",
        *(prose(text) for text in _HOW),
    ]
    return "\n\n".join(parts).replace(NBSP, " ") + "\n"


def headline(result: AgainstCentral) -> str:
    """Returns what came out, in a few sentences."""
    found, nll = gains(result.seeds, "personal"), gains(result.seeds, "nll")
    k, data = result.config["evaluation"]["k"], result.config["data"]["source"]
    people = len({user for seed in result.seeds for user in seed.people})
    reached = "reached" if found.share.value >= TARGET else "not reached"
    return (
        f"On {data}, {people} new people, k = {k}, {counted(len(result.seeds), 'seed', 'seeds')}: central "
        f"training on the pooled examples gains {_points(found.central)} on the start, rounds gain "
        f"{_points(found.federated)}: {_share(found, ' of it')}. "
        f"The {percent(TARGET, 0)} asked for are {reached} by the point estimate; the interval says how much "
        f"other people would move it. Of the gain in nll rounds reach {_share(nll)}. "
        f"{result.seeds[0].shared_numbers} shared numbers are trained; a profile takes "
        f"{result.seeds[0].profile_bytes} bytes."
    )


def _points(estimate: Estimate) -> str:
    return f"{points(estimate.value)} points [{interval((estimate.low, estimate.high))}]"


def _gains_table(result: AgainstCentral) -> str:
    rows = []
    for what, name in (("generic", "generic answers"), ("personal", "personal answers")):
        found = gains(result.seeds, what)  # type: ignore[arg-type]
        rows.append(
            (
                name,
                percent(found.start),
                *(_points(own) for own in (found.central, found.federated)),
                _share(found),
            )
        )
    nll = gains(result.seeds, "nll")
    cells = (f"{own.value:.4f} [{own.low:.4f} to {own.high:.4f}]" for own in (nll.central, nll.federated))
    rows.append(("nll of personal answers", f"{nll.start:.4f}", *cells, _share(nll)))
    return table(("new people", "start", "central gains", "rounds gain", "share"), rows)


def _share(found: Gains, words: str = "") -> str:
    share = found.share
    return f"{percent(share.value)}{words} [{percent(share.low)} to {percent(share.high)}]"


def _late(result: AgainstCentral) -> str:
    central, federated = late_gains(result.seeds)
    share = percent(federated / central) if central > 0 else "no share"
    return (
        "One look's accuracy goes up and down by a few tenths of a point on both sides. Over the last third "
        f"of the looks, no end being chosen, central training gains {points(central)} points in personal "
        f"accuracy on the start, rounds {points(federated)}: {share}."
    )


def _machine(result: AgainstCentral) -> str:
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {machine['cpus']} CPUs with {machine['threads']} threads, "
        f"{machine['gpu'] or 'no GPU'}, Python {machine['python']}, {versions}."
    )


def _traffic_row(seed: Seed) -> tuple[str, ...]:
    sent = seed.traffic
    return (
        str(seed.seed),
        str(sent.rounds),
        f"{sent.devices:.0f}",
        size(sent.bytes_up),
        size(sent.bytes_down),
        f"{sent.seconds:.2f}",
    )


def _secure(seeds: Sequence[Seed]) -> list[str]:
    parts = []
    for seed in seeds:
        if seed.secure is not None:
            sent = seed.secure.traffic
            parts.append(
                f"With secure sums, as real devices send them, {sent.rounds} rounds under seed {seed.seed} "
                f"sent {size(sent.bytes_up)} up and {size(sent.bytes_down)} down per device and round, in "
                f"{sent.seconds:.2f} s per round. The shared numbers then differ from those without by "
                f"{seed.secure.difference:.1e} (L2), where these rounds moved them by "
                f"{seed.secure.change:.1e}."
            )
    return [prose(part) for part in parts]


def _seed_row(seed: Seed) -> tuple[str, ...]:
    own = gains([seed], "personal")
    levels = [
        percent(float(np.mean(scores.personal))) for scores in (seed.start, seed.central, seed.federated)
    ]
    counts = (seed.public, seed.devices, seed.validation, len(seed.people))
    return (str(seed.seed), *map(str, counts), *levels, _share(own))


def _tried_rows(seed: Seed) -> list[tuple[str, ...]]:
    rows = []
    for side, tried in (("central", seed.central_tried), ("rounds", seed.federated_tried)):
        for number, one in enumerate(tried):
            rows.append(_tried_row(seed, side, one, number == chosen(tried)))
    return rows


def _tried_row(seed: Seed, side: str, one: Tried, best: bool) -> tuple[str, ...]:
    options = ", ".join(f"{name} = {value}" for name, value in one.options.items())
    look = one.best()
    at = f"{'step' if side == 'central' else 'round'} {look.at}"
    return (
        str(seed.seed),
        side,
        options,
        f"{look.nll:.4f}",
        at,
        duration(one.seconds),
        "yes" if best else "",
    )
