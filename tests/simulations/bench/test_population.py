"""The people of `umbel bench population`: generated the same each time, of exact lengths, and used again."""

from pathlib import Path

from umbel.device_client.engine import Engine
from umbel.simulations.bench.population_bench import Registered, table_of
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
    assert written.st_size < 20_000 * 200
