"""A second task in three files: trained, published and used on a device, and nothing else knows of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.builders import random_examples
from tests.coordinator.conftest import tiny_config, write_backbone
from tests.tasks.ordinal import Ordinal

from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.graphs.parity import TOLERANCE
from umbel.coordinator.publish import publish
from umbel.coordinator.tasks import REGISTRY
from umbel.coordinator.train import train
from umbel.device_client.device import learn_profile
from umbel.device_client.prediction import predict_texts


def test_the_documents_code_is_this_very_task(repository: Path) -> None:
    text = (repository / "docs" / "adding_a_task.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert (repository / "tests" / "tasks" / "ordinal.py").read_text(encoding="utf-8") in blocks


def test_its_equation_in_numpy() -> None:
    task = Ordinal(("1", "2", "3"), 4, torch.Generator().manual_seed(0))
    states = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    found = task(torch.tensor(states), torch.tensor(mask)).detach().numpy()
    for row, tokens in enumerate((2, 3)):
        score = states[row, :tokens].mean(0) @ task.weight.detach().numpy()
        np.testing.assert_allclose(found[row], -((score - np.array([-1, 0, 1])) ** 2), rtol=1e-5)


def test_it_goes_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "ordinal", "tests.tasks.ordinal:Ordinal")  # the line of registration
    row = {
        "backbone": {"name": str(write_backbone(tmp_path / "b", tiny_config("bert"))), "max_tokens": 16},
        "task": {"kind": "ordinal", "labels": ["no", "yes"]},
        "methods": {"plora": {"rank": 2, "user_size": 3}},
        "training": {"max_steps": 20, "batch_size": 16},
        "recipe": {"prior_strength": [1.0], "k": [4]},
    }
    examples = [example for n in range(6) for example in random_examples(0, f"user {n}", 20)]
    trained = train(validated(CoordinatorConfig, row, "config"), examples, tmp_path / "t", threads=1)
    release = publish(trained, tmp_path / "r")
    assert release.manifest.task == "ordinal"
    assert max(release.manifest.parity.values()) <= TOLERANCE
    assert {"task.weight", "task.places"} <= set(release.manifest.trainables)
    own = random_examples(0, "somebody new", 6)
    learned = learn_profile(release, own, tmp_path / "profile.umbel")
    assert learned.nll_personal < learned.nll_generic
    found = predict_texts(release, [example.text for example in own], tmp_path / "profile.umbel")
    assert {label for row in found for label in row.probabilities} == {"no", "yes"}
