"""LoRATRF in training: where task vectors start, resuming to the same bits, and the whole way to a device."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.builders import write_devices
from tests.coordinator.conftest import TinyBackbone
from tests.coordinator.small_training import people, train_small
from torch import Tensor

from umbel.coordinator.artifacts import MODEL, rebuild
from umbel.coordinator.graphs.parity import TOLERANCE
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.publish import publish
from umbel.device_client.device import learn_profile
from umbel.simulations.engines import RoundSettings, run_rounds

SMALL: dict[str, Any] = {"rank": 3, "alpha": 6.0, "filter_rank": 2, "beta": 1.5, "shift_size": 4}


@pytest.fixture(scope="module")
def backbone(tiny_backbone: TinyBackbone) -> str:
    return tiny_backbone("bert").name


def alone(**options: Any) -> dict[str, Any]:
    return {"methods": {"loratrf": {**SMALL, **options}}, "trainables": ["task.*", "methods.loratrf.*.A"]}


def xi_of(model: PersonalModel) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if n.startswith("methods.loratrf.xi.")}


def test_training_starts_the_task_vectors_unless_told_otherwise(
    backbone: str, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    """One step at a rate of 1e-6 moves nothing that can be seen."""
    still = {"max_steps": 1, "shared_rate": 1e-6}
    for start in ("texts", "random"):
        trained = train_small(backbone, tmp_path / start, training=still, **alone(start=start))
        found = xi_of(rebuild(trained)[1])
        methods = trained.config.method_configs()
        new = xi_of(build_model(tiny_backbone("bert"), "classification", ("no", "yes"), methods, 0))
        same = [torch.allclose(found[name], new[name], atol=1e-4) for name in found]
        assert same == [start == "random"] * 4


@pytest.mark.parametrize("step", [1, 12])
def test_stopped_and_resumed_to_the_same_bits(backbone: str, tmp_path: Path, step: int) -> None:
    """The checkpoint's xi takes the place of the start that is made again."""

    def stop(phase: str, done: int, *_: object) -> None:
        if phase == "train" and done == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_small(backbone, tmp_path / "stopped", stop, **alone())
    train_small(backbone, tmp_path / "stopped", **alone())
    train_small(backbone, tmp_path / "whole", **alone())
    assert (tmp_path / "stopped" / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()


@pytest.mark.parametrize("private", ["gates", "none"])
def test_alone_it_goes_the_whole_way(backbone: str, tmp_path: Path, private: str) -> None:
    """Also without anything private, as the generic baseline of a comparison."""
    trained = train_small(
        backbone, tmp_path / "t", examples=people(12, 24), recipe={"prior_strength": [0.5, 1.0]},
        training={"max_steps": 60, "shared_rate": 0.02, "private_rate": 0.1}, **alone(private=private),
    )  # fmt: skip
    release = publish(trained, tmp_path / "r")
    assert max(release.manifest.parity.values()) <= TOLERANCE
    trainables = set(release.manifest.trainables) - {"task.weight", "task.bias"}
    assert trainables == {
        f"methods.loratrf.projections.layer_{n}_{role}.A" for n in range(2) for role in ("query", "value")
    }
    likes_bad = people(13, 16)[-16:]
    learned = learn_profile(release, likes_bad, tmp_path / "profile.umbel")
    assert learned.file_bytes == 40 + {"gates": 4, "none": 0}[private]
    assert (learned.nll_personal < learned.nll_generic) == (private != "none")
    reached = run_rounds(
        "serial", release_folder=release.folder, devices_folder=write_devices(tmp_path / "devices", [5, 6]),
        clients_total=2, out=tmp_path / "rounds",
        settings=RoundSettings(
            rounds=1, clients=2, evaluate_clients=2, local_rate=0.5, secure=False
        ),
    )  # fmt: skip
    assert [(record.clients, record.failures) for record in reached.rounds] == [(2, 0)]
