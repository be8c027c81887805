"""Steps are heard late on a GPU, at once elsewhere; what is compiled computes the same."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.coordinator.conftest import TinyBackbone
from tests.coordinator.small_training import train_small
from tests.coordinator.training.test_workers import OTHERS, PHA
from torch import nn

from umbel.coordinator.artifacts import MODEL
from umbel.coordinator.training.speed import Steps, compiled, fuse_attention, placed
from umbel.shared.errors import TrainingError

CPU = torch.device("cpu")


def told(loss: float, stop: float = 0.0) -> torch.Tensor:
    return torch.tensor([loss, loss + 1.0, stop])


def test_on_a_processor_each_step_is_heard_at_once() -> None:
    steps, nll = Steps(on_gpu=False), [0.5]
    steps.took(0, told(1.0))
    assert not steps.heard(nll)
    assert nll == [0.5, 2.0]
    with pytest.raises(TrainingError, match=r"no longer finite at step 1\b"):
        steps.took(1, told(float("nan")))


def test_on_a_gpu_steps_are_heard_together_and_all_of_them_when_asked() -> None:
    steps = Steps(on_gpu=True)
    nll: list[float] = []
    for number in range(24):
        steps.took(number, told(float(number), stop=float(number == 3)))
    assert not steps.heard(nll)
    assert nll == []
    assert steps.heard(nll, now=True)
    assert nll == [number + 1.0 for number in range(24)]
    late = Steps(True, " of the adaptation", "adapt_rate")
    late.took(48, told(float("inf")))
    with pytest.raises(TrainingError, match="at step 48 of the adaptation"):
        late.heard(now=True)


def test_a_step_that_was_not_finite_is_named_though_others_followed() -> None:
    steps = Steps(on_gpu=True)
    for number in range(5):
        steps.took(number, told(float("nan") if number >= 2 else 1.0))
    with pytest.raises(TrainingError, match=r"at step 2\b"):
        steps.heard(now=True)


def test_arrays_are_placed_as_they_are() -> None:
    array = np.arange(12).reshape(3, 4)[:, ::2]
    assert placed(array, CPU).tolist() == array.tolist()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when it is imported
def test_nothing_is_compiled_on_a_processor_unless_asked_for() -> None:
    assert compiled(abs, "auto", CPU) is abs
    assert compiled(abs, False, torch.device("cuda")) is abs
    assert compiled(abs, True, CPU) is not abs


def test_attention_stays_plain_on_a_processor() -> None:
    fuse_attention(nn.Linear(1, 1), CPU)  # which has nothing that could be set


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a processor needs a compiler")
@pytest.mark.parametrize("method", [*OTHERS, PHA], ids=lambda method: next(iter(method)))
def test_a_compiled_step_computes_the_same(
    tiny_backbone: TinyBackbone, tmp_path: Path, method: dict[str, Any]
) -> None:
    """5e-5: sums are in another order; where a gradient is next to nothing, AdamW steps by its rounding."""
    for name, wanted in (("compiled", True), ("plain", False)):
        training = {"max_steps": 4, "evaluate_every": 4, "compile": wanted}
        encoder = {"dropout": 0.0}
        folder = tiny_backbone("bert").name
        train_small(folder, tmp_path / name, backbone=encoder, methods=method, training=training)
    ours, theirs = (load_file(tmp_path / name / MODEL) for name in ("compiled", "plain"))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=5e-5, rtol=0, err_msg=name)
