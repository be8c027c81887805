"""Numbers as people read them, and the sentences that a report makes of them."""

from dataclasses import dataclass
from typing import final

from umbel.simulations.results import Unseen

NBSP = "\u00a0"
MINUS = "\u2212"

_HEADLINE_K = "16"


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """How personal answers compare with a baseline at one k: `kind` is better, worse or open."""

    kind: str
    sentence: str


def headline_k(unseen: Unseen) -> str:
    """Returns the k that the headline speaks of: 16, or else the largest."""
    return _HEADLINE_K if _HEADLINE_K in unseen.ks else unseen.ks[-1]


def percent(share: float, digits: int = 1) -> str:
    r"""Returns a share as per cent.

    Example:
        >>> percent(0.7816)
        '78.2\xa0%'
    """
    return f"{100 * share:.{digits}f}{NBSP}%"


def points(difference: float) -> str:
    """Returns a difference of shares in percentage points, always with a sign.

    Example:
        >>> points(0.1512), points(0.0), points(-0.02)
        ('+15.1', '0.0', '−2.0')
    """
    text = f"{100 * abs(difference):.1f}"
    if text == "0.0":
        return text
    return ("+" if difference > 0 else MINUS) + text


def interval(pair: tuple[float, float]) -> str:
    """Returns an interval of differences.

    Example:
        >>> interval((-0.01, 0.021))
        '−1.0 to +2.1'
    """
    return f"{points(pair[0])} to {points(pair[1])}"


def size(count: float) -> str:
    """Returns a count of bytes in decimal units.

    Example:
        >>> size(312).replace(NBSP, " "), size(49_312).replace(NBSP, " "), size(1_912_044).replace(NBSP, " ")
        ('312 B', '49.3 kB', '1.9 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f}{NBSP}{unit}"
    return f"{count:.0f}{NBSP}B"


def duration(seconds: float) -> str:
    """Returns a time span with its two largest units.

    Example:
        >>> [duration(s).replace(NBSP, " ") for s in (0.42, 42, 231, 4000)]
        ['0.4 s', '42 s', '3 min 51 s', '1 h 6 min']
    """
    if seconds < 10:
        return f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NBSP}s"
    if whole < 3600:
        return f"{whole // 60}{NBSP}min{NBSP}{whole % 60}{NBSP}s"
    return f"{whole // 3600}{NBSP}h{NBSP}{whole % 3600 // 60}{NBSP}min"


def counted(count: int, one: str, many: str) -> str:
    """Returns a count with its noun.

    Example:
        >>> counted(1, "person", "people"), counted(1200, "person", "people")
        ('1 person', '1,200 people')
    """
    return f"{count:,} {one if count == 1 else many}"


def at_k(k: str) -> str:
    """Returns "k = 16" in one piece, never broken over two lines."""
    return f"k{NBSP}={NBSP}{k}"


def headline(unseen: Unseen) -> str:
    """Returns the result in one sentence, whichever way it went."""
    k = headline_k(unseen)
    personal, generic, bias = (
        unseen.personal_accuracy[k],
        unseen.generic_accuracy[k],
        unseen.bias_accuracy[k],
    )
    start = "Without an example" if k == "0" else f"After {counted(int(k), 'example', 'examples')}"
    who = (
        "a person the model had never met gets" if unseen.users == 1 else "people the model had never met get"
    )
    only = "only " if verdict(unseen, k).kind == "worse" else ""
    return (
        f"{start}, {who} {only}{percent(personal)} right answers; "
        f"the generic model {percent(generic)}, generic + private bias {percent(bias)}."
    )


def verdict(unseen: Unseen, k: str) -> Verdict:
    """Returns how personal compares with generic at k."""
    gain = unseen.personal_accuracy[k] - unseen.generic_accuracy[k]
    return _verdict(gain, unseen.intervals[k], unseen.users, "the generic model")


def bias_verdict(unseen: Unseen, k: str) -> Verdict:
    """Returns how personal compares with generic + private bias at k."""
    gain = unseen.personal_accuracy[k] - unseen.bias_accuracy[k]
    return _verdict(gain, unseen.bias_intervals[k], unseen.users, "a private bias alone")


def _verdict(gain: float, ends: tuple[float, float], users: int, rival: str) -> Verdict:
    if users == 1:
        return Verdict("open", f"{points(gain)} points against {rival}; one person cannot show a difference.")
    span = f"(95{NBSP}% interval {interval(ends)})"
    if ends[0] > 0:
        return Verdict("better", f"Better than {rival} by {points(gain)[1:]} points {span}.")
    if ends[1] < 0:
        return Verdict("worse", f"Worse than {rival} by {points(gain)[1:]} points {span}.")
    return Verdict("open", f"No clear difference from {rival}: {points(gain)} points {span}.")


def possible_gain(unseen: Unseen, k: str) -> str | None:
    """Returns a sentence on the share of the possible gain that was won; None where it is not known."""
    share = (unseen.share_of_possible_gain or {}).get(k)
    if share is None or unseen.bayes_accuracy is None:
        return None
    best = f"The best possible personal answers would be right {percent(unseen.bayes_accuracy)} of the time"
    if share <= 0:
        return f"{best}; none of the possible gain was won."
    return f"{best}; {percent(share, 0)} of the possible gain was won."


def harm(unseen: Unseen, k: str) -> str:
    """Returns a sentence on the people who fare worse than with the generic model."""
    count = round(unseen.harmed_share[k] * unseen.users)
    if count == 0:
        return "Nobody fares worse than with the generic model."
    fare = "fares" if count == 1 else "fare"
    of_all = f"{count:,} of {counted(unseen.users, 'person', 'people')} ({percent(count / unseen.users, 0)})"
    return f"{of_all} {fare} worse than with the generic model."
