"""Measuring itself: turns, processes, and the refusal to tell times of other answers."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.simulations.bench.processes import Stepwise, Worker, environment, run_once
from umbel.simulations.bench.rows import BenchError
from umbel.simulations.bench.sides import Sides, alternated, check_same

_HARNESS = """
from umbel.simulations.bench.rival.harness import serve

def doubled(number):
    print("chatter that is no answer")
    return (lambda: None), number * 2

serve({"doubled": doubled})
"""


def test_both_sides_take_turns_and_who_begins_changes() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    mine, other = alternated(3, lambda: side("ours"), lambda: side("theirs"))
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert mine.values == (1.0, 4.0, 5.0)
    assert other is not None
    assert other.values == (2.0, 3.0, 6.0)
    assert alternated(2, lambda: 1.0, None)[1] is None


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), st.floats(0.01, 1.0))
def test_other_answers_are_refused_and_the_same_are_not(numbers: list[float], change: float) -> None:
    check_same("logits", numbers, [number * (1 + 1e-6) for number in numbers])
    limit = change / max(numbers) / 2
    with pytest.raises(BenchError, match="the two sides give other answers"):
        check_same("logits", [numbers[0] + change, *numbers[1:]], numbers, limit)


def test_answers_that_are_no_numbers_or_of_another_shape_are_refused() -> None:
    with pytest.raises(BenchError, match="other answers"):
        check_same("logits", [float("nan")], [1.0])
    with pytest.raises(BenchError, match="other shapes"):
        check_same("logits", [[1.0, 2.0]], [1.0, 2.0])


def test_a_process_has_its_own_peak_memory_and_not_that_of_who_started_it() -> None:
    held = np.ones(40_000_000)  # 320 MB
    small = run_once([sys.executable, "-S", "-c", "print('here')"], environment(1))
    assert small.printed == "here\n"
    assert small.seconds > 0
    assert 1_000_000 < small.peak_bytes < 100_000_000 < held.nbytes
    large = run_once([sys.executable, "-S", "-c", "x = b'1' * 150_000_000"], environment(1))
    assert large.peak_bytes > 150_000_000


def test_a_process_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(BenchError, match="ended with 3") as error:
        run_once(
            [sys.executable, "-c", "import sys; sys.stderr.write('so it was'); sys.exit(3)"], environment(1)
        )
    assert error.value.problems == ("so it was",)


def test_a_worker_answers_times_and_tells_its_memory(tmp_path: Path) -> None:
    with Worker([sys.executable, "-c", _HARNESS], environment(1), tmp_path / "log") as worker:
        assert worker.prepare("doubled", number=21) == 42
        assert len(worker.time(3)) == 3
        now, peak = worker.memory()
        assert 1_000_000 < now <= peak
    assert "chatter" in (tmp_path / "log").read_text()


def test_a_worker_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(BenchError, match="ended with 1") as error,
        Worker([sys.executable, "-c", _HARNESS], environment(1), tmp_path / "log") as worker,
    ):
        worker.prepare("unknown")
    assert any("KeyError" in problem for problem in error.value.problems)


_STEPS = """
import sys
for number in range(3):
    print(number, flush=True)
    if not sys.stdin.readline():
        raise SystemExit(5)
print("done")
"""


def test_processes_do_their_steps_in_turns(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    command = [sys.executable, "-S", "-c", _STEPS]
    with (
        Stepwise(command, environment(1), tmp_path) as one,
        Stepwise(command, environment(1), tmp_path / "b") as other,
    ):
        said = [process.first() for process in (one, other)]
        said += [process.step() for process in (one, other, other, one)]
        assert said == ["0\n", "0\n", "1\n", "1\n", "2\n", "2\n"]
        ran = one.ended()
        assert ran.printed == "done\n"
        assert 1_000_000 < ran.peak_bytes < 100_000_000
    with Stepwise(command, environment(1), tmp_path) as left:  # and ends, as nobody tells it to go on
        assert left.first() == "0\n"


def test_a_process_that_ends_between_its_steps_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-c", "import sys; print(1, flush=True); input(); sys.exit('so it was')"]
    with Stepwise(command, environment(1), tmp_path) as process:
        process.first()
        with pytest.raises(BenchError, match="ended with 1") as error:
            process.step()
    assert error.value.problems == ("so it was",)
    with Stepwise(command, environment(1), tmp_path) as process:
        process.first()
        with pytest.raises(BenchError, match="ended with 1"):
            process.ended()


def test_threads_are_set_on_purpose_and_bytecode_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    found = environment(2, {"PYTHONPATH": "there"})
    assert "PYTHONDONTWRITEBYTECODE" not in found
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "2"
    assert found["PYTHONPATH"] == "there"


def test_a_release_is_made_once(sides: Sides) -> None:
    first = sides.release("tiny")
    told: list[str] = []
    sides.on_phase = told.append
    assert sides.release("tiny") == first
    assert told == []
