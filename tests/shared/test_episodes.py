"""One person's part in an episode: no example is two things, and no more is used than there may be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.shared.episodes import drawn_part
from umbel.shared.rng import generator


@given(
    seed=st.integers(),
    examples=st.integers(2, 90),
    query=st.integers(1, 20),
    most_labelled=st.integers(0, 70),
    most_texts=st.integers(0, 70),
)
def test_a_part(seed: int, examples: int, query: int, most_labelled: int, most_texts: int) -> None:
    part = drawn_part(generator(seed, 0, "ann", "part"), examples, query, most_labelled, most_texts)
    used = [*part.known.tolist(), *part.query.tolist()]
    assert len(set(used)) == len(used)
    assert set(used) <= set(range(examples))
    assert len(part.query) == min(query, examples // 2) >= 1
    assert 0 <= part.labelled <= min(most_labelled, len(part.known))
    assert len(part.known) >= 1
    assert len(part.known) - part.labelled <= max(most_texts, 1)


def test_every_count_comes_about_as_often() -> None:
    """0, 1, 2, 4 and 6 labels: 400 of 2,000 draws each, and five deviations are 90."""
    rng = generator(0, 0, "ann", "part")
    labelled = [drawn_part(rng, 40, 4, 6, 3).labelled for _ in range(2000)]
    assert sorted(set(labelled)) == [0, 1, 2, 4, 6]
    assert all(labelled.count(count) == pytest.approx(400, abs=90) for count in set(labelled))


def test_every_example_is_asked_and_known_at_times() -> None:
    rng = generator(0, 0, "ann", "part")
    parts = [drawn_part(rng, 5, 2, 4, 2) for _ in range(200)]
    for which in ("query", "known"):
        assert set(np.concatenate([getattr(part, which) for part in parts]).tolist()) == set(range(5))
