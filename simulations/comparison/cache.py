"""What of the generic model's encoder nothing personal acts on, computed once per text.

Where methods read the text's embedding alone, that is the whole encoder: a `TextTable` stands for it. Where
they act in its last layers, it is the lower ones.

The states that enter the first personal layer stand in a table with a row per token of every text. An encoder
of the upper layers alone looks its "token ids" up there; for everything else it is an encoder like any other.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from umbel.coordinator.backbone import Backbone
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.training.table import over_embeddings
from umbel.shared.errors import ConfigError
from umbel.shared.text import TokenBatch
from umbel.simulations.comparison.contestant import mixed

_BATCH = 256


@final
class StateTable(nn.Module):
    """Stands for an encoder's embeddings: row number (batch, seq) -> state (batch, seq, d)."""

    def __init__(self, states: Tensor):
        super().__init__()
        self.register_buffer("states", states, persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> StateTable:
        """Copies of a model share the states, which nothing changes."""
        states: Any = self.states
        return StateTable(states).train(self.training)

    def forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        """Looks states up as float32."""
        states: Any = self.states
        found: Tensor = states[input_ids].float()
        return found


@torch.no_grad()
def upper_encoder(
    encoder: nn.Module, tokens: TokenBatch, layers: int, bfloat16: bool
) -> tuple[nn.Module, TokenBatch]:
    """Cuts an encoder's last layers off and computes what enters them for every text.

    Args:
        encoder: A BERT encoder; it is left as it is.
        tokens: Every text.
        layers: How many of its last layers are kept.
        bfloat16: The lower layers run in bfloat16, and the table keeps what they give.

    Returns:
        The upper encoder, and the texts as row numbers of its table.

    Raises:
        ConfigError: The encoder has not so many layers, or is of another family.
    """
    whole: Any = encoder
    stack = getattr(getattr(whole, "encoder", None), "layer", None)
    if stack is None or not hasattr(whole, "embeddings") or not 0 < layers <= len(stack):
        raise ConfigError(
            "personal_layers does not fit the backbone",
            [f"found {layers}; the last layers can be cut off BERT encoders, from 1 to all of them"],
        )
    lengths = tokens.mask.sum(1)
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    lower: Any = copy.deepcopy(encoder).eval()
    lower.encoder.layer = lower.encoder.layer[: len(stack) - layers]
    kind = torch.bfloat16 if bfloat16 else torch.float32
    table = torch.empty(int(lengths.sum()), whole.config.hidden_size, dtype=kind)
    for part in tokens.like_length(_BATCH):
        rows = tokens.rows(part)
        with mixed(bfloat16):
            states = lower(
                input_ids=torch.from_numpy(rows.ids), attention_mask=torch.from_numpy(rows.mask)
            ).last_hidden_state
        for number, own in zip(part, states, strict=True):
            length = int(lengths[number])
            table[int(starts[number]) : int(starts[number]) + length] = own[:length]
    upper: Any = copy.deepcopy(encoder)
    upper.embeddings = StateTable(table)
    upper.encoder.layer = upper.encoder.layer[len(stack) - layers :]
    upper.config = copy.deepcopy(upper.config)
    upper.config.num_hidden_layers = layers
    places = starts[:, None] + np.arange(tokens.ids.shape[1])
    return upper, TokenBatch(np.where(tokens.mask > 0, places, 0), tokens.mask)


def upper_model(
    backbone: Backbone, generic: PersonalModel, tokens: TokenBatch, layers: int, bfloat16: bool
) -> tuple[Backbone, PersonalModel, TokenBatch]:
    """Returns backbone, generic model and texts of the upper layers alone.

    Raises:
        ConfigError: The encoder cannot be cut so.
    """
    encoder, rows = upper_encoder(generic.encoder, tokens, layers, bfloat16)
    shape = replace(backbone.shape, layers=layers, vocabulary=int(tokens.mask.sum()))
    model = PersonalModel(encoder, {}, copy.deepcopy(generic.task))
    return replace(backbone, module=encoder, shape=shape), model.requires_grad_(False).eval(), rows


def text_model(
    backbone: Backbone, generic: PersonalModel, tokens: TokenBatch, bfloat16: bool
) -> tuple[Backbone, PersonalModel, TokenBatch]:
    """Returns backbone, generic model and texts where each text is one "token": its embedding.

    For methods that read nothing else: the encoder then runs once per text instead of once per use.
    """
    found, rows = over_embeddings(generic, tokens, mixed(bfloat16))
    shape = replace(backbone.shape, layers=0, vocabulary=len(tokens))
    model = PersonalModel(found.encoder, {}, copy.deepcopy(generic.task))
    return replace(backbone, module=found.encoder, shape=shape), model.requires_grad_(False).eval(), rows
