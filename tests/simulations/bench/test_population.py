"""The people of `umbel bench population`: generated the same each time, of exact lengths, and used again."""

from pathlib import Path

from umbel.device_client.engine import Engine
from umbel.simulations.bench.population_bench import Registered, asked_before, table_of
from umbel.simulations.bench.sides import Sides
from umbel.simulations.homes.table import FILE, PeopleTable


def test_generated_people_have_texts_of_their_own_of_so_many_tokens(sides: Sides, tmp_path: Path) -> None:
    release, registered = sides.release("tiny"), Registered()
    load = registered.load(20_000)
    table = PeopleTable(table_of(release, tmp_path / "a", load))
    assert (table.people, table.rows) == (20_000, 80_000)
    texts = [e.text for number in (0, 1, 16_384, 19_999) for e in table.of(number)[0].examples]
    assert len(set(texts)) == 16
    assert set(Engine(release).encode(texts).mask.sum(1).tolist()) == {load.tokens}
    assert {e.label for e in table.of(7)[0].examples} == set(release.manifest.labels)
    again = PeopleTable(table_of(release, tmp_path / "b", registered.load(100)))
    assert again.of(99)[0].examples == table.of(99)[0].examples
    written = (tmp_path / "a" / FILE).stat()
    table_of(release, tmp_path / "a", load)
    assert (tmp_path / "a" / FILE).stat().st_mtime_ns == written.st_mtime_ns
    assert written.st_size < 20_000 * 400


def test_the_share_of_those_asked_before_is_that_of_the_rounds() -> None:
    """Of 1,000 people 100 take part in each of 12 rounds: about 1 - 0.9^n in the n-th after the first."""
    expected = sum(1 - 0.9**earlier for earlier in range(1, 12)) / 11
    assert abs(asked_before(Registered().load(1000)) - expected) < 0.03
    assert asked_before(Registered().load(1_000_000)) < 0.01
