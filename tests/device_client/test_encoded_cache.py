"""Encoded examples in memory: what was made is what is found, and no more than the bound is held."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.device_client.encoded_cache import EncodedCache
from umbel.device_client.engine import Engine
from umbel.device_client.learning import Encoded, encode_examples
from umbel.device_client.simulated import EXAMPLES, HELDOUT, SimulatedHome
from umbel.shared.errors import ExampleError
from umbel.shared.examples import Example, write_examples
from umbel.shared.release import Release
from umbel.shared.text import TokenBatch


def encoded(rows: int, value: int = 0) -> Encoded:
    ids = np.full((rows, 2), value, np.int64)
    return Encoded(TokenBatch(ids, np.ones_like(ids)), np.zeros(rows, np.int64))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=40), st.integers(0, 800))
def test_what_is_found_is_what_was_made_and_the_bound_holds(asked: list[tuple[int, int]], limit: int) -> None:
    cache, sizes = EncodedCache(limit), dict[int, int]()
    for key, drawn in asked:
        rows = sizes.setdefault(key, drawn)  # what a key stands for does not change
        found = cache.get(key, lambda key=key, rows=rows: encoded(rows, key))  # type: ignore[misc]
        assert len(found) == rows
        assert (found.tokens.ids == key).all()
        assert cache.nbytes <= limit
    assert len(cache) <= sum(rows > 0 for rows in sizes.values())


def test_the_one_that_was_used_last_stays() -> None:
    cache = EncodedCache(2 * encoded(1).nbytes)
    for key in "abac":
        cache.get(key, lambda: encoded(1))
    made: list[str] = []

    def note(key: str) -> Encoded:
        made.append(key)
        return encoded(1)

    cache.get("a", lambda: note("a"))
    cache.get("b", lambda: note("b"))
    assert made == ["b"]


@pytest.mark.full  # a release is made, by torch
def test_a_home_whose_examples_change_is_read_again(tiny_release: Release, tmp_path: Path) -> None:
    engine, home = Engine(tiny_release), SimulatedHome(tmp_path)
    path, label = tmp_path / EXAMPLES, tiny_release.manifest.labels[0]
    write_examples(path, [Example("owner", "a slow film", label)])
    first = home.support(engine)
    assert home.support(engine) is first
    write_examples(path, [Example("owner", "a quick film", label)] * 2)
    assert len(home.support(engine)) == 2
    path.unlink()
    with pytest.raises(ExampleError):
        home.support(engine)


def write_home(folder: Path, text: str, label: str, heldout: str) -> SimulatedHome:
    write_examples(folder / EXAMPLES, [Example("owner", text, label)])
    write_examples(folder / HELDOUT, [Example("owner", heldout, label)])
    return SimulatedHome(folder)


@pytest.mark.full  # releases are made, by torch
def test_nobody_gets_what_was_encoded_for_others_other_releases_or_before_it_was_erased(
    tiny_release: Release, embedded_release: Release, tmp_path: Path
) -> None:
    """Whatever is asked in whatever order is what a device without a memory would encode."""
    from umbel.simulations.homes.home import home_of
    from umbel.simulations.homes.writing import write_people

    label = tiny_release.manifest.labels[0]
    ann = write_home(tmp_path / "ann", "a slow film", label, "the tender book")
    bob = write_home(tmp_path / "bob", "a very film", label, "they like film")  # as long, in every way
    table = tmp_path / "table"
    write_people(table, [(home.examples(), home.heldout()) for home in (bob, ann)])
    homes = [ann, bob, home_of(table, 0), home_of(table, 1)]
    for _ in range(2):
        for engine in (Engine(tiny_release), Engine(embedded_release)):
            for home in homes:
                for found, examples in (
                    (home.support(engine), home.examples()),
                    (home.queries(engine), home.heldout()),
                ):
                    expected = encode_examples(engine, examples)
                    np.testing.assert_array_equal(found.tokens.ids, expected.tokens.ids)
                    assert (found.embedding is not None) == engine.embeds
    (tmp_path / "ann" / EXAMPLES).unlink()
    write_people(table, [([], []), (bob.examples(), [])])
    engine = Engine(tiny_release)
    for gone in (ann, home_of(table, 0)):
        with pytest.raises(ExampleError):
            gone.support(engine)
    expected = bob.support(engine)
    np.testing.assert_array_equal(home_of(table, 1).support(engine).tokens.ids, expected.tokens.ids)
