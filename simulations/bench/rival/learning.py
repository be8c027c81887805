"""The release's recipe in torch: full-batch AdamW of a private vector, cross-validated as on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .model import People, PersonalBert

_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ROWS = 32


@dataclass
class Support:
    """Examples of one or more people: ids, mask (batch, seq), labels and owner (batch,)."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    owner: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor | slice) -> Support:
        """Returns some examples."""
        return Support(self.ids[index], self.mask[index], self.labels[index], self.owner[index])

    def pieces(self) -> list[Support]:
        """Returns them in pieces, which take less memory at a time."""
        return [self.rows(slice(at, at + _ROWS)) for at in range(0, len(self), _ROWS)]


class Adam:
    """AdamW over (users, d_u) as the recipe wants it: one second moment per user, a rate that falls to 0."""

    def __init__(self, recipe: dict[str, Any], vectors: Tensor):
        self.recipe, self.count = recipe, 0
        self.vectors, self.origin = vectors, vectors.clone()
        self.mean, self.square = torch.zeros_like(vectors), torch.zeros(len(vectors), 1)

    def step(self, gradient: Tensor) -> None:
        """Moves the vectors, in place."""
        recipe = self.recipe
        left = max(0.0, 1.0 - self.count / max(recipe["steps"], 1))
        self.count += 1
        gradient = gradient + recipe["prior_strength"] * (self.vectors - self.origin)
        self.mean.lerp_(gradient, 1 - recipe["beta1"])
        self.square.lerp_(gradient.square().mean(1, keepdim=True), 1 - recipe["beta2"])
        mean = self.mean / (1 - recipe["beta1"] ** self.count)
        root = (self.square / (1 - recipe["beta2"] ** self.count)).sqrt() + recipe["epsilon"]
        change = mean / root + recipe["weight_decay"] * self.vectors
        self.vectors -= recipe["learning_rate"] * left * change


def gradient_of(
    model: PersonalBert, people: People, vectors: Tensor, support: Support
) -> tuple[float, Tensor]:
    """Returns the sum of nll and its gradient by the vectors (users, d_u)."""
    total, gradient = 0.0, torch.zeros_like(vectors)
    for piece in support.pieces():
        asked = vectors.detach().requires_grad_()
        people.vectors, people.owner = asked, piece.owner
        nll = functional.cross_entropy(model(piece.ids, piece.mask), piece.labels, reduction="sum")
        gradient += torch.autograd.grad(nll, asked)[0]
        total += float(nll.detach())
    return total, gradient


def learned(
    model: PersonalBert, people: People, support: Support, users: int, recipe: dict[str, Any]
) -> tuple[Tensor, float]:
    """Returns the vectors (users, d_u), each learned from its owner's examples, and the first mean nll."""
    vectors = torch.zeros(users, model.size)
    optimizer, first = Adam(recipe, vectors), 0.0
    for number in range(recipe["steps"]):
        nll, gradient = gradient_of(model, people, vectors, support)
        first = nll / len(support) if number == 0 else first
        optimizer.step(gradient)
    return vectors, first


@torch.inference_mode()
def nll_of(model: PersonalBert, people: People, vectors: Tensor, support: Support) -> Tensor:
    """Returns each example's nll (batch,)."""
    found = []
    for piece in support.pieces():
        people.vectors, people.owner = vectors, piece.owner
        found.append(functional.cross_entropy(model(piece.ids, piece.mask), piece.labels, reduction="none"))
    return torch.cat(found)


def strength_of(model: PersonalBert, people: People, support: Support, recipe: dict[str, Any]) -> float:
    """Returns the share of a profile that its owner's held-out examples bear out."""
    keys = [tuple(row[mask > 0].tolist()) for row, mask in zip(support.ids, support.mask, strict=True)]
    # As bytes, so that texts are split among folds in the order in which a device splits them.
    order = sorted({torch.tensor(key).numpy().tobytes() for key in keys})
    place = torch.tensor([order.index(torch.tensor(key).numpy().tobytes()) for key in keys])
    folds = min(recipe["folds"], len(order))
    if folds < 2:
        return 1.0
    fold = place % folds
    parts = [support.rows(fold != each) for each in range(folds)]
    rest = Support(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.mask for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)]),
    )
    vectors, _ = learned(model, people, rest, folds, recipe)
    asked = Support(support.ids, support.mask, support.labels, fold)
    nll = torch.stack([nll_of(model, people, (vectors * s).half().float(), asked).sum() for s in _STRENGTHS])
    strengths = torch.tensor(_STRENGTHS, dtype=torch.float64)
    weights = torch.softmax(recipe["trust"] * strengths - nll.double(), 0)
    return float((weights * strengths).sum())
