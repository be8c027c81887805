"""One person's part in an episode of onboarding: what is known of them, and what they are asked.

Seen people play new ones, on the coordinator as on their own devices in a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from umbel.shared.text import IntArray


@final
@dataclass(frozen=True, slots=True)
class Part:
    """Which of a person's examples are what; no example is two things.

    Attributes:
        known: (k + n,) those that are known, with labels first.
        labelled: k, of how many the label is known, too.
        query: (asked,) those on which the profile is judged.
    """

    known: IntArray
    labelled: int
    query: IntArray


def drawn_part(
    rng: np.random.Generator, examples: int, query: int, most_labelled: int, most_texts: int
) -> Part:
    """Draws what is known of a person and what is asked.

    Half of the examples at most are asked. Of the others, k are known with their labels and n without: k and
    n are drawn from 0, 1, 2, 4 and so on up to the most that there may be, and at least one text is known.

    Args:
        rng: Where chance comes from.
        examples: How many examples the person has, two at least.
        query: How many are asked, at most.
        most_labelled: Largest k.
        most_texts: Largest n.
    """
    order = rng.permutation(examples)
    asked = min(query, examples // 2)
    labelled = _count(rng, most_labelled)
    texts = max(_count(rng, most_texts), 1 - labelled)
    known = order[asked:][: labelled + texts]
    return Part(known, min(labelled, len(known)), order[:asked])


def _count(rng: np.random.Generator, most: int) -> int:
    """Returns 0, 1, 2, 4, ... or `most`, each as likely."""
    powers = [2**power for power in range(most.bit_length()) if 2**power < most]
    counts = [0, *powers, *([most] if most else [])]
    return int(counts[rng.integers(len(counts))])
