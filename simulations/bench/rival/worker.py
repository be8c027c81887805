"""The rival's work that is timed in a running process: python -m rival.worker THREADS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .harness import Work, serve
from .learning import Adam, Support, gradient_of
from .model import PersonalBert, encoded


def predict(folder: str, texts: list[str], max_tokens: int, profiles: str) -> tuple[Work, Any]:
    """One person's texts in one batch, the person merged into the weights."""
    model = PersonalBert(Path(folder))
    model.fold(load_file(profiles)["user"][0])
    ids, mask = encoded(Path(folder), texts, max_tokens)

    @torch.inference_mode()
    def work() -> Any:
        return model(ids, mask)

    return work, work().tolist()


def mixed(folder: str, texts: list[str], max_tokens: int, profiles: str) -> tuple[Work, Any]:
    """A text of each of many people in one batch, by plain torch: a bias per row."""
    model = PersonalBert(Path(folder))
    people = model.personalise()
    ids, mask = encoded(Path(folder), texts, max_tokens)
    vectors, owner = load_file(profiles)["user"], torch.arange(len(texts))

    @torch.inference_mode()
    def work() -> Any:
        people.vectors, people.owner = vectors, owner
        return model(ids, mask)

    return work, work().tolist()


def step(
    folder: str, texts: list[str], max_tokens: int, labels: list[int], recipe: dict[str, Any]
) -> tuple[Work, Any]:
    """One step of learning: the gradient of all examples, and AdamW."""
    model = PersonalBert(Path(folder))
    people = model.personalise()
    ids, mask = encoded(Path(folder), texts, max_tokens)
    support = Support(ids, mask, torch.tensor(labels), torch.zeros(len(labels), dtype=torch.int64))
    optimizer = Adam(recipe, torch.zeros(1, model.size))

    def work() -> None:
        _, gradient = gradient_of(model, people, optimizer.vectors, support)
        optimizer.step(gradient)

    nll, gradient = gradient_of(model, people, torch.zeros(1, model.size), support)
    return work, [[nll], gradient.flatten().tolist()]


def main() -> None:
    """Serves."""
    from .adapters import adapter_names, held, switched

    torch.set_num_threads(int(sys.argv[1]))
    serve(
        {
            "predict": predict,
            "mixed": mixed,
            "step": step,
            "switched": switched,
            "adapter_names": adapter_names,
            "held": held,
        }
    )


if __name__ == "__main__":
    main()
