"""Hostile inputs are read or refused; and what must not be is found."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.robustness.fuzzing import run
from tests.robustness.fuzzing.mutations import Dice, as_text, mutated
from tests.robustness.fuzzing.run import BATCH, Done, bounded, fed, plan
from tests.robustness.fuzzing.targets import Target, targets

from umbel.shared.errors import ProfileError
from umbel.shared.rng import generator


def fuzz(repository: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.robustness.fuzzing.run", *map(str, words)],
        cwd=repository,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_some_thousand_inputs_and_on_from_there(repository: Path, tmp_path: Path) -> None:
    ended = fuzz(repository, "--count", 4000, "--jobs", 1, "--out", tmp_path, "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout)
    assert found["inputs"] >= 4000
    assert found["findings"] == 0
    assert all(own["inputs"] and own["refused"] for own in found["targets"].values())
    again = json.loads(fuzz(repository, "--count", 4000, "--out", tmp_path, "--json").stdout)
    assert again["inputs"] == found["inputs"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return targets(tmp_path_factory.mktemp("targets"))


@given(data=st.data())
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_made_of_nothing_valid_is_refused_or_read(
    data: st.DataObject, known: dict[str, Target]
) -> None:
    """The twin of the changed inputs: hypothesis makes bytes and JSON from nothing, and shrinks a finding."""
    name = data.draw(st.sampled_from(sorted(set(known) - {"channel"} - WIRES)))
    given_bytes = data.draw(st.binary(max_size=200) | JSON.map(lambda row: json.dumps(row).encode()))
    with bounded():
        assert not fed(known[name], given_bytes).startswith("!"), name


_KINDS = ("task", "contribution", "evaluation", "hello", "gain question", "gain")
WIRES = {f"message: {name}" for name in _KINDS}
"""Their inputs are messages already, whatever they hold."""


@given(config=st.dictionaries(st.text(max_size=8), JSON, max_size=5), name=st.sampled_from(sorted(WIRES)))
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_message_made_of_nothing_valid_is_refused(
    config: dict[str, object], name: str, known: dict[str, Target]
) -> None:
    row = json.dumps({"config": config, "arrays": {}}).encode()
    with bounded():
        assert fed(known[name], row).startswith("MessageError")


def target(read: object) -> Target:
    return Target(1, lambda dice: b"", read)  # type: ignore[arg-type]


def test_what_must_not_be_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WAITED_SECONDS", 0.2)
    monkeypatch.setattr(run, "SECONDS", 0.1)

    def wait(data: bytes) -> None:
        with contextlib.suppress(Exception):
            time.sleep(30)

    def work(data: bytes) -> None:
        while True:
            with contextlib.suppress(Exception):
                sum(range(1000))

    def refuse(data: bytes) -> None:
        raise ProfileError("no profile")

    with bounded():
        assert fed(target(lambda data: data), b"x") == "read"
        assert fed(target(refuse), b"x") == "ProfileError: no profile"
        assert fed(target(lambda data: data[5]), b"x").startswith("!IndexError at test_fuzz.py")
        assert fed(target(lambda data: bytearray(1 << 30)), b"x").startswith("!MemoryError")
        assert fed(target(wait), b"x") == "!too slow"
        monkeypatch.setattr(run, "WAITED_SECONDS", 60.0)
        assert fed(target(work), b"x") == "!too slow"


_DYING = """
import os, sys, json
from pathlib import Path
from tests.robustness.fuzzing import run
from tests.robustness.fuzzing.targets import Target
dying = Target(1, lambda dice: bytes([dice.below(50)]), lambda data: data != b"\\x07" or os.abort())
run.targets = lambda folder: {"dying": dying}
run.MORE_BYTES = 1 << 28
fuzz = run.Fuzz(Path(sys.argv[1]), 0, print)
fuzz.run({"dying": 1.0}, 200, 1)
found = fuzz.summary()
print(json.dumps([found["inputs"], found["findings"], len(list((fuzz.out / "findings").iterdir()))]))
"""


def test_an_input_that_ends_the_process_is_found_and_the_next_one_is_read(
    repository: Path, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _DYING, str(tmp_path)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    inputs, findings, kept = json.loads(ended.stdout.splitlines()[-1])
    dice = Dice(generator(0, 0, "dying", "fuzz"))
    assert inputs == 200
    assert findings == sum(dice.below(50) == 7 for _ in range(200)) > 0
    assert kept == 1


def test_a_finding_is_fed_again(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "finding"
    path.write_bytes(b'{"target": "profile", "found": "!X"}\nUMBP')
    assert fuzz(repository, "--replay", path).stdout == "ProfileError: this is not an umbel profile\n"


def test_a_plan_feeds_all_targets_in_turns() -> None:
    rows = plan({"a": 3.0, "b": 1.0}, 10 * BATCH + 1)
    assert sum(count for _, _, count in rows) >= 10 * BATCH + 1
    assert [name for name, _, _ in rows[:4]].count("b") == 1
    assert len({(name, batch) for name, batch, _ in rows}) == len(rows)


def test_the_same_place_gives_the_same_input() -> None:
    made = [mutated(b"one two three", (b"four",), Dice(generator(0, 1, "x", "fuzz"))) for _ in range(2)]
    assert made[0] == made[1]
    assert as_text("\ue000deep 3 0\ue000") == b"[[[1]]]\n"
    assert as_text(["\ue000deep 2 1\ue000", 2]) == b'[\n  {"a":{"a":1}},\n  2\n]\n'


def test_tallies_add_up() -> None:
    one, two = (
        Done(2, 1, 1, 0, 1.0, 0.5, "x", 10, {"read": 1}),
        Done(3, 2, 0, 1, 1.0, 0.7, "y", 5, {"read": 2}),
    )
    one.add(two)
    assert one == Done(5, 3, 1, 1, 2.0, 0.7, "y", 10, {"read": 3})


@pytest.mark.slow
def test_a_hundred_thousand_inputs(repository: Path, tmp_path: Path) -> None:
    ended = fuzz(repository, "--count", 100_000, "--out", tmp_path)
    assert ended.returncode == 0, ended.stdout
