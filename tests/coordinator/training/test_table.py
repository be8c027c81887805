"""A table of embeddings trains what the encoder would, which is its slow twin."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.builders import EMBEDDED
from tests.coordinator.conftest import TinyBackbone
from tests.coordinator.small_training import people, train_small

from umbel.coordinator.artifacts import MODEL, rebuild
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.training.table import TextTable
from umbel.shared.text import TextEncoder

NETWORK = {"steps": 4, "warm_steps": 3, "prototypes": 4, "code_size": 6, "hidden": 8, "users": 3, "shown": 0}


def trained(folder: str, out: Path, **changes: Any) -> Any:
    backbone = {"train": "none", **changes.pop("backbone", {})}
    return train_small(folder, out, methods=EMBEDDED, backbone=backbone, trainables=["task.*"], **changes)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[TextTable]:
    """The tables that were made."""
    made: list[TextTable] = []
    init: Any = TextTable.__init__

    def noted(self: TextTable, *rest: Any) -> None:
        init(self, *rest)
        made.append(self)

    monkeypatch.setattr(TextTable, "__init__", noted)
    return made


def test_training_over_a_table_is_training_over_the_encoder(
    tiny_backbone: TinyBackbone, tmp_path: Path, tables: list[TextTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_backbone("bert").name
    seen: list[str] = []
    fast = trained(
        folder,
        tmp_path / "fast",
        backbone={"dropout": 0.0},
        onboarding=NETWORK,
        on_progress=lambda phase, *_: seen.append(phase),
    )
    assert len(tables) == 1
    assert "read the texts" in seen
    monkeypatch.setattr(PersonalModel, "acts_on_embeddings", lambda _: False)
    slow = trained(folder, tmp_path / "slow", backbone={"dropout": 0.0}, onboarding=NETWORK)
    assert len(tables) == 1
    assert fast.recipe == slow.recipe
    found, wanted = (load_file(tmp_path / name / MODEL) for name in ("fast", "slow"))
    assert found.keys() == wanted.keys()
    assert not any(name.startswith("encoder.") for name in found)
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-4, msg=name)


def test_an_encoder_that_is_trained_or_drops_out_stays(
    tiny_backbone: TinyBackbone, tmp_path: Path, tables: list[TextTable]
) -> None:
    folder = tiny_backbone("bert").name
    trained(folder, tmp_path / "trained", backbone={"train": "top:1"})
    trained(folder, tmp_path / "dropout", backbone={"dropout": 0.1})
    train_small(folder, tmp_path / "inside", backbone={"train": "none"})
    assert not tables


def test_an_adapted_encoder_is_read_as_it_was_adapted(
    tiny_backbone: TinyBackbone, tmp_path: Path, tables: list[TextTable]
) -> None:
    folder = tiny_backbone("bert").name
    own = {"adapt_steps": 6, "head": "adapted"}
    made = trained(folder, tmp_path / "out", backbone={"train": "all"}, training=own)
    assert len(tables) == 1
    assert any(name.startswith("encoder.") for name in made.tensors)
    model = rebuild(made)[1]
    texts = list(dict.fromkeys(example.text for example in people()))
    encoder = TextEncoder(tiny_backbone("bert").tokenizer_json, 16).encode(texts)
    ids, mask = torch.from_numpy(encoder.ids), torch.from_numpy(encoder.mask)
    with torch.no_grad():
        _, embedding = model.read(ids, mask, model.nobody(mask))
    torch.testing.assert_close(tables[0].table.detach(), embedding, rtol=1e-4, atol=1e-5)
