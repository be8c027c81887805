"""TensorBoard while training runs: each look once, and all of them again after a resumption."""

from pathlib import Path
from typing import Any

import pytest
from tests.coordinator.conftest import TinyBackbone
from tests.coordinator.small_training import train_small

from umbel.coordinator.training.board import FOLDER, Board

KEYS = ("loss", "heldout_loss", "heldout_accuracy")


def look(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step, "heldout_loss": 2 / step, "heldout_accuracy": step / 100}


def read(out: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in the folder, by name, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

    events = event_accumulator.EventAccumulator(str(out / FOLDER))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def expected(curve: list[dict[str, Any]]) -> dict[str, list[tuple[int, Any]]]:
    """float32 is what an event holds."""
    return {key: [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in curve] for key in KEYS}


def test_each_look_is_written_once_and_at_once(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.follow([])
    assert not (tmp_path / FOLDER).exists()
    curve = [look(7)]
    for _ in range(3):  # steps between two looks
        board.follow(curve)
    assert read(tmp_path) == expected(curve)
    curve = [*curve, look(14), look(21)]
    board.follow(curve)
    board.follow(curve)
    assert read(tmp_path) == expected(curve)
    board.close()
    assert read(tmp_path) == expected(curve)


def test_a_board_that_nothing_was_written_to_leaves_nothing(tmp_path: Path) -> None:
    Board(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_new_board_replays_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    """The earlier one had gone further than the checkpoint that training goes on from."""
    first = Board(tmp_path)
    first.follow([look(7), look(14)])
    first.close()
    (tmp_path / FOLDER / "notes.txt").write_text("somebody's own")
    second = Board(tmp_path)
    second.follow([look(7)])
    second.close()
    assert read(tmp_path) == expected([look(7)])
    assert len(list((tmp_path / FOLDER).glob("events.*"))) == 1
    assert (tmp_path / FOLDER / "notes.txt").is_file()


def test_a_resumed_training_shows_every_look_once(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    def stop(_phase: str, done: int, *_: object) -> None:
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_small(tiny_backbone("bert").name, tmp_path, stop)
    assert [step for step, _ in read(tmp_path)["loss"]] == [7, 14]
    trained = train_small(tiny_backbone("bert").name, tmp_path)
    assert [row["step"] for row in trained.report["curve"]] == [7, 14, 21, 24]
    assert read(tmp_path) == expected(trained.report["curve"])
