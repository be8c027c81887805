"""Rows: ratios, bounds, and what is written and read back."""

import json
from pathlib import Path

import pytest

from umbel.simulations.bench.rows import (
    BenchError,
    Measured,
    Row,
    Sample,
    failing,
    read_measured,
    write_measured,
)
from umbel.simulations.bench.terminal import cells, terminal_table


def a_row(**changes: object) -> Row:
    plain = {"part": "predict", "encoder": "tiny", "setting": "1 x 8", "threads": 1, "unit": "s"}
    return Row(**{**plain, "ours": Sample((3.0, 1.0, 2.0)), **changes})  # type: ignore[arg-type]


def measured(*rows: Row) -> Measured:
    return Measured(
        command="device", settings={"quick": "false"}, machine={"cores": "2"}, seconds=1.5, rows=rows
    )


def test_a_ratio_is_that_of_the_medians() -> None:
    theirs = Sample((5.0, 8.0))
    assert a_row(theirs=theirs).ratio == 6.5 / 2.0
    assert a_row(theirs=theirs, sense="share").ratio == 2.0 / 6.5
    assert a_row().ratio is None


@pytest.mark.parametrize(
    ("sense", "bound", "holds"),
    [("times", 2.0, True), ("times", 2.1, False), ("share", 0.5, True), ("share", 0.4, False)],
)
def test_a_bound_holds_at_its_edge_and_not_beyond(sense: str, bound: float, holds: bool) -> None:
    row = a_row(theirs=Sample((4.0,)), sense=sense, bound=bound)
    assert row.holds is holds
    assert (failing([row]) == [row]) is not holds


def test_nothing_holds_where_nothing_was_compared() -> None:
    assert a_row(bound=1.0).holds is None
    assert a_row(theirs=Sample((1.0,))).holds is None


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    found = measured(a_row(theirs=Sample((4.0,)), bound=1.5, against="torch"), a_row(unit="bytes"))
    write_measured(tmp_path / "found.json", found)
    assert read_measured(tmp_path / "found.json") == found
    told = json.loads((tmp_path / "found.json").read_bytes())["rows"]
    assert [row["holds"] for row in told] == [True, None]
    assert [row["ours_median"] for row in told] == [2.0, 2.0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": []}', '{"rows": [1]}', '{"rows": 3}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(BenchError, match="is no result of a benchmark"):
        read_measured(tmp_path / "found.json")


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, values: list[float]) -> None:
    write_measured(tmp_path / "found.json", measured(a_row()))
    row = json.loads((tmp_path / "found.json").read_bytes())
    row["rows"][0]["ours"]["values"] = values
    (tmp_path / "found.json").write_text(json.dumps(row))
    with pytest.raises(BenchError, match="is no result of a benchmark"):
        read_measured(tmp_path / "found.json")


def test_nothing_is_so_many_times_nothing() -> None:
    assert a_row(ours=Sample((0.0,)), theirs=Sample((1.0,)), bound=1.0).ratio is None
    assert a_row(theirs=Sample((0.0,)), sense="share", bound=1.0).holds is None


def test_a_row_in_words() -> None:
    row = a_row(theirs=Sample((0.5,)), bound=2.0, against="torch")
    plain = [cell.replace("\u00a0", " ") for cell in cells(row)]
    ours = ["predict", "tiny", "1 x 8", "1", "2.00 s", "1.00 s to 3.00 s"]
    assert plain == [*ours, "500 ms", "", "0.25x", "at least 2: does not hold", "torch"]
    assert terminal_table(measured(row)).row_count == 1
