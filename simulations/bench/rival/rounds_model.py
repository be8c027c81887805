"""The model of the rounds in torch: what is shared is trained, and a person's private vector goes along.

PLoRA:         h = W x + b + s B (A x + P p)
headbias:      z = T mean(states) + t + s p
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from .model import People


class LowRank(nn.Module):
    """A projection with the shared update s B A, of which A is trained, and a person's bias s B P p."""

    def __init__(self, base: nn.Module, tensors: dict[str, Tensor], scale: float, people: People):
        super().__init__()
        self.base = base
        self.A = nn.Parameter(tensors["A"])  # (r, d_in)
        self.register_buffer("P", tensors["P"])  # (r, d_u)
        self.register_buffer("B", scale * tensors["B"])  # (d_out, r)
        self.people = people

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, seq, d_in) to (batch, seq, d_out)."""
        personal = functional.linear(self.people.vectors, self.get_buffer("P"))[self.people.owner]
        low = functional.linear(x, self.A) + personal.unsqueeze(1)  # (batch, seq, r)
        h: Tensor = self.base(x)
        return h + functional.linear(low, self.get_buffer("B"))


class PersonalModel(nn.Module):
    """As pfl wants a model: `loss` and `metrics` of a user's data, which is unpacked into their arguments.

    A user's data are ids, mask (batch, seq), labels and owner (batch,); or, where nothing in the encoder is
    personal or trained, what the texts were read as (batch, d), labels and owner.

    Attributes:
        people: Whose text each row is, and the vectors (users, d_u).
        trained: Parameters that rounds train, by umbel's names.
        reads_once: Whether texts are read once, and not in every step.
    """

    def __init__(self, folder: Path, trained: list[str]):
        super().__init__()
        from transformers import BertModel

        self.encoder: Any = BertModel.from_pretrained(
            folder, attn_implementation="sdpa", add_pooling_layer=False, local_files_only=True
        )
        told = json.loads((folder / "personal.json").read_text())
        self.scale, self.people = float(told["scale"]), People()
        tensors = load_file(folder / "personal.safetensors")
        self.weight = nn.Parameter(tensors["task.weight"])
        self.bias = nn.Parameter(tensors["task.bias"])
        places = {"task.weight": self.weight, "task.bias": self.bias}
        self.reads_once = told["method"] == "headbias"
        if not self.reads_once:
            places |= self._low_rank(tensors)
        self.size = len(tensors["task.bias"]) if self.reads_once else int(tensors["layer_0_query.P"].shape[1])
        self.eval().requires_grad_(False)
        self.trained = {name: places[name] for name in trained}
        self.train_shared(True)

    def _low_rank(self, tensors: dict[str, Tensor]) -> dict[str, nn.Parameter]:
        found = {}
        for place in {name.rpartition(".")[0] for name in tensors if name.startswith("layer_")}:
            _, number, role = place.split("_")
            attention = self.encoder.encoder.layer[int(number)].attention.self
            own = {matrix: tensors[f"{place}.{matrix}"] for matrix in "ABP"}
            projection = LowRank(getattr(attention, role), own, self.scale, self.people)
            setattr(attention, role, projection)
            found[f"{place}.A"] = projection.A
        return found

    def train_shared(self, wanted: bool) -> None:
        """Says whether the shared part is being trained."""
        for parameter in self.trained.values():
            parameter.requires_grad_(wanted)

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the mean state over the tokens: (batch, d)."""
        states: Tensor = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)

    def nll(self, *data: Tensor) -> Tensor:
        """Returns the sum of nll over a user's data."""
        *texts, labels, owner = data
        self.people.owner = owner
        mean = texts[0] if self.reads_once else self.read(*texts)
        logits = functional.linear(mean, self.weight, self.bias)
        if self.reads_once:
            logits = logits + self.scale * self.people.vectors[owner]
        return functional.cross_entropy(logits, labels, reduction="sum")

    def loss(self, *data: Tensor) -> Tensor:
        """Returns the mean nll, which is trained."""
        return self.nll(*data) / len(data[-1])

    @torch.no_grad()
    def metrics(self, *data: Tensor) -> dict[str, Any]:
        """Returns nothing: nothing is evaluated in the rounds that are timed."""
        del data
        return {}
