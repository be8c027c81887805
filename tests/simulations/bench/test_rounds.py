"""The sides of the simulation bench do the same rounds; what pfl-research runs is checked here without it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from umbel.device_client.weights import load_weights
from umbel.shared.messages import clipped
from umbel.simulations.bench import simulation_bench
from umbel.simulations.bench.ceilings import Ceilings
from umbel.simulations.bench.encoders import backbone_name
from umbel.simulations.bench.handed import encoded_people, handed
from umbel.simulations.bench.plain_loop import TorchEngine, run_plain
from umbel.simulations.bench.rival.learning import Adam
from umbel.simulations.bench.rival.rounds_model import PersonalModel
from umbel.simulations.bench.rows import BenchError, Sample
from umbel.simulations.bench.sides import Sides
from umbel.simulations.bench.simulation_bench import QUICK, Reached, Rounds, as_new, check_reached
from umbel.simulations.bench.staging import plain_name
from umbel.simulations.engines import run_rounds

# Two shared steps of batches that are not all examples: so minibatches and dropout matter.
SETTINGS = dataclasses.replace(QUICK.settings(), local_steps=2, batch_size=4, clip=0.05)


@pytest.fixture(scope="module", params=["plora", "headbias"])
def rounds(request: pytest.FixtureRequest, sides: Sides) -> Rounds:
    return Rounds(sides, "tiny", request.param, QUICK)


@pytest.fixture(scope="module")
def reached(rounds: Rounds, tmp_path_factory: pytest.TempPathFactory) -> Any:
    as_new(rounds.devices)
    return run_rounds(
        "cohort",
        release_folder=rounds.release.folder,
        devices_folder=rounds.devices,
        clients_total=QUICK.people,
        settings=SETTINGS,
        out=tmp_path_factory.mktemp("rounds"),
    ).trainables


def federated(model: PersonalModel, drawn: Any, settings: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Federated averaging with a private vector, person by person and step by step."""
    recipe = settings.recipe.as_json()
    for clients, rows, owner in zip(drawn["chosen"], drawn["rows"], drawn["owner"], strict=True):
        first = {name: own.detach().numpy().copy() for name, own in model.trained.items()}
        total = {name: np.zeros_like(own) for name, own in first.items()}
        for client, index, whose in zip(clients, rows, owner, strict=True):
            ids, mask, labels = (torch.from_numpy(drawn[name][client]) for name in ("ids", "mask", "labels"))
            texts = [model.read(ids, mask).detach()] if model.reads_once else [ids, mask]
            vectors = torch.zeros(1, model.size)
            optimizer = Adam(recipe, vectors)
            for _ in range(recipe["steps"]):
                model.people.vectors = vectors.clone().requires_grad_()
                nll = model.nll(*texts, labels, torch.zeros_like(labels))
                optimizer.step(torch.autograd.grad(nll, model.people.vectors)[0])
            model.people.vectors = torch.cat([torch.zeros_like(vectors), vectors.half().float()])
            for batch in np.split(np.arange(len(index)), settings.local_steps):
                own = torch.from_numpy(index[batch])
                loss = model.loss(*(part[own] for part in texts), labels[own], torch.from_numpy(whose[batch]))
                found = torch.autograd.grad(loss, list(model.trained.values()))
                for parameter, gradient in zip(model.trained.values(), found, strict=True):
                    parameter.data -= settings.local_rate * gradient
            change = {name: own.detach().numpy() - first[name] for name, own in model.trained.items()}
            for name, value in clipped(change, settings.clip).items():
                total[name] += value
            for name, parameter in model.trained.items():
                parameter.data = torch.from_numpy(first[name].copy())
        for name, parameter in model.trained.items():
            parameter.data += torch.from_numpy(settings.server_rate * total[name] / len(clients))
    return {name: own.detach().numpy() for name, own in model.trained.items()}


def test_the_rivals_model_reaches_the_same_with_what_it_is_handed(rounds: Rounds, reached: Any) -> None:
    """Within 2e-6: float32, whose sums are in another order, over two rounds."""
    people = encoded_people(rounds.release, rounds.devices, QUICK.people)
    drawn = handed(rounds.release, people, SETTINGS)
    assert drawn["rows"].shape == drawn["owner"].shape == (2, 6, 2 * 4)
    assert 0 < drawn["owner"].mean() < 1
    names = [plain_name(name) for name in rounds.release.manifest.trainables]
    model = PersonalModel(rounds.sides.staged("tiny", rounds.method), names)
    found = federated(model, drawn, SETTINGS)
    assert len(found) == len(reached)
    for name, value in reached.items():
        np.testing.assert_allclose(found[plain_name(name)], value, atol=2e-6)


def test_the_plain_loop_reaches_the_same(rounds: Rounds, reached: Any) -> None:
    backbone = backbone_name("tiny", rounds.sides.folder / "encoders")
    engine = TorchEngine(rounds.release, backbone, rounds.method, 1)
    people = encoded_people(rounds.release, rounds.devices, QUICK.people)
    seconds, found = run_plain(engine, people, SETTINGS)
    assert len(seconds) == SETTINGS.rounds
    for name, value in reached.items():
        np.testing.assert_allclose(found[name], value, atol=2e-6)


def test_a_side_that_leaves_a_tensor_alone_or_goes_another_way_is_found_out(
    rounds: Rounds, reached: Any
) -> None:
    first = load_weights(rounds.release)
    ours = Reached(Sample((1.0,)), 1, reached)
    check_reached({"cohort": ours, "plain": ours}, first)
    for name, value in reached.items():
        if np.abs(value - first[name]).max() < 1e-6:
            continue  # it has hardly moved
        for wrong in (first[name], value + 2e-5, np.full_like(value, np.nan)):
            other = Reached(Sample((1.0,)), 1, {**reached, name: wrong})
            with pytest.raises(BenchError, match="reach other tensors") as error:
                check_reached({"cohort": ours, "plain": other}, first)
            assert name in error.value.problems[0]


def test_what_a_side_leaves_in_homes_is_not_there_for_the_next(rounds: Rounds, reached: Any) -> None:
    def left() -> list[Path]:
        return list(rounds.devices.glob("*.table"))

    assert left()
    as_new(rounds.devices)
    assert not left()


@pytest.mark.slow
def test_both_sides_compute_where_a_gpu_is_asked_for(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU runs here on the CPU: by torch, in bfloat16, also in Flower's processes."""
    settings = dataclasses.replace(sides.settings, device="cuda", quick=True)
    monkeypatch.setattr(sides, "settings", settings)
    monkeypatch.setattr(simulation_bench, "_ON_GPU", "torch:cpu:bfloat16")
    monkeypatch.setattr(simulation_bench, "measured_ceilings", lambda threads, device: Ceilings(1e12, 1e11))
    rows = simulation_bench.rounds_of("plora")(sides, "tiny")
    assert [row.part for row in rows][:1] == ["a round"]
    assert {row.against for row in rows[:1]} == {simulation_bench.RIVALS["flower"]}
    orders = sides.place("orders").glob("rounds-tiny-plora-*.json")
    told = {json.loads(path.read_text())["side"]: json.loads(path.read_text())["compute"] for path in orders}
    assert told["cohort"] == told["flower"] == "torch:cpu:bfloat16"
