"""The claims that the comparison checks, each against the figures and data set by data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, final

from umbel.simulations.comparison.summary import BIAS, GENERIC, Difference, Entry, Summary
from umbel.simulations.report.words import NBSP, interval, percent, points, size

Verdict = Literal["holds", "does not hold", "undecided", "not measured"]

_WORST_FIRST: tuple[Verdict, ...] = ("does not hold", "undecided", "not measured", "holds")
_TINY = 1e-9  # differences of shares are sums of floats: -0.01 must not fail by the last bit
_PRINTED = 0.0005  # half of the last digit that is printed: an interval that reads "to 0.0" holds 0
_POINT = 0.01
_FEWER = 3371  # of 10,000: the share of numbers that LoRATRF saves in its paper
_BERT = {"layers": 12, "width": 768, "bottleneck": 48, "bank": 100}


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """What one data set says of a claim.

    Attributes:
        data: The data set.
        verdict: By point estimates. "undecided": below what is claimed by less than 0.5 points, with what is
            claimed in the interval. "not measured": something is missing, be it one seed.
        measured: What was measured, one sentence each, with 95 % intervals in percentage points.
    """

    data: str
    verdict: Verdict
    measured: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Claim:
    """A claim and what was found.

    Attributes:
        name: Short, such as "X-PEFT".
        words: What is claimed.
        findings: One per data set that it speaks of.
        note: What follows by arithmetic, not by measuring; may be empty.
    """

    name: str
    words: str
    findings: tuple[Finding, ...]
    note: str = ""


def all_claims(summary: Summary) -> tuple[Claim, ...]:
    """Returns every claim with its findings."""
    return (
        xpeft(summary, "xpeft"),
        xpeft(summary, "xpeft-random"),
        plora(summary),
        lopa_prompt(summary),
        lopa_lora(summary),
        pha(summary),
        loratrf(summary),
        combination(summary),
        control(summary),
    )


def xpeft(summary: Summary, contestant: str) -> Claim:
    """Hard masks within 1 point of one bottleneck-48 adapter per person, at every k."""

    def finding(data: str) -> Finding:
        found = _at_every_k(summary, data, contestant, "adapter", _learned_ks(summary, data), -_POINT)
        own, other = summary.entry(data, contestant), summary.entry(data, "adapter")
        return Finding(data, found.verdict, (*found.measured, *_bytes(own, other)))

    bank = "a random bank" if contestant == "xpeft-random" else "a trained bank"
    return Claim(
        f"X-PEFT, {bank}",
        f"Hard masks over {bank} are within 1 point of one bottleneck-48 adapter per person at every k.",
        _everywhere(summary, finding, contestant, "adapter"),
        bert_bytes(),
    )


def bert_bytes() -> str:
    """Returns the sizes of a profile of hard masks and of an adapter at BERT-base size, by their formulas."""
    layers, bank, width = _BERT["layers"], _BERT["bank"], _BERT["width"]
    rows = 2 * layers * math.ceil(bank / 8)
    packed = 2 * math.ceil(layers * bank / 8)
    adapter = 4 * layers * 2 * width * _BERT["bottleneck"]
    return (
        f"By formula at BERT-base size (L = {layers}, N = {bank}): 2 L ceil(N / 8) = {rows} B with whole "
        f"bytes per row, 2 ceil(L N / 8) = {packed} B as umbel packs them, against {adapter:,} B of one "
        f"float32 bottleneck-48 adapter: {adapter / rows:,.0f} and {adapter / packed:,.0f} times less."
    )


def plora(summary: Summary) -> Claim:
    """At least LoRA's accuracy at k of 32 and less with under a hundredth of its private numbers."""

    def finding(data: str) -> Finding:
        ks = [k for k in _learned_ks(summary, data) if k <= 32]
        found = _at_every_k(summary, data, "plora", "lora", ks, 0.0)
        own, other = summary.entry(data, "plora"), summary.entry(data, "lora")
        if own.private_numbers is None or other.private_numbers is None:
            return found
        few = 100 * own.private_numbers < other.private_numbers
        words = f"{own.private_numbers:,} private numbers against {other.private_numbers:,}"
        return Finding(data, found.verdict if few else "does not hold", (*found.measured, words))

    words = "PLoRA has at least LoRA's accuracy at every k up to 32 with under 1/100 of its private numbers."
    asked = [data for data in summary.data_sets if any(k <= 32 for k in _learned_ks(summary, data))]
    return Claim("PLoRA", words, _everywhere(summary, finding, "plora", "lora", data_sets=asked))


def lopa_prompt(summary: Summary) -> Claim:
    """Better than a soft prompt per person at every k."""

    def finding(data: str) -> Finding:
        ks = _learned_ks(summary, data)
        return _at_every_k(summary, data, "lopa", "prompt", ks, 0.0, strictly=True)

    words = "LoPA is better than one soft prompt per person at every k."
    return Claim("LoPA and prompts", words, _everywhere(summary, finding, "lopa", "prompt"))


def lopa_lora(summary: Summary) -> Claim:
    """Within 1 point of LoRA at k = 32."""

    def finding(data: str) -> Finding:
        return _at_every_k(summary, data, "lopa", "lora", _only(summary, data, 32), -_POINT)

    words = "LoPA is within 1 point of LoRA at k = 32."
    asked = [data for data in summary.data_sets if _only(summary, data, 32)]
    return Claim("LoPA and LoRA", words, _everywhere(summary, finding, "lopa", "lora", data_sets=asked))


def pha(summary: Summary) -> Claim:
    """Better than an adapter per task at 100 samples of each, on CLINC150."""

    def finding(data: str) -> Finding:
        ks = _only(summary, data, 100)
        found = _at_every_k(summary, data, "pha", "adapter", ks, 0.0, strictly=True)
        own, other = (summary.figures(data, name, 100) for name in ("pha", "adapter"))
        if not ks or own is None or other is None or other.accuracy == 0:
            return found
        ratio = points(own.accuracy / other.accuracy - 1)
        words = f"relative to the adapter's accuracy: {ratio}{NBSP}% (the paper: +8{NBSP}%)"
        return Finding(data, found.verdict, (*found.measured, words))

    words = "PHA is better than one adapter per task at k = 100."
    takes_part = summary.takes_part("clinc150", "pha")
    return Claim("PHA", words, on(summary, "clinc150", finding) if takes_part else ())


def loratrf(summary: Summary) -> Claim:
    """At least LoRA's accuracy with 33.71 % fewer numbers, both shared by everyone."""

    def finding(data: str) -> Finding:
        difference = summary.difference(data, "shared-loratrf", "shared-lora", 0)
        own, other = summary.entry(data, "shared-loratrf"), summary.entry(data, "shared-lora")
        if difference is None or own.shared_numbers is None or other.shared_numbers is None:
            return _unmeasured(data, "shared-loratrf", "shared-lora")
        saved = other.shared_numbers - own.shared_numbers
        fewer = other.shared_numbers > 0 and 10_000 * saved >= _FEWER * other.shared_numbers
        share = saved / max(other.shared_numbers, 1)
        numbers = (
            f"{own.shared_numbers:,} shared numbers against {other.shared_numbers:,}: "
            f"{percent(share, 2)} fewer"
        )
        verdict = verdict_of(summary, difference, 0.0) if fewer else "does not hold"
        found = difference_words(summary, difference) + _beside_generic(summary, data, "shared-lora", 0)
        return Finding(data, verdict, (found, numbers))

    words = "Shared LoRATRF has at least shared LoRA's accuracy with at least 33.71 % fewer numbers."
    return Claim("LoRATRF", words, _everywhere(summary, finding, "shared-loratrf", "shared-lora"))


def combination(summary: Summary) -> Claim:
    """On MovieLens at k = 16: the best combination beats the best single method, 0.69, under 4,096 bytes."""

    def finding(data: str) -> Finding:
        own, single = (_best(summary, data, groups, 16) for groups in (("combination",), ("method", "bias")))
        if own is None or single is None:
            words = "all combinations, all single methods and the bias, each under every seed, are not in yet"
            return Finding(data, "not measured", (words,))
        difference = summary.difference(data, own.contestant, single.contestant, 16)
        figures = summary.figures(data, own.contestant, 16)
        if difference is None or figures is None or own.private_bytes is None:
            return _unmeasured(data, own.title, single.title)
        enough = figures.accuracy >= 0.69 - _TINY and own.private_bytes < 4096
        verdict = verdict_of(summary, difference, 0.0, strictly=True) if enough else "does not hold"
        measured = (
            f"{own.title}: {percent(figures.accuracy)} right, {own.private_bytes:,} bytes",
            f"against {single.title}: {difference_words(summary, difference)}"
            f"{_beside_generic(summary, data, single.contestant, 16)}",
        )
        return Finding(data, verdict, measured)

    words = (
        "The best combination beats the best single method (a private bias is one) at k = 16, with at least "
        "69 % right answers and a profile below 4,096 bytes. Both are chosen by the very figures that are "
        "compared."
    )
    able = any(entry.group == "combination" for entry in summary.entries("movielens"))
    return Claim("Combination", words, on(summary, "movielens", finding) if able else ())


def control(summary: Summary) -> Claim:
    """Where people hardly differ, nobody of umbel's loses more than 0.3 points to the generic model."""

    def finding(data: str) -> Finding:
        own = [entry for entry in summary.entries(data) if entry.group != "rival"]
        rows, missing = [], []
        for entry in own:
            for k in summary.ks(data):
                found = summary.difference(data, entry.contestant, GENERIC, k)
                if found is None:
                    missing += [entry.title] if entry.title not in missing else []
                else:
                    rows.append((found, entry.title, k))
        if not rows:
            return _unmeasured(data, "umbel's methods", "the generic model")
        worst, title, k = min(rows, key=lambda row: row[0].value)
        measured = [f"the largest loss: {title} at k = {k}, {difference_words(summary, worst)}"]
        measured += [f"not measured at every k: {', '.join(missing)}"] if missing else []
        verdict = verdict_of(summary, worst, -0.003)
        complete = not missing and all(len(found.seeds) == len(summary.seeds) for found, _, _ in rows)
        return Finding(data, verdict if complete or verdict != "holds" else "not measured", tuple(measured))

    words = (
        "Control: where people hardly differ, none of umbel's methods loses more than 0.3 points to the "
        "generic model at any k."
    )
    return Claim("Control", words, on(summary, "paradigms-g2", finding))


def _at_every_k(
    summary: Summary,
    data: str,
    one: str,
    other: str,
    ks: Sequence[int],
    least: float,
    *,
    strictly: bool = False,
) -> Finding:
    """Holds where the difference is at least `least`, or above it, at each k; the worst verdict counts."""
    measured: list[str] = []
    found: set[Verdict] = set()
    for k in ks:
        difference = summary.difference(data, one, other, k)
        if difference is None:
            found.add("not measured")
            measured.append(f"k = {k}: not measured")
            continue
        found.add(verdict_of(summary, difference, least, strictly=strictly))
        measured.append(
            f"k = {k}: {difference_words(summary, difference)}{_beside_generic(summary, data, other, k)}"
        )
    if not any(summary.difference(data, one, other, k) for k in ks):
        return _unmeasured(data, one, other)
    return Finding(data, worst(found), tuple(measured))


def verdict_of(summary: Summary, difference: Difference, least: float, *, strictly: bool = False) -> Verdict:
    """Judges a difference against what is claimed; only with every seed in does a claim hold."""
    value = difference.value
    if value > least + _TINY if strictly else value >= least - _TINY:
        return "holds" if len(difference.seeds) == len(summary.seeds) else "not measured"
    within = difference.low - _PRINTED <= least <= difference.high + _PRINTED
    near = value > least - 0.005 + _TINY and within
    return "undecided" if near else "does not hold"


def worst(found: Collection[Verdict]) -> Verdict:
    """Returns the verdict of a claim that is made of several."""
    return next((verdict for verdict in _WORST_FIRST if verdict in found), "not measured")


def _beside_generic(summary: Summary, data: str, other: str, k: int) -> str:
    """Says so where the other side is itself worse than the generic model: beating it is easy then."""
    difference = summary.difference(data, other, GENERIC, k)
    if difference is None or difference.value >= -_TINY:
        return ""
    return f" ({summary.entry(data, other).title}: {points(difference.value)} to generic)"


def difference_words(summary: Summary, difference: Difference) -> str:
    """Returns a difference in points, with its interval and the seeds that are in."""
    span = f"{points(difference.value)} points [{interval((difference.low, difference.high))}]"
    if len(difference.seeds) == len(summary.seeds):
        return span
    return f"{span}, {len(difference.seeds)} of {len(summary.seeds)} seeds"


def _unmeasured(data: str, one: str, other: str) -> Finding:
    return Finding(data, "not measured", (f"{one} and {other} have not both been measured",))


def _bytes(own: Entry, other: Entry) -> tuple[str, ...]:
    if not own.private_bytes or not other.private_bytes:
        return ()
    ratio = other.private_bytes / own.private_bytes
    return (f"{size(own.private_bytes)} against {size(other.private_bytes)}: {ratio:,.0f} times less",)


def _best(summary: Summary, data: str, groups: Sequence[str], k: int) -> Entry | None:
    """Returns the most accurate at k; None unless all of its kind have every seed in.

    "bias" is the private bias, which stands among the rivals.
    """
    rows = []
    for entry in summary.entries(data):
        if entry.group not in groups and not ("bias" in groups and entry.contestant == BIAS):
            continue
        found = summary.figures(data, entry.contestant, k)
        if found is None or len(found.by_seed) < len(summary.seeds):
            return None
        rows.append((found.accuracy, entry))
    return max(rows, key=lambda row: row[0])[1] if rows else None


def _learned_ks(summary: Summary, data: str) -> list[int]:
    return [k for k in summary.ks(data) if k > 0]


def _only(summary: Summary, data: str, k: int) -> list[int]:
    return [k] if k in summary.ks(data) else []


def _everywhere(
    summary: Summary,
    finding: Callable[[str], Finding],
    *contestants: str,
    data_sets: Sequence[str] | None = None,
) -> tuple[Finding, ...]:
    """Returns the findings of the data sets, all or some, on which all these contestants take part."""
    asked = summary.data_sets if data_sets is None else data_sets
    able = [data for data in asked if all(summary.takes_part(data, name) for name in contestants)]
    return tuple(finding(data) for data in able)


def on(summary: Summary, data: str, finding: Callable[[str], Finding]) -> tuple[Finding, ...]:
    """Returns what one data set says of a claim; nothing where it is not part of the comparison."""
    return (finding(data),) if data in summary.data_sets else ()


def verdicts(claims: Iterable[Claim]) -> dict[Verdict, int]:
    """Returns how often each verdict occurs."""
    counts: dict[Verdict, int] = {"holds": 0, "does not hold": 0, "undecided": 0, "not measured": 0}
    for claim in claims:
        for finding in claim.findings:
            counts[finding.verdict] += 1
    return counts
