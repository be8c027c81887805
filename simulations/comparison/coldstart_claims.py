"""The claims that the study of the first minute checks; `claims` has those of the methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from umbel.simulations.comparison.claims import (
    Claim,
    Finding,
    Verdict,
    difference_words,
    on,
    verdict_of,
    worst,
)
from umbel.simulations.comparison.harm import harm, harm_interval
from umbel.simulations.comparison.summary import GENERIC, Figures, Summary
from umbel.simulations.report.words import NBSP, interval, percent, points

DEVICE = "device"
"""Onboarded, learned and cross-validated: what a device does. The names are those of the configuration."""
ZEROS = "zeros"
TEXTS = "texts"
WHOLE = "whole"
"""The device, with further texts of the person that have no label."""

_FILMS = {0: 0.64, 4: 0.68, 16: 0.70, 32: 0.71}
_GAINS = {16: 0.60, 32: 0.80}
_HARM = 0.05
_LOSS = -0.003
_TINY = 1e-9


def coldstart_claims(summary: Summary) -> tuple[Claim, ...]:
    """Returns every claim with its findings."""
    return (four_for_sixteen(summary), films(summary), harmless(summary), gain(summary), texts(summary))


def four_for_sixteen(summary: Summary) -> Claim:
    """Onboarding and learning from 4 examples is at least as good as learning from zeros from 16."""

    def finding(data: str) -> Finding:
        found = summary.difference(data, DEVICE, ZEROS, 4, other_k=16)
        if found is None or not {4, 16} <= set(summary.ks(data)):
            return _unmeasured(data)
        return Finding(data, verdict_of(summary, found, 0.0), (difference_words(summary, found),))

    words = "Onboarded and learned from 4 examples is at least as good as learned from zeros from 16."
    return Claim("Four for sixteen", words, tuple(finding(data) for data in summary.data_sets))


def films(summary: Summary) -> Claim:
    """On MovieLens 64 % at k = 0, 68 % at 4, 70 % at 16 and 71 % at 32."""

    def finding(data: str) -> Finding:
        def words_of(reached: float, least: float) -> str:
            return f"{percent(reached)} (claimed: {percent(least, 0)})"

        found = _reaching(summary, data, _FILMS, lambda figures: figures.accuracy, words_of)
        more = [(k, summary.figures(data, WHOLE, k)) for k in _FILMS]
        rows = [f"k = {k}: {percent(own.accuracy)}" for k, own in more if own is not None]
        words = f"with up to 16 more texts without labels: {', '.join(rows)}"
        return replace(found, measured=(*found.measured, words)) if rows else found

    named = ", ".join(f"{percent(least, 0)} at k = {k}" for k, least in _FILMS.items())
    return Claim("Films", f"At least {named} are right.", on(summary, "movielens", finding))


def harmless(summary: Summary) -> Claim:
    """On CREHate never below generic, a point above at 32, and hardly anybody worse off at k = 4."""

    def finding(data: str) -> Finding:
        verdicts: list[Verdict] = []
        measured = []
        for k in summary.ks(data):
            found = summary.difference(data, DEVICE, GENERIC, k)
            if found is None:
                verdicts.append("not measured")
                continue
            complete = len(found.seeds) == len(summary.seeds)
            verdicts.append(
                "does not hold" if found.low < _LOSS - _TINY else "holds" if complete else "not measured"
            )
            if k == 32:
                verdicts.append(verdict_of(summary, found, 0.01))
            measured.append(f"k = {k}: {difference_words(summary, found)}")
        if 32 not in summary.ks(data):
            verdicts.append("not measured")
        worse = harm(summary, data, DEVICE, 4)
        if worse is None or worse.seeds < len(summary.seeds):
            verdicts.append("not measured")
        if worse is not None:
            verdicts.append("holds" if worse.beyond_chance < _HARM else "does not hold")
            measured.append(
                f"k = 4: the paired test flags {percent(worse.harmed)} of {worse.people} (a person under a "
                f"seed is one) as worse off, {points(worse.beyond_chance)} points to chance "
                f"[{interval(harm_interval(summary, data, DEVICE, 4))}]"
            )
        return Finding(data, worst(verdicts), tuple(measured))

    words = (
        f"At every k the whole interval of the gain over generic lies above {points(_LOSS)} points, at "
        f"k = 32 the gain is at least 1 point, and at k = 4 the paired test flags fewer than 5{NBSP}% of "
        "people beyond chance as worse off."
    )
    return Claim("Do no harm", words, on(summary, "crehate", finding))


def gain(summary: Summary) -> Claim:
    """In the generated community 60 % of the possible gain at k = 16 and 80 % at 32."""

    def finding(data: str) -> Finding:
        def words_of(reached: float, least: float) -> str:
            return f"{percent(reached, 0)} of the possible gain"

        return _reaching(summary, data, _GAINS, lambda found: found.share, words_of)

    words = f"60{NBSP}% of the possible gain at k = 16, 80{NBSP}% at k = 32."
    return Claim("Possible gain", words, on(summary, "community", finding))


def texts(summary: Summary) -> Claim:
    """Texts alone, without a label, beat the generic model."""

    def finding(data: str) -> Finding:
        found = summary.difference(data, TEXTS, GENERIC, 0)
        if found is None:
            return _unmeasured(data)
        verdict = verdict_of(summary, found, 0.0, strictly=True)
        return Finding(data, verdict, (difference_words(summary, found),))

    words = (
        "Up to 16 of a person's texts, none labelled, give better answers than none: where texts carry taste."
    )
    able = [data for data in summary.data_sets if summary.takes_part(data, TEXTS)]
    return Claim("Texts alone", words, tuple(finding(data) for data in able))


def _reaching(
    summary: Summary,
    data: str,
    levels: Mapping[int, float],
    value: Callable[[Figures], float | None],
    words_of: Callable[[float, float], str],
) -> Finding:
    """Holds where a figure of the device's reaches its level at each k; the worst verdict counts."""
    verdicts: list[Verdict] = []
    measured = []
    for k, least in levels.items():
        found = summary.figures(data, DEVICE, k)
        reached = None if found is None else value(found)
        if found is None or reached is None:
            verdicts.append("not measured")
            continue
        complete = len(found.by_seed) == len(summary.seeds)
        holds: Verdict = "holds" if complete else "not measured"
        verdicts.append(holds if reached >= least - _TINY else "does not hold")
        measured.append(f"k = {k}: {words_of(reached, least)}")
    return Finding(data, worst(verdicts), tuple(measured))


def _unmeasured(data: str) -> Finding:
    return Finding(data, "not measured", ("they have not both been measured",))
