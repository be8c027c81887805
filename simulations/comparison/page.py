"""The page of a comparison: Markdown, with its figures as SVG beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from umbel.shared.files import atomic_write
from umbel.simulations.comparison import plots
from umbel.simulations.comparison.claims import Claim, Finding, verdicts
from umbel.simulations.comparison.harm import harm
from umbel.simulations.comparison.results import Comparison
from umbel.simulations.comparison.studies import Study, study_of
from umbel.simulations.comparison.summary import BIAS, DRAWS, GENERIC, Entry, Figures, Summary
from umbel.simulations.report.markdown import prose, table
from umbel.simulations.report.words import NBSP, interval, percent, points, size
from umbel.simulations.results import Machine

_NONE = "–"
_METHOD = (
    "Every contestant learns from the same first k examples of the same people and predicts the same "
    "further examples of theirs. People without as many examples to learn from as the largest k are not "
    "measured. All begin with one generic model per data set and seed, trained on people who are not "
    "measured. Contestants in bold have private profiles of umbel's; the others have none.",
    "A person's accuracy is the share of their asked examples that is predicted right. The mean is "
    "taken over the people of a seed, then over seeds. A contestant that learns nothing for a person is "
    "measured once and has that figure at every k. nll is the mean negative log-likelihood of the right "
    "label, in nats.",
    f"Intervals are 95 %, from a paired bootstrap of {DRAWS:,} draws: people are drawn with replacement, "
    "whoever is measured under several seeds for all of them at once, and both sides are compared on the "
    "people drawn. Seeds are kept as they are, so an interval speaks of other people, not of other seeds or "
    "another training.",
    "Contestants that learn nothing for a person, or learn it over texts' embeddings alone, may have been "
    "measured on further people. Tables use the people that all have, differences those that both sides "
    "have: two such contestants are compared on all of theirs.",
    "Options, such as a rate, were chosen by each contestant by nll at k = 4 and 16 on calibration people, "
    "who are not measured under that seed.",
    "Private bytes are what one person's device keeps, where that is the examples themselves, at the largest "
    "k; numbers learned are those fitted to that person. Seconds are those of learning "
    "and predicting per person at that k, the median over seeds. A contestant may learn for many people side "
    "by side, so seconds compare work, not the waiting time on a device.",
    "Where the data are generated, the best possible answers are known. The share of the possible gain "
    "is (accuracy - best generic) / (best - best generic), where best generic is the accuracy of the "
    "best answers that do not depend on the person. Below 0 means worse than these.",
)


def write_page(comparison: Comparison, folder: Path, command: str | None = None) -> list[Path]:
    """Writes the page and its figures into a folder; equal comparisons give equal bytes.

    Args:
        comparison: May be incomplete; the page says what is missing.
        folder: Made if it is not there. Figures of other data sets are left as they are.
        command: What regenerates the page, if not its study's own.

    Returns:
        The files written, the page first.

    Raises:
        ComparisonError: The cells contradict one another.
        OSError: The folder cannot be written.
    """
    summary = Summary(comparison)
    study = study_of(comparison)
    texts = {study.page: _page(comparison, summary, study, command)}
    for data in _measured(summary):
        texts[_figure_name(study, data, "k")] = plots.accuracy_by_k(summary, data)
        texts[_figure_name(study, data, "bytes")] = plots.accuracy_by_bytes(summary, data)
        if study.people:
            texts[_figure_name(study, data, "people")] = plots.gain_by_person(summary, data)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        atomic_write(folder / name, text.encode())
    return [folder / name for name in texts]


def page(comparison: Comparison, command: str | None = None, draws: int = DRAWS) -> str:
    """Returns the page as Markdown.

    Raises:
        ComparisonError: The cells contradict one another.
    """
    return _page(comparison, Summary(comparison, draws), study_of(comparison), command)


def _page(comparison: Comparison, summary: Summary, study: Study, command: str | None) -> str:
    parts = [
        *_head(comparison, summary, study, command or study.command),
        *_short(summary),
        *_claims([claim for claim in study.claims(summary) if claim.findings], summary.reasons),
        *(part for data in summary.data_sets for part in _data_set(summary, study, data)),
        *_method(summary, study),
    ]
    return "\n\n".join(parts).replace(NBSP, " ") + "\n"


def _measured(summary: Summary) -> list[str]:
    return [data for data in summary.data_sets if summary.people(data)]


def _figure_name(study: Study, data: str, kind: str) -> str:
    return f"{study.name}-{data}-{kind}.svg"


def _head(comparison: Comparison, summary: Summary, study: Study, command: str) -> list[str]:
    own = sum(group != "rival" for group in summary.groups)
    seeds = ", ".join(str(seed) for seed in summary.seeds)
    what = (
        f"{own} {study.what} and {len(summary.groups) - own} other ways to fit a model to a person, on the "
        f"same people of {_counted(len(summary.data_sets), 'data set')}, "
        f"{'seed' if len(summary.seeds) == 1 else 'seeds'} {seeds}."
    )
    return [
        f"# {study.title}",
        prose(what),
        prose(_machine(comparison.machine) + _precision(summary) + _work(summary)),
        *(prose(note) for note in summary.notes),
        "These commands run what is missing and write this page:",
        f"```bash\n{command}\n```",
        *_incomplete(summary),
        table(
            ("data set", "labels", "people per seed", "further people", "k", "seeds"),
            [_data_row(summary, data) for data in summary.data_sets],
        ),
    ]


def _machine(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"Measured on {machine.cpus} CPUs with {machine.threads} threads, {machine.gpu or 'no GPU'}, "
        f"Python {machine.python}{', ' if versions else ''}{versions}."
    )


def _precision(summary: Summary) -> str:
    if not summary.precisions:
        return ""
    most, *others = summary.precisions
    rest = "".join(f", in {other} for {'; '.join(summary.precisions[other])}" for other in others)
    return f" Matrix products were in {most}{rest}."


def _work(summary: Summary) -> str:
    minutes = math.ceil(summary.work_seconds / 60)
    return (
        " Training, choosing, learning and predicting of all cells took "
        f"{_counted(minutes, 'minute')} in all, one process after another, without the generic models."
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _incomplete(summary: Summary) -> list[str]:
    missing = summary.missing()
    if not missing:
        return []
    cells = sum(len(seeds) for _, _, seeds in missing)
    every = sum(len(summary.entries(data)) for data in summary.data_sets) * len(summary.seeds)
    words = (
        f"**This comparison is incomplete:** {cells} of {every} cells (a contestant on a data set under a "
        f"seed) have not been run. A dash stands for what is not measured, and the column *seeds* says how "
        "many are in. Differences use the seeds that both sides have."
    )
    return [prose(words)]


def _data_row(summary: Summary, data: str) -> list[str]:
    people, labels = summary.people(data), summary.labels(data)
    return [
        data,
        _NONE if labels is None else f"{labels}",
        _span(people.values()) or _NONE,
        _span(summary.more_people(data).values()) or _NONE,
        ", ".join(str(k) for k in summary.ks(data)),
        f"{len(people)} of {len(summary.seeds)}",
    ]


def _span(counts: Iterable[int]) -> str:
    different = sorted(set(counts))
    if len(different) > 1:
        return f"{different[0]} to {different[-1]}"
    return str(different[0]) if different else ""


def _short(summary: Summary) -> list[str]:
    """Says in one table who is best, for those who read no further."""
    rows = []
    for data in _measured(summary):
        k = summary.headline_k(data)
        entries = summary.entries(data)
        others = [entry for entry in entries if entry.group == "rival" and entry.contestant != GENERIC]
        own = [entry for entry in entries if entry.group != "rival"]
        generic = summary.figures(data, GENERIC, k)
        shown = percent(generic.accuracy) if generic else _NONE
        rows.append([data, f"{k}", shown, *(_best(summary, data, group, k) for group in (others, own))])
    if not rows:
        return []
    words = (
        "Right answers, and the bytes that one person's device keeps for them. The best of several is chosen "
        "by the very figures that are shown, which flatters both sides."
    )
    head = ("data set", "k", "generic model", "best of the others", "best of umbel's")
    return ["## In short", prose(words), table(head, rows)]


def _best(summary: Summary, data: str, entries: Sequence[Entry], k: int) -> str:
    """Returns the most accurate at k, of those of which as many seeds are in as of anybody."""
    found = [(entry, figures) for entry in entries if (figures := summary.figures(data, entry.contestant, k))]
    most = max((len(figures.by_seed) for _, figures in found), default=0)
    whole = [(entry, figures) for entry, figures in found if len(figures.by_seed) == most]
    if not whole:
        return _NONE
    entry, figures = max(whole, key=lambda row: row[1].accuracy)
    return f"{entry.title}: {percent(figures.accuracy)}, {size(entry.private_bytes or 0)}"


def _claims(claims: Sequence[Claim], reasons: Mapping[str, str]) -> list[str]:
    if not claims:
        return []
    counts = verdicts(claims)
    found = ", ".join(f"{verdict}: {count}" for verdict, count in counts.items())
    words = (
        "The verdict is by the point estimate; the 95 % interval stands beside it, in percentage points. "
        "Undecided is what lies below what is claimed by less than 0.5 points, with what is claimed in its "
        "interval. Nothing holds before every seed is in. Where the other side is itself worse than the "
        f"generic model, that is said: beating it is easy. Verdicts: {found}."
    )
    rows = [
        (claim.name, claim.words, finding.data, f"**{finding.verdict}**", _evidence(finding))
        for claim in claims
        for finding in claim.findings
    ]
    notes = dict.fromkeys(claim.note for claim in claims if claim.note)
    return [
        "## Claims",
        prose(words),
        table(("", "claim", "data set", "verdict", "measured"), _once(rows), right=()),
        *(prose(note) for note in notes),
        *_reasons(claims, reasons),
    ]


def _reasons(claims: Sequence[Claim], reasons: Mapping[str, str]) -> list[str]:
    """Says of the claims that do not hold everywhere what was found behind that."""
    open_ = [claim.name for claim in claims if any(f.verdict != "holds" for f in claim.findings)]
    told = [prose(f"**{name}.** {reasons[name]}") for name in open_ if name in reasons]
    return ["### What was found where a claim does not hold", *told] if told else []


def _evidence(finding: Finding) -> str:
    return "<br>".join(finding.measured)


def _once(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """A claim's name and words stand in its first row only."""
    shown = []
    before = ""
    for row in rows:
        shown.append(row if row[0] != before else ("", "", *row[2:]))
        before = row[0]
    return shown


def _data_set(summary: Summary, study: Study, data: str) -> list[str]:
    if not summary.people(data):
        return [f"## {data}", "Nothing has been run on this data set yet."]
    k = summary.headline_k(data)
    entries = summary.entries(data)
    figures = [
        f"![Right answers by k on {data}]({_figure_name(study, data, 'k')})",
        f"![Right answers at k = {k} by private bytes on {data}]({_figure_name(study, data, 'bytes')})",
    ]
    more = [
        "<details><summary>Differences at every k, and further figures</summary>",
        _gains(summary, data, entries),
        _further(summary, data, entries, k),
        "</details>",
    ]
    people = _people(summary, study, data, entries) if study.people else []
    return [f"## {data}", _main_table(summary, data, entries, k), *figures, *people, *more]


def _people(summary: Summary, study: Study, data: str, entries: Sequence[Entry]) -> list[str]:
    """Says who is helped and who is harmed, and what seen people get."""
    ks = [k for k in summary.ks(data) if k > 0]
    rows = []
    for entry in entries:
        found = [harm(summary, data, entry.contestant, k) for k in ks]
        if entry.contestant != GENERIC and any(found):
            texts = [
                _NONE
                if row is None
                else f"{percent(row.harmed)} / {percent(row.chance)} / {percent(row.helped)}"
                for row in found
            ]
            rows.append([_title(entry), *texts])
    if not rows:
        return []
    words = (
        "People who are worse off than with the generic model, those that the test would find so by "
        "chance, and those who are better off: one-sided exact paired tests at 5 %, person by person."
    )
    alike: dict[str, list[str]] = {}
    for name, share in summary.seen(data).items():
        alike.setdefault(percent(share), []).append(_named(entries, name))
    ceilings = [f"{value}: {', '.join(names)}" for value, names in alike.items()]
    seen = (
        "Seen people's held-out examples, by which training chose when to stop, under the private tensors "
        "that it learned for them: "
    )
    return [
        prose(words),
        table(["worse / by chance / better", *(f"k = {k}" for k in ks)], rows),
        f"![Gain over generic by person on {data}]({_figure_name(study, data, 'people')})",
        *([prose(seen + "; ".join(ceilings) + ".")] if ceilings else []),
    ]


def _named(entries: Sequence[Entry], contestant: str) -> str:
    return next(entry.title for entry in entries if entry.contestant == contestant)


def _main_table(summary: Summary, data: str, entries: Sequence[Entry], k: int) -> str:
    headings = [
        "contestant",
        "seeds",
        "private bytes",
        "numbers learned",
        *(f"k = {each}" for each in summary.ks(data)),
        f"over generic at k = {k} [95 %]",
        f"over private bias at k = {k} [95 %]",
        "seconds per person",
    ]
    rows = []
    for entry in entries:
        found = [summary.figures(data, entry.contestant, each) for each in summary.ks(data)]
        at_k = summary.figures(data, entry.contestant, k)
        rows.append(
            [
                _title(entry),
                f"{len(entry.seeds)} of {len(summary.seeds)}",
                _count(entry.private_bytes),
                _count(entry.private_numbers),
                *(_accuracy(row) for row in found),
                _gain(summary, data, entry, GENERIC, k),
                _gain(summary, data, entry, BIAS, k),
                _NONE if at_k is None else f"{at_k.seconds:.3g}",
            ]
        )
    return table(headings, rows)


def _gains(summary: Summary, data: str, entries: Sequence[Entry]) -> str:
    ks = summary.ks(data)
    rows = [
        [
            _title(entry),
            *(_gain(summary, data, entry, GENERIC, k) for k in ks),
        ]
        for entry in entries
    ]
    return table(["over generic, points [95 %]", *(f"k = {k}" for k in ks)], rows)


def _further(summary: Summary, data: str, entries: Sequence[Entry], k: int) -> str:
    known = any(
        (found := summary.figures(data, entry.contestant, k)) is not None and found.share is not None
        for entry in entries
    )
    headings = [
        f"at k = {k}",
        *(f"seed {seed}" for seed in summary.seeds),
        "nll",
        *(["share of the possible gain"] if known else []),
        "shared numbers",
        "training, s",
    ]
    rows = []
    for entry in entries:
        found = summary.figures(data, entry.contestant, k)
        by_seed = {} if found is None else found.by_seed
        share = None if found is None else found.share
        rows.append(
            [
                _title(entry),
                *(percent(by_seed[seed]) if seed in by_seed else _NONE for seed in summary.seeds),
                _NONE if found is None else f"{found.nll:.3f}",
                *([_NONE if share is None else percent(share, 0)] if known else []),
                _count(entry.shared_numbers),
                _NONE if entry.train_seconds is None else f"{entry.train_seconds:.3g}",
            ]
        )
    return table(headings, rows)


def _title(entry: Entry) -> str:
    return entry.title if entry.group == "rival" else f"**{entry.title}**"


def _count(number: int | None) -> str:
    return _NONE if number is None else f"{number:,}"


def _accuracy(found: Figures | None) -> str:
    return _NONE if found is None else percent(found.accuracy)


def _gain(summary: Summary, data: str, entry: Entry, baseline: str, k: int) -> str:
    found = summary.difference(data, entry.contestant, baseline, k)
    if found is None or entry.contestant == baseline:
        return _NONE
    text = f"{points(found.value)} [{interval((found.low, found.high))}]"
    if len(found.seeds) < len(summary.seeds):
        text += f", {len(found.seeds)} of {len(summary.seeds)} seeds"
    common = summary.people(data)
    if found.people > sum(common[seed] for seed in found.seeds):  # so it is not the difference of two columns
        text += f", on all {found.people} people"
    return text


def _method(summary: Summary, study: Study) -> list[str]:
    known = any(
        (found := summary.figures(data, entry.contestant, summary.headline_k(data))) is not None
        and found.share is not None
        for data in summary.data_sets
        for entry in summary.entries(data)
    )
    chosen = _METHOD if known else _METHOD[:-1]
    first, *rest = chosen
    return ["## How it was measured", *(prose(text) for text in (first, *study.prose, *rest))]
