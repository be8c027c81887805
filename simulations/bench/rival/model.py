"""PLoRA's forward in torch: a BERT of transformers whose query and value projections have a bias per person.

    h = (W + s B A) x + b + s B P p

What everybody shares, s B A, is merged into W once, as one would for speed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class People:
    """Whose text each row is, and everybody's private vector.

    Attributes:
        vectors: (users, d_u).
        owner: (batch,) index of each row's user.
    """

    vectors: Tensor = field(default_factory=lambda: torch.zeros(1, 1))
    owner: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64))


class Projection(nn.Module):
    """A merged projection with a personal bias s B P p."""

    def __init__(self, base: nn.Linear, tensors: dict[str, Tensor], scale: float, people: People):
        super().__init__()
        self.weight = nn.Parameter(base.weight + scale * tensors["B"] @ tensors["A"], requires_grad=False)
        self.bias = nn.Parameter(base.bias.clone(), requires_grad=False)
        self.register_buffer("personal", scale * tensors["B"] @ tensors["P"])  # (d_out, d_u)
        self.people = people

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, seq, d_in) to (batch, seq, d_out)."""
        plain = functional.linear(x, self.weight, self.bias)
        rows = functional.linear(self.people.vectors, self.get_buffer("personal"))[self.people.owner]
        return plain + rows.unsqueeze(1)


class PersonalBert(nn.Module):
    """logits = head(mean of the states over tokens), of the encoder with personal projections."""

    def __init__(self, folder: Path):
        super().__init__()
        from transformers import BertModel

        self.encoder: Any = BertModel.from_pretrained(
            folder, attn_implementation="sdpa", add_pooling_layer=False, local_files_only=True
        )
        self.tensors = load_file(folder / "personal.safetensors")
        self.scale = float(json.loads((folder / "personal.json").read_text())["scale"])
        self.requires_grad_(False).eval()

    def personalise(self) -> People:
        """Puts the personal projections in, and returns what says who the people are."""
        people = People(torch.zeros(1, self.size))
        for name, own in self.sites().items():
            attention = self.attention(name)
            role = name.rpartition("_")[2]
            setattr(attention, role, Projection(getattr(attention, role), own, self.scale, people))
        return people

    @torch.no_grad()
    def fold(self, vector: Tensor) -> None:
        """Merges one person into the weights: afterwards the model is as plain as any."""
        for name, own in self.sites().items():
            linear = getattr(self.attention(name), name.rpartition("_")[2])
            linear.weight += self.scale * own["B"] @ own["A"]
            linear.bias += self.scale * own["B"] @ (own["P"] @ vector)

    @property
    def size(self) -> int:
        """Numbers of a private vector."""
        return int(next(iter(self.sites().values()))["P"].shape[1])

    def sites(self) -> dict[str, dict[str, Tensor]]:
        """Returns A, B and P of each projection, by a name such as "layer_0_query"."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            place, _, matrix = name.rpartition(".")
            if place.startswith("layer_"):
                found.setdefault(place, {})[matrix] = tensor
        return found

    def attention(self, name: str) -> Any:
        """Returns the attention that a projection is part of."""
        return self.encoder.encoder.layer[int(name.split("_")[1])].attention.self

    def forward(self, ids: Tensor, mask: Tensor, **more: Any) -> Tensor:
        """Returns logits (batch, labels)."""
        states = self.encoder(input_ids=ids, attention_mask=mask, **more).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1)
        return functional.linear(mean, self.tensors["task.weight"], self.tensors["task.bias"])


def tokenizer(folder: Path) -> Any:
    """Returns transformers' own wrapper of the release's tokenizer."""
    from transformers import PreTrainedTokenizerFast

    wrapper: Any = PreTrainedTokenizerFast
    return wrapper(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")


def encoded(folder: Path, texts: list[str], max_tokens: int) -> tuple[Tensor, Tensor]:
    """Returns ids and mask (batch, seq) of texts."""
    found = tokenizer(folder)(
        texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
    )
    return found["input_ids"], found["attention_mask"]
