"""Many people by PEFT: an adapter each, switched between texts, or named row by row in a mixed batch.

What everybody shares is merged into the base, and a person's s B P p is the bias of a LoRA adapter of rank 1
(`lora_bias`): the smallest adapter that gives the same answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .harness import Work, now_bytes
from .model import PersonalBert, encoded


def _loaded(folder: str, profiles: str, people: int) -> tuple[PersonalBert, Any]:
    """Returns the model, and PEFT's wrapper of its encoder with an adapter for each of so many people."""
    from peft import LoraConfig, PeftModel

    model = PersonalBert(Path(folder))
    model.fold(torch.zeros(model.size))
    roles = LoraConfig(r=1, lora_alpha=1, target_modules=["query", "value"], lora_bias=True)
    vectors = load_file(profiles)["user"][:people]
    wrapped: Any = PeftModel(model.encoder, roles, adapter_name="0")
    for number in range(1, len(vectors)):
        wrapped.add_adapter(str(number), roles)
    _fill(model, wrapped, vectors)
    wrapped.requires_grad_(False).eval()
    model.encoder = wrapped
    return model, wrapped


@torch.no_grad()
def _fill(model: PersonalBert, wrapped: Any, vectors: Tensor) -> None:
    for name, own in model.sites().items():
        layer, role = name.split("_")[1:]
        path = f"base_model.model.encoder.layer.{layer}.attention.self.{role}"
        lora_b = wrapped.get_submodule(path).lora_B
        biases = model.scale * vectors @ (own["B"] @ own["P"]).T  # (users, d_out)
        for number, bias in enumerate(biases):
            lora_b[str(number)].weight.zero_()
            lora_b[str(number)].bias.copy_(bias)


def switched(folder: str, texts: list[str], max_tokens: int, profiles: str) -> tuple[Work, Any]:
    """A text of each person, one after another, `set_adapter` before each."""
    model, wrapped = _loaded(folder, profiles, len(texts))
    ids, mask = encoded(Path(folder), texts, max_tokens)

    def work() -> Tensor:
        found = []
        for number in range(len(texts)):
            wrapped.set_adapter(str(number), inference_mode=True)
            with torch.inference_mode():
                found.append(model(ids[number : number + 1], mask[number : number + 1]))
        return torch.cat(found)

    return work, work().tolist()


def adapter_names(folder: str, texts: list[str], max_tokens: int, profiles: str) -> tuple[Work, Any]:
    """A text of each person in one batch, by `adapter_names`."""
    model, _ = _loaded(folder, profiles, len(texts))
    ids, mask = encoded(Path(folder), texts, max_tokens)
    names = [str(number) for number in range(len(texts))]

    @torch.inference_mode()
    def work() -> Any:
        return model(ids, mask, adapter_names=names)

    return work, work().tolist()


def held(folder: str, texts: list[str], max_tokens: int, profiles: str, people: int) -> tuple[Work, Any]:
    """What the process holds with adapters for so many people, after a prediction: bytes."""
    model, wrapped = _loaded(folder, profiles, people)
    ids, mask = encoded(Path(folder), texts[:1], max_tokens)
    wrapped.set_adapter("0", inference_mode=True)
    with torch.inference_mode():
        model(ids, mask)
    return int, now_bytes()
