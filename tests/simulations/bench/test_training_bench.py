"""`umbel bench training`: what is compared is the same work, and what is counted is right."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from umbel.shared.errors import ConfigError
from umbel.simulations.bench.commands import app
from umbel.simulations.bench.counted import Counted
from umbel.simulations.bench.encoders import TINY, backbone_name
from umbel.simulations.bench.rows import BenchError
from umbel.simulations.bench.sides import Sides
from umbel.simulations.bench.training_bench import METHODS, check_twin
from umbel.simulations.bench.training_sides import ours, plain

CPU = torch.device("cpu")


def test_a_step_is_measured_by_the_command(sides: Sides) -> None:
    words = ["training", "--quick", "--method", "loratrf", "--threads", "1", "--json"]
    result = CliRunner().invoke(app, [*words, "--out", str(sides.folder)])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["part"] for row in rows] == [
        "a training step",
        "peak memory",
        "share of the matmul ceiling",
        "share of the roofline",
    ]
    assert all(row["ratio"] > 0 and row["bound"] is None for row in rows)
    assert rows[3]["ratio"] >= rows[2]["ratio"]


@pytest.mark.parametrize("command", ["training", "simulation"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_made(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [command, "--device", "cuda", "--out", str(tmp_path / "run")])
    assert isinstance(result.exception, ConfigError)
    assert "torch sees no GPU" in str(result.exception)
    assert not (tmp_path / "run").exists()
    result = CliRunner().invoke(app, [command, "--device", "tpu"])
    assert isinstance(result.exception, ConfigError)


@pytest.mark.parametrize("method", [*METHODS, "lora"])
def test_each_side_has_a_gradient_for_all_that_it_trains(sides: Sides, tmp_path: Path, method: str) -> None:
    backbone = backbone_name(TINY, sides.folder / "encoders")
    make = plain if method == "lora" else ours
    fast, twin = (make(method, backbone, CPU, 6, 9, tmp_path, fast=own) for own in (True, False))
    (loss, found), (other, wanted) = fast.gradients(), twin.gradients()
    assert loss == other
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(bool(gradient.any()) for gradient in found)
    fast.step()
    assert fast.gradients()[0] < loss + 1e-3
    assert fast.gradients()[0] != loss


def test_another_gradient_is_refused() -> None:
    check_twin("PLoRA", {"precision": "bfloat16", "loss": 0.01, "gradients": 0.02})
    with pytest.raises(BenchError, match="not that of its eager float32 twin") as error:
        check_twin("PLoRA", {"precision": "float32", "loss": 0.01, "gradients": float("nan")})
    assert len(error.value.problems) == 2


def test_flop_and_bytes_of_a_product_and_its_gradient() -> None:
    """(4, 8) @ (8, 16): 2 * 4 * 8 * 16 FLOP, and as many again for each of two gradients; views are free."""
    a, b = torch.ones(4, 8, requires_grad=True), torch.ones(8, 16, requires_grad=True)
    with Counted() as forward:
        product = a.detach() @ b.detach().view(8, 16)
    assert forward.flop == 2 * 4 * 8 * 16
    assert forward.bytes == 4 * (4 * 8 + 8 * 16 + 4 * 16)
    assert product.shape == (4, 16)
    with Counted() as both:
        torch.autograd.backward((a @ b).sum())
    assert both.flop == 3 * forward.flop
