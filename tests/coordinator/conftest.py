"""Backbones for the coordinator's tests: the real MiniLM, and a tiny random one of each family."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.coordinator.personal import TINY_PLORA, Joint, trained_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from umbel.coordinator.backbone import Backbone, load_backbone
from umbel.coordinator.graphs.joint import export_joint

FAMILIES = ("bert", "roberta", "distilbert", "modernbert")
WORDS = (
    "good",
    "bad",
    "film",
    "book",
    "a",
    "the",
    "is",
    "not",
    "very",
    "slow",
    "tender",
    "we",
    "they",
    "like",
)
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS)

TinyBackbone = Callable[[str], Backbone]


def tiny_config(family: str) -> PreTrainedConfig:
    """Returns a random encoder's config of 2 layers (ModernBERT 3: both kinds of attention), width 32."""
    # Weights five times as large as usual: a random encoder then tells its inputs apart.
    common: dict[str, Any] = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "initializer_range": 0.1}
    usual = {
        **common,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 66,
    }
    if family == "bert":
        return BertConfig(**usual)
    if family == "roberta":
        return RobertaConfig(**usual, bos_token_id=2, eos_token_id=3, type_vocab_size=1)
    if family == "distilbert":
        return DistilBertConfig(
            **common, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=66
        )
    ends = {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    kinds = {"num_hidden_layers": 3, "local_attention": 4, "global_attn_every_n_layers": 2}
    return ModernBertConfig(**{**usual, **ends, **kinds})


def tiny_tokenizer() -> Tokenizer:
    """Returns a word-level tokenizer over `VOCABULARY` that frames a text in [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def write_backbone(folder: Path, config: PreTrainedConfig) -> Path:
    """Writes a random model of a config, and the tiny tokenizer, as the folder of a backbone."""
    with torch.random.fork_rng(), redirect_stderr(io.StringIO()):  # a progress bar
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """On operations this small, a second thread costs more than it brings."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def minilm() -> Backbone:
    """The packaged all-MiniLM-L6-v2."""
    return load_backbone()


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> TinyBackbone:
    """Gives the tiny random backbone of a family, made once and loaded through `load_backbone`."""
    made: dict[str, Backbone] = {}

    def give(family: str) -> Backbone:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = load_backbone(str(write_backbone(folder, tiny_config(family))))
        return made[family]

    return give


@pytest.fixture(scope="session")
def tiny_joint(tiny_backbone: TinyBackbone) -> Joint:
    """The joint graph of a tiny BERT with PLoRA, every shared tensor trainable; exported once."""
    backbone = tiny_backbone("bert")
    model = trained_model(backbone, TINY_PLORA)
    names = tuple(model.shared_names())
    return Joint(backbone, model, names, export_joint(model, names, backbone.shape))
