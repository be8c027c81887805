"""Several processes train as one does: each step is the same up to rounding; one writes, all can go on."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.coordinator.conftest import TinyBackbone
from tests.coordinator.small_training import train_small

from umbel.coordinator.artifacts import DESCRIPTION, MODEL
from umbel.coordinator.training.checkpoint import CHECKPOINT
from umbel.coordinator.training.trainer import METRICS
from umbel.coordinator.training.workers import ALONE, Workers, joined
from umbel.shared.errors import TrainingError

ROOT = Path(__file__).parents[3]
SAME: dict[str, Any] = {"backbone": {"dropout": 0.0}}
"""Without dropout: workers draw masks of their own for their own rows."""
PHA: dict[str, Any] = {"pha": {"width": 3, "prototype_size": 5, "layer_size": 4, "hidden": 6, "code_size": 4}}

OTHERS: list[dict[str, Any]] = [
    {"plora": {"rank": 3, "user_size": 5}},
    {"loratrf": {"rank": 3}},
    {"lopa": {"rows": 2}},
    {"xpeft": {"mask": "soft"}},  # by rounding, a hard mask may choose another adapter: a jump
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def start(
    backbone: str, out: Path, changes: Mapping[str, Any], rank: int, port: int
) -> subprocess.Popen[str]:
    environment = {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    code = (
        "import json, sys; from pathlib import Path\n"
        "from tests.coordinator.small_training import train_small\n"
        "def tell(phase, done, total, words): print(phase, done, flush=True)\n"
        "train_small(sys.argv[1], Path(sys.argv[2]), tell, **json.loads(sys.argv[3]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, backbone, str(out), json.dumps(dict(changes))],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def two(backbone: str, out: Path, *changes: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Trains with two workers, each with its own changes; returns exit codes and what they said."""
    port = free_port()
    children = [start(backbone, out, own, rank, port) for rank, own in enumerate(changes)]
    try:
        return [(child.wait(timeout=120), (child.communicate()[1])) for child in children]
    finally:
        for child in children:
            child.kill()


def assert_nearly_the_same(found: Path, wanted: Path, least: float = 1e-5) -> None:
    """1e-5: the two sides add a batch's gradients in another order; AdamW divides by their size."""
    ours, theirs = load_file(found / MODEL), load_file(wanted / MODEL)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=least, rtol=0, err_msg=name)
    rows = [[json.loads(line) for line in (f / METRICS).read_text().splitlines()] for f in (found, wanted)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for own, other in zip(*rows, strict=True):
        np.testing.assert_allclose(list(own.values()), list(other.values()), atol=1e-4)
    assert {path.name for path in found.iterdir()} == {path.name for path in wanted.iterdir()}


@pytest.fixture(scope="module")
def backbone(tiny_backbone: TinyBackbone) -> str:
    return tiny_backbone("bert").name


def test_two_workers_reach_what_one_reaches(backbone: str, tmp_path: Path) -> None:
    """Of 113 examples in batches of 15, shares are ragged, and the last batch of an epoch is smaller.

    PHA's terms compare rows of a batch with each other, also of different workers.
    """
    training = {"max_steps": 10, "evaluate_every": 5, "batch_size": 15}
    changes: dict[str, Any] = {**SAME, "methods": PHA, "training": training}
    found = two(backbone, tmp_path / "two", changes, changes)
    assert [code for code, _ in found] == [0, 0], found
    train_small(backbone, tmp_path / "one", **changes)
    assert_nearly_the_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHERS, ids=lambda method: next(iter(method)))
@pytest.mark.parametrize("adapt_steps", [0, 6])
def test_two_workers_with_other_methods_and_an_adaptation(
    backbone: str, tmp_path: Path, method: dict[str, Any], adapt_steps: int
) -> None:
    """With an adaptation 5e-5: where a gradient is next to nothing, AdamW makes a step of its rounding."""
    training = {"batch_size": 13, "adapt_steps": adapt_steps, "max_steps": 10, "evaluate_every": 5}
    encoder = {"dropout": 0.0, "train": "all" if adapt_steps else "none"}
    changes: dict[str, Any] = {"backbone": encoder, "methods": method, "training": training}
    found = two(backbone, tmp_path / "two", changes, changes)
    assert [code for code, _ in found] == [0, 0], found
    train_small(backbone, tmp_path / "one", **changes)
    assert_nearly_the_same(tmp_path / "two", tmp_path / "one", 5e-5 if adapt_steps else 1e-5)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_other_and_both_go_on(backbone: str, tmp_path: Path) -> None:
    """Killed in the middle, the other says so; then both go on from the checkpoint, to the same bits."""
    training = {"max_steps": 40, "evaluate_every": 10, "checkpoint_every": 5}
    changes: dict[str, Any] = {**SAME, "training": training}
    port = free_port()
    first, second = (start(backbone, tmp_path / "killed", changes, rank, port) for rank in range(2))
    try:
        assert first.stdout is not None
        next(line for line in first.stdout if line.strip() == "train 7")
        second.kill()
        words = first.communicate(timeout=120)[1]
        assert first.returncode != 0
        assert "another worker of this training has ended" in words
    finally:
        first.kill()
        second.kill()
        second.communicate()
    assert (tmp_path / "killed" / CHECKPOINT).is_file()
    assert not (tmp_path / "killed" / DESCRIPTION).exists()
    for folder in ("killed", "whole"):
        assert [code for code, _ in two(backbone, tmp_path / folder, changes, changes)] == [0, 0]
    for file in (MODEL, METRICS, DESCRIPTION):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_workers_of_different_trainings_are_refused(backbone: str, tmp_path: Path) -> None:
    found = two(backbone, tmp_path, SAME, {**SAME, "training": {"clip_norm": 0.5}})
    for code, words in found:
        assert code != 0
        assert "the workers of this training do not have the same training (its fingerprint)" in words
    assert not (tmp_path / DESCRIPTION).exists()


def test_shares_are_each_row_once_and_weigh_one() -> None:
    for size in (2, 3, 7, 64):
        shares = [Workers(rank, 2).share(size) for rank in range(2)]
        assert sorted(np.concatenate([share.rows for share in shares])) == list(range(size))
        assert sum(share.weight for share in shares) == pytest.approx(1.0)
    few = [Workers(rank, 3).share(2) for rank in range(3)]
    assert all(list(share.rows) == [0, 1] and share.everyone is None for share in few)
    assert sum(share.weight for share in few) == pytest.approx(1.0)


def test_alone_nothing_is_sent() -> None:
    value = torch.ones(2)
    ALONE.add_up([value])
    ALONE.copy_from_first({"value": value})
    ALONE.agree("anything", "x")
    assert ALONE.from_first("own") == "own"
    assert value.tolist() == [1.0, 1.0]


def test_an_environment_that_is_not_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "7")
    with pytest.raises(TrainingError, match="do not name the workers"), joined(on_gpu=False):
        pass
