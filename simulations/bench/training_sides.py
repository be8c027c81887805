"""Both sides of `umbel bench training`: the coordinator's trainer, and plain LoRA as one would write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from umbel.coordinator.backbone import load_backbone
from umbel.coordinator.config import CoordinatorConfig
from umbel.coordinator.model import build_model
from umbel.coordinator.training.data import Rows, TrainingData
from umbel.coordinator.training.speed import fuse_attention
from umbel.coordinator.training.step import set_dropout
from umbel.coordinator.training.trainer import Trainer
from umbel.shared.rng import generator
from umbel.shared.text import TokenBatch

LABELS = ("no", "yes")
_RANK, _ALPHA = 16, 32.0  # PLoRA's by default
_RATE = 1e-3
_CLIP = 1.0


@final
@dataclass(frozen=True, slots=True)
class Side:
    """A side that is ready to train.

    Attributes:
        step: Does a step.
        gradients: Returns the loss of the batch and the gradient of everything trained, and changes nothing.
        precision: Of its matrix products.
    """

    step: Callable[[], object]
    gradients: Callable[[], tuple[float, list[Tensor]]]
    precision: str


def batch_of(texts: int, tokens: int, vocabulary: int) -> TrainingData:
    """Returns one batch of random tokens, a user for each two texts."""
    rng = generator(0, 0, "", "bench training")
    ids = rng.integers(1, vocabulary, (texts, tokens))
    users = np.arange(texts) // 2
    rows = Rows(np.arange(texts), users, rng.integers(0, len(LABELS), texts))
    names = tuple(str(user) for user in range(int(users[-1]) + 1))
    return TrainingData(LABELS, names, TokenBatch(ids, np.ones_like(ids)), rows, rows, ())


def ours(
    method: str, backbone: str, device: torch.device, texts: int, tokens: int, scratch: Path, *, fast: bool
) -> Side:
    """Returns the coordinator's trainer.

    Args:
        method: What is trained, with its options by default.
        backbone: Name or folder of the encoder.
        device: Where it is trained.
        texts: Of a batch.
        tokens: Of a text.
        scratch: A folder that it may write to.
        fast: As it trains; otherwise the eager float32 twin.
    """
    precision = _precision(device, fast)
    training = {
        "precision": precision,
        "device": device.type,
        "batch_size": texts,
        "compile": "auto" if fast else False,
        "personalised_dropout": 0.0,
    }
    row = {"backbone": {"name": backbone, "dropout": 0.0}, "methods": {method: {}}, "training": training}
    config = CoordinatorConfig.model_validate(row)
    loaded = load_backbone(backbone)
    data = batch_of(texts, tokens, loaded.shape.vocabulary)
    model = build_model(loaded, "classification", LABELS, config.method_configs(), 0)
    if fast:
        fuse_attention(model.encoder, device)
    trainer = Trainer(model, data, config, scratch, "")
    _stir(trainer.weights)

    def gradients() -> tuple[float, list[Tensor]]:
        loss, found = trainer.gradients(data.train)
        return loss, [found[name].detach().cpu() for name in sorted(found)]

    return Side(lambda: trainer.step(data.train), gradients, precision)


@torch.no_grad()
def _stir(weights: Mapping[str, Tensor]) -> None:
    """Moves what starts at zero off it, so that every gradient is alive."""
    for name, value in weights.items():
        noise = generator(0, 0, "", f"bench training {name}").normal(0.0, 0.02, tuple(value.shape))
        value.add_(torch.from_numpy(noise).to(value))


def _precision(device: torch.device, fast: bool) -> str:
    return "bfloat16" if fast and device.type == "cuda" else "float32"


@final
class _LoRA(nn.Module):
    """W x + b + (alpha / r) B A x."""

    def __init__(self, base: nn.Linear, name: str):
        super().__init__()
        self.base = base
        shapes = ((_RANK, base.in_features), (base.out_features, _RANK))
        made = [
            torch.from_numpy(generator(0, 0, "", f"{name} {part}").normal(0.0, 0.02, shape)).float()
            for part, shape in zip("AB", shapes, strict=True)
        ]
        self.A, self.B = (nn.Parameter(value) for value in made)

    def forward(self, x: Tensor) -> Tensor:
        low: Tensor = x @ self.A.T
        found: Tensor = self.base(x) + (_ALPHA / _RANK) * (low @ self.B.T)
        return found


def plain(
    method: str, backbone: str, device: torch.device, texts: int, tokens: int, scratch: Path, *, fast: bool
) -> Side:
    """Returns plain LoRA on query and value, and a head on the mean state, in a loop; as `ours`."""
    del method, scratch
    precision = _precision(device, fast)
    loaded = load_backbone(backbone)
    encoder: Any = loaded.module.requires_grad_(False).train()
    set_dropout(encoder, 0.0)
    if fast:
        fuse_attention(encoder, device)
    for path, module in list(encoder.named_modules()):
        if path.endswith(("self.query", "self.value")):
            parent = encoder.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], _LoRA(module, path))
    head = nn.Linear(loaded.shape.hidden_size, len(LABELS))
    with torch.no_grad():
        noise = generator(0, 0, "", "head").normal(0.0, 0.02, tuple(head.weight.shape))
        head.weight.copy_(torch.from_numpy(noise))
        head.bias.zero_()
    both = nn.ModuleList([encoder, head]).to(device)
    trained = [parameter for parameter in both.parameters() if parameter.requires_grad]
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(trained, lr=_RATE, foreach=not on_gpu, fused=on_gpu)
    data = batch_of(texts, tokens, loaded.shape.vocabulary)
    ids, mask, labels = (
        torch.from_numpy(array).to(device) for array in (data.tokens.ids, data.tokens.mask, data.train.label)
    )

    def loss_of() -> Tensor:
        context = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
        with context:
            states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(states.dtype)
            logits = head((states * weights).sum(1) / weights.sum(1))
        return functional.cross_entropy(logits.float(), labels)

    def gradients() -> tuple[float, list[Tensor]]:
        loss = loss_of()
        return float(loss.detach()), [g.detach().cpu() for g in torch.autograd.grad(loss, trained)]

    def step() -> None:
        loss = loss_of()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, _CLIP)
        optimizer.step()

    return Side(step, gradients, precision)
