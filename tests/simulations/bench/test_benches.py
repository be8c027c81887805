"""The commands: a quick run of each, what is kept, what is refused, and the page."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from tests.simulations.bench.test_rows import a_row, measured
from typer.testing import CliRunner

from umbel.shared.errors import ConfigError
from umbel.simulations.bench import benches
from umbel.simulations.bench.benches import Request, run_bench
from umbel.simulations.bench.commands import app
from umbel.simulations.bench.page import write_page
from umbel.simulations.bench.roofline import COMPUTED, TOUCHED
from umbel.simulations.bench.rows import RESULT, BenchError, Measured, Sample, write_measured
from umbel.simulations.bench.sides import Settings, Sides
from umbel.simulations.progress import Progress

QUIET = Progress(quiet=True)


def request(sides: Sides, command: str, **changes: object) -> Request:
    plain = {"command": command, "folder": sides.folder, "settings": sides.settings, "alone": True}
    return Request(**{**plain, **changes})  # type: ignore[arg-type]


@pytest.mark.slow  # many seconds
def test_a_device_is_measured_and_what_was_measured_is_kept(sides: Sides) -> None:
    wanted = request(sides, "device", only=("start", "step"))
    found = run_bench(wanted, QUIET)
    parts = {row.part for row in found.rows}
    assert parts == {"start to first prediction", "predict, peak memory", "learn, per step"}
    assert all(value > 0 for row in found.rows for value in row.ours.values)
    assert all(row.ratio is None and row.holds is None for row in found.rows)
    assert run_bench(wanted, QUIET) == found
    again = run_bench(request(sides, "device", only=("step",), fresh=True), QUIET)
    assert again.rows[0].ours != found.rows[-1].ours


def test_serving_is_measured_by_the_command(sides: Sides) -> None:
    words = [
        "serving",
        "--quick",
        "--only",
        "owners",
        "--only",
        "latency",
        "--out",
        str(sides.folder),
        "--json",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [row["part"] for row in told["rows"]] == [*["predict"] * 2, *["many owners"] * 2]
    assert [row["setting"].rpartition(", ")[2] for row in told["rows"]] == ["int8", "float32"] * 2
    assert all(row["ratio"] > 0 for row in told["rows"][2:])
    assert json.loads((sides.folder / "serving" / "result.json").read_bytes()) == told


@pytest.mark.slow  # with Ray's processes
def test_rounds_are_measured_once_all_sides_have_reached_the_same(sides: Sides) -> None:
    words = ["simulation", "--quick", "--out", str(sides.folder), "--json", "--threads", "1"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    rows = [(row["setting"][:5], row["against"]) for row in told["rows"] if row["part"] == "a round"]
    assert len(rows) == len(set(rows)) == 2 * 3
    assert "pfl-research was not compared." in told["notes"]
    assert all(row["ratio"] > 0 for row in told["rows"])


def test_what_is_not_known_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    plain = {"command": "device", "folder": tmp_path / "run", "alone": True}
    with pytest.raises(ConfigError, match="does not measure that") as error:
        run_bench(Request(**plain, settings=Settings(), only=("speed", "step", "size")), QUIET)  # type: ignore[arg-type]
    assert len(error.value.problems) == 2
    with pytest.raises(ConfigError, match="there is no encoder 'gpt'"):
        run_bench(Request(**plain, settings=Settings(models=("gpt",))), QUIET)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("threads", ["", "0", "1,x", "-1", "1000"])
def test_threads_that_are_no_counts_are_refused(threads: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["device", "--threads", threads, "--out", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)


def test_an_environment_that_is_none_is_refused(sides: Sides, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="the rival's environment cannot be used"):
        run_bench(request(sides, "device", alone=False, rival_env=tmp_path), QUIET)


def test_every_measurement_has_a_name_of_its_own_in_the_help() -> None:
    for command, known in benches.MEASUREMENTS.items():
        text = CliRunner().invoke(app, [command, "--help"]).output
        assert all(name in text for name in known), command


def test_the_page_has_every_row_its_verdicts_and_figures(tmp_path: Path) -> None:
    kept = a_row(part="learn, per step", theirs=Sample((4.0,)), bound=1.0, against="torch")
    missed = a_row(part="start", theirs=Sample((4.0,)), bound=0.1, sense="share", against="torch")
    many = a_row(part="many owners", theirs=Sample((9.0,)), bound=3.0, against="PEFT", setting="128 owners")
    write_measured(tmp_path / "device" / "result.json", measured(kept, missed))
    serving = Measured(command="serving", settings={}, machine={"cores": "2"}, seconds=1.0, rows=(many,))
    write_measured(tmp_path / "serving" / "result.json", serving)
    page, *figures = write_page(tmp_path, tmp_path / "docs")
    text = page.read_text()
    assert "Of 3 bounds that could be compared, 2 hold." in text
    assert "| learn, per step | 1 x 8 | tiny | 1 | 2.00× | at least 1: **holds** |" in text
    assert "| start | 1 x 8 | tiny | 1 | 0.50 | at most 0.1: **does not hold** |" in text
    assert "4.50×" in text
    assert [figure.name for figure in figures] == ["performance-ratios.svg", "performance-owners.svg"]
    for figure in figures:
        ET.parse(figure)
        assert f"]({figure.name})" in text
    shown = CliRunner().invoke(app, ["page", str(tmp_path), "--out", str(tmp_path / "docs"), "--json"])
    assert json.loads(shown.output) == {"page": str(page), "figures": [str(figure) for figure in figures]}


def test_the_page_shows_rounds_by_side_and_at_most(tmp_path: Path) -> None:
    kind = {"setting": "PLoRA: a round of 100 among 1,000, 4 steps", "encoder": "small", "users": 100}
    rows = (
        a_row(part="a round", theirs=Sample((40.0,)), bound=10.0, against="Flower's engine, ...", **kind),
        a_row(part="a round", theirs=Sample((6.0,)), bound=3.0, against="pfl-research, ...", **kind),
        a_row(part="peak memory", unit="bytes", theirs=Sample((9e8,)), against="pfl-research, ...", **kind),
        a_row(part=COMPUTED, theirs=Sample((0.5,)), against="100 GFLOP at 200 GFLOP/s", **kind),
        a_row(part=TOUCHED, theirs=Sample((0.25,)), against="5 GB at 20 GB/s, if no cache kept any", **kind),
    )
    found = Measured(command="simulation", settings={}, machine={"cores": "2"}, seconds=1.0, rows=rows)
    write_measured(tmp_path / "simulation" / "result.json", found)
    page, *figures = write_page(tmp_path, tmp_path / "docs")
    text = page.read_text()
    assert [figure.name for figure in figures] == ["performance-ratios.svg", "performance-rounds.svg"]
    assert "Of 2 bounds that could be compared, 2 hold." in text
    assert f"| {COMPUTED} | {kind['setting']} | 1 |" in text
    assert "0.25× | 100 GFLOP at 200 GFLOP/s |" in text
    assert "A round is everything from choosing who takes part" in text
    assert "PEFT's adapters" not in text
    bars = figures[1].read_text()
    for words in ("umbel's cohort: PLoRA, small", "pfl-research: PLoRA, small", "the ceiling by FLOP"):
        assert words in bars
    for users in ("50", "2.5", "16.7", "200"):  # 100 users in 2, 40, 6 and 0.5 seconds
        assert f"> {users}</text>" in bars


def test_the_page_says_once_of_each_machine_what_was_measured_on_it(tmp_path: Path) -> None:
    for command, cores in (("device", "2"), ("serving", "2"), ("simulation", "64")):
        found = Measured(command=command, settings={}, machine={"cores": cores}, seconds=1.0, rows=(a_row(),))
        write_measured(tmp_path / command / "result.json", found)
    text = write_page(tmp_path, tmp_path / "docs")[0].read_text()
    assert text.count("measured on") == 2
    assert "One owner's device; One process, one owner or many: measured on None (2 cores" in text
    assert "Simulated rounds: measured on None (64 cores" in text


def test_the_page_tells_what_8_bits_cost(tmp_path: Path) -> None:
    write_measured(tmp_path / "device" / "result.json", measured(a_row()))
    known = {"films": {"float32": 0.64, "int8": 0.635}, "jokes": {"float32": 0.7, "int8": 0.69}}
    (tmp_path / "accuracy.json").write_text(json.dumps(known))
    text = write_page(tmp_path, tmp_path / "docs", tmp_path / "accuracy.json")[0].read_text()
    assert "| films | 64.0 % | 63.5 % | \u22120.5 | at most 0.5 points lost: **holds** |" in text
    assert "| jokes | 70.0 % | 69.0 % | \u22121.0 | at most 0.5 points lost: **does not hold** |" in text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": 1}', '{"a": {"float32": 2, "int8": 0.5}}'])
def test_accuracies_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    write_measured(tmp_path / "device" / "result.json", measured(a_row()))
    (tmp_path / "accuracy.json").write_text(text)
    with pytest.raises(BenchError, match="tells no accuracies"):
        write_page(tmp_path, tmp_path / "docs", tmp_path / "accuracy.json")


def test_a_result_that_is_another_commands_or_of_another_encoder_is_not_shown(tmp_path: Path) -> None:
    found = Measured(command="training", settings={}, machine={}, seconds=1.0, rows=(a_row(encoder="large"),))
    write_measured(tmp_path / "device" / RESULT, found)
    with pytest.raises(BenchError, match="cannot be shown") as error:
        write_page(tmp_path, tmp_path / "docs")
    assert error.value.problems == (
        "command is 'training', expected device",
        "encoder 'large' is not known",
    )
    assert not (tmp_path / "docs").exists()


def test_a_page_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="nothing was measured"):
        write_page(tmp_path, tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


@pytest.mark.slow  # a dozen processes
def test_rounds_among_ever_more_people_are_measured(sides: Sides) -> None:
    words = ["population", "--quick", "--repetitions", "1", "--out", str(sides.folder), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    parts = ["a round", "a round, earlier ones forgotten", "peak memory"]
    assert [(row["part"], row["against"]) for row in rows] == [
        *((part, "") for part in parts), *((part, "20 people") for part in parts),
    ]  # fmt: skip
    assert [row["bound"] for row in rows] == [None] * 3 + [1.1] * 3
    assert all(row["ratio"] > 0 for row in rows[3:])
    known = [row["setting"].partition("; ")[2] for row in rows if row["part"] == "a round"]
    assert known == ["20% of them asked before", "0% of them asked before"]
