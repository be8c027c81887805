"""The page: every contestant on it, what is missing said, its lines and figures readable."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console
from tests.simulations.comparison.example_comparison import KINDS, comparison, config, random_comparison

from umbel.simulations.comparison.cells import read_comparison_config
from umbel.simulations.comparison.claims import all_claims
from umbel.simulations.comparison.page import page, write_page
from umbel.simulations.comparison.plots import spread
from umbel.simulations.comparison.results import read_comparison, write_comparison
from umbel.simulations.comparison.studies import STUDIES
from umbel.simulations.comparison.summary import Summary
from umbel.simulations.comparison.terminal import terminal_tables


def section(text: str, name: str) -> str:
    return text.split(f"\n## {name}\n")[1].split("\n## ", maxsplit=1)[0]


def row(text: str, title: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_has_its_parts_in_order() -> None:
    text = page(random_comparison(3), command="umbel simulate methods --data X", draws=40)
    assert re.findall(r"^#+ .*", text, flags=re.MULTILINE) == [
        "# Methods compared",
        "## In short",
        "## Claims",
        "## community",
        "## movielens",
        "## How it was measured",
    ]
    assert "```bash\numbel simulate methods --data X\n```" in text
    assert "2 CPUs with 2 threads, no GPU, Python 3.11.9, torch 2.13.0" in text
    assert "incomplete" not in text


def test_every_contestant_stands_in_every_table() -> None:
    text = page(random_comparison(3), draws=40)
    for data in ("community", "movielens"):
        for name, kind in KINDS.items():
            title = name.upper() if kind[0] == "rival" else f"**{name.upper()}**"
            assert section(text, data).count(f"| {title} |") == 3


def test_tables_hold_the_summarys_figures() -> None:
    made = random_comparison(3)
    summary = Summary(made, draws=40)
    cells = row(section(page(made, draws=40), "movielens"), "**PLORA**")
    shares = [summary.figures("movielens", "plora", k) for k in (0, 4, 16, 32)]
    assert cells[1:4] == ["3 of 3", "128", "32"]
    assert cells[4:8] == [f"{100 * found.accuracy:.1f} %" for found in shares if found is not None]
    for at, baseline in ((8, "generic"), (9, "headbias")):
        gain = summary.difference("movielens", "plora", baseline, 16)
        assert gain is not None
        ends = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
        assert cells[at].replace("\u2212", "-") == f"{100 * gain.value:+.1f} [{ends}]"
    assert cells[10] == "1.1"


def test_a_difference_on_further_people_says_so() -> None:
    made = random_comparison(3)
    table = section(page(made, draws=40), "movielens")
    assert row(table, "SHARED-LORA")[8].endswith("], on all 27 people")
    assert row(table, "LORA")[8].endswith("]")


def test_the_possible_gain_stands_only_where_it_is_known() -> None:
    text = page(random_comparison(3), draws=40)
    assert "share of the possible gain" in section(text, "community")
    assert "share of the possible gain" not in section(text, "movielens")
    assert "best generic" in section(text, "How it was measured")


def test_what_has_not_been_run_is_said_and_is_no_zero() -> None:
    skip = [("movielens", seed, "lopa") for seed in (0, 1, 2)] + [("movielens", 2, "plora")]
    text = page(random_comparison(3, skip=skip), draws=40)
    assert "**This comparison is incomplete:** 4 of 78 cells" in text.replace("\n", " ")
    table = section(text, "movielens")
    assert row(table, "**LOPA**")[1:] == ["0 of 3", *["–"] * 9]
    partial = row(table, "**PLORA**")
    assert partial[1] == "2 of 3"
    assert partial[8].endswith(", 2 of 3 seeds")


def test_a_comparison_read_from_its_file_has_the_same_page(tmp_path: Path) -> None:
    made = random_comparison(3, skip=[("movielens", 2, "plora")])
    write_comparison(tmp_path / "result.json", made)
    assert page(read_comparison(tmp_path / "result.json"), draws=40) == page(made, draws=40)


def test_a_comparison_without_a_cell_has_a_page() -> None:
    text = page(comparison([], config({"movielens": (4,)})), draws=40)
    assert "Nothing has been run on this data set yet." in text
    assert "39 of 39 cells" in text.replace("\n", " ")
    assert "holds: 0, does not hold: 0, undecided: 0" in text.replace("\n", " ")


def test_prose_is_not_wider_than_the_rest_of_the_documents() -> None:
    lines = page(random_comparison(3), draws=40).splitlines()
    assert [line for line in lines if len(line) > 140 and not line.startswith("|")] == []


def test_tables_have_as_many_cells_in_every_row() -> None:
    text = page(random_comparison(3), draws=40)
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 3 + 3 * 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_page_and_its_figures_lie_side_by_side(tmp_path: Path) -> None:
    made = random_comparison(3)
    files = write_page(made, tmp_path / "results")
    text = files[0].read_text("utf-8")
    assert files[0].name == "methods.md"
    assert sorted(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)) == sorted(path.name for path in files[1:])
    for path in files[1:]:
        svg = path.read_text("utf-8")
        ET.fromstring(svg)
        for name in KINDS:
            assert f">{name.upper()}<" in svg
    before = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in write_page(made, tmp_path / "results")] == before


@pytest.mark.parametrize("heights", [[1.0, 1.0, 1.0], [0.0, 0.1, 9.9], [9.9, 9.95, 10.0], [3.0]])
def test_labels_are_moved_apart_within_the_figure(heights: list[float]) -> None:
    found = spread(heights, gap=2.0, low=0.0, high=10.0)
    assert all(later - earlier >= 2.0 - 1e-9 for earlier, later in pairwise(found))
    assert found[0] >= 0.0
    assert found[-1] <= 10.0


def test_the_terminal_has_a_table_per_data_set_with_every_contestant() -> None:
    tables = terminal_tables(random_comparison(3, skip=[("movielens", 0, "lopa")]))
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(*tables)
    text = capture.get()
    assert "community: 15 people over 3 seeds" in text
    assert "movielens: 15 people over 3 seeds" in text
    for name in KINDS:
        assert text.count(f" {name.upper()} ") == 2
    assert len(re.findall(r" LOPA +│ +2/3 ", text)) == 1
    assert len(re.findall(r" GENERIC +│.* - │ +1.1 │", text)) == 2
    assert re.search(r"[+\u2212]?\d+\.\d \[[^\]]+ to [^\]]+\]", text)


@pytest.mark.parametrize("study", ["methods", "onboarding"])
def test_the_page_in_the_docs_is_that_of_the_results_in_the_repository(
    tmp_path: Path, study: Literal["methods", "onboarding"]
) -> None:
    top = Path(__file__).parents[3]
    found = read_comparison(top / "simulations" / "experiments" / study / "result.json")
    written = write_page(found, tmp_path)
    assert (top / "docs" / "results" / STUDIES[study].page).read_bytes() == written[0].read_bytes()
    there = {path.name for path in (top / "docs" / "results").glob(f"{study}*")}
    assert there == {path.name for path in written}


def test_reasons_stand_where_a_claim_does_not_hold() -> None:
    """The one of a claim that holds is left out, and without any there is no such part."""
    made = random_comparison(3)
    names = {claim.name: claim for claim in all_claims(Summary(made, draws=40))}
    opened = [n for n, claim in names.items() if any(f.verdict != "holds" for f in claim.findings)]
    reasons = {name: f"Because of {number}." for number, name in enumerate(names)}
    told = page(comparison(made.cells, {**made.config, "reasons": reasons}), draws=40)
    assert opened
    for name, words in reasons.items():
        assert (f"**{name}.** {words}" in told) == (name in opened)
    assert "### What was found where a claim does not hold" in told
    assert "What was found" not in page(made, draws=40)


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_shipped_reasons_are_of_claims_that_there_are(name: str) -> None:
    folder = Path(__file__).parents[3] / "simulations" / "experiments" / name
    reasons = read_comparison_config(folder).reasons
    claims = STUDIES[name].claims(Summary(comparison([], config({})), draws=40))  # type: ignore[index]
    assert set(reasons) <= {claim.name for claim in claims}
