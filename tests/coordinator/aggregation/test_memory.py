"""The memory of a round does not grow with the number of answers; each round in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = 5 * 2**20
VALUES = MODEL // 4


def taken(repository: Path, count: int, rule: str, timeout_s: float) -> int:
    """Returns the bytes by which a round over `count` devices raised the process's memory."""
    command = [
        sys.executable,
        "-m",
        "tests.coordinator.aggregation.many_answers",
        str(count),
        str(VALUES),
        rule,
    ]
    done = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, timeout=timeout_s, check=True
    )
    print(done.stdout)
    row = json.loads(done.stdout)
    return int(row["peak_bytes"] - row["before_bytes"])


def test_a_mean_keeps_no_answer_and_a_rule_that_looks_at_each_keeps_all(repository: Path) -> None:
    """Forty answers: the median holds them, which shows that this would see it if the mean did."""
    assert taken(repository, 40, "median", 60) > 40 * MODEL
    assert taken(repository, 40, "mean", 60) < 24 * MODEL


@pytest.mark.slow
def test_five_thousand_answers_take_the_memory_of_a_few(repository: Path) -> None:
    """Measured: 17 models, four of them the exact sum; the rest is one answer on its way through Flower."""
    assert taken(repository, 5000, "mean", 1200) < 24 * MODEL
