"""Jobs in processes of their own: their results, their failures, and no process that is left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from umbel.shared.errors import ConfigError
from umbel.simulations.comparison.results import ComparisonError
from umbel.simulations.comparison.workers import run_apart


def squared(number: int) -> int:
    return number * number


def failing(number: int, folder: str) -> None:
    Path(folder, f"begun-{number}").touch()
    if number == 0:
        raise ConfigError("job 0 fails", ["for a reason"])
    time.sleep(60)


def killed(number: int) -> None:
    os._exit(9)


def test_results_come_in_the_order_of_the_jobs() -> None:
    assert run_apart(squared, [(number,) for number in range(5)], 2) == [0, 1, 4, 9, 16]


def test_one_failure_stops_the_others_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="job 0 fails") as caught:
        run_apart(failing, [(number, str(tmp_path)) for number in range(6)], 2)
    assert time.monotonic() - begun < 40  # spawning takes seconds, a job that is waited for a minute
    assert caught.value.problems == ("for a reason",)
    assert not (tmp_path / "begun-5").exists()


def test_a_worker_that_is_killed_is_told() -> None:
    with pytest.raises(ComparisonError, match="stopped from outside"):
        run_apart(killed, [(0,), (1,)], 2)


def _leave_a_worker(folder: Path) -> int:
    """Starts a process with a worker that sleeps, kills it, and returns the worker's number."""
    code = (
        "from tests.simulations.comparison.test_workers import sleeping\n"
        "from umbel.simulations.comparison.workers import run_apart\n"
        "if __name__ == '__main__':\n"
        f"    run_apart(sleeping, [({str(folder)!r},)], 1)\n"
    )
    script = folder / "main.py"
    script.write_text(code)
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    with subprocess.Popen([sys.executable, str(script)], env=environment, cwd=root) as owner:
        found = folder / "worker"
        for _ in range(600):
            if found.exists() and found.read_text():
                break
            time.sleep(0.1)
        owner.kill()
    return int(found.read_text())


def sleeping(folder: str) -> None:
    Path(folder, "worker").write_text(str(os.getpid()))
    time.sleep(300)


@pytest.mark.skipif(sys.platform == "win32", reason="a process without its parent keeps its number there")
def test_no_worker_outlives_its_owner(tmp_path: Path) -> None:
    worker = _leave_a_worker(tmp_path)
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")
