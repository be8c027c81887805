"""The public texts that show what a prototype stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from umbel.coordinator.config import OnboardingConfig
from umbel.coordinator.graphs.parity import open_session
from umbel.coordinator.onboarding.network import Onboarder
from umbel.shared.onboarding import PREFIX, Onboarding, Shown
from umbel.shared.release import TOKENIZER, Manifest
from umbel.shared.text import TextEncoder


@torch.no_grad()
def representatives(
    network: Onboarder, embedding: Tensor, logits: Tensor, count: int
) -> list[list[tuple[int, int]]]:
    """Returns, for each prototype, the texts that it makes a label likeliest of that the model does not.

    Args:
        network: The network.
        embedding: (texts, d) without a profile.
        logits: (texts, labels) without a profile.
        count: How many texts for each, at most.

    Returns:
        (text, label) for each prototype, best first.
    """
    own = logits.unsqueeze(1) + network.judgements(network.retrieve(embedding))
    lift = functional.softmax(own, dim=-1) - functional.softmax(logits, dim=-1).unsqueeze(1)
    best, label = lift.max(-1)  # (texts, prototypes)
    order = best.argsort(dim=0, descending=True, stable=True)[:count]
    return [
        [(row, int(label[row, prototype])) for row in order[:, prototype].tolist()]
        for prototype in range(best.shape[1])
    ]


def shown_anew(
    manifest: Manifest, blobs: Mapping[str, bytes], weights: Mapping[str, np.ndarray[Any, Any]]
) -> Onboarding | None:
    """Returns what a release shows once rounds have changed it: the best of all texts that it showed before.

    No other texts are at hand after rounds, and a text that was shown may be shown again.

    Args:
        manifest: The release as it was.
        blobs: Its graphs and its tokenizer, by name.
        weights: Every weight after the rounds, by name.
    """
    if manifest.onboarding is None:
        return None
    rows = manifest.onboarding.prototypes
    texts = sorted({example.text for row in rows for example in row})
    if not texts:
        return manifest.onboarding
    embedding, logits = _read(manifest, blobs, weights, texts)
    found = representatives(_network(manifest, weights), embedding, logits, max(map(len, rows)))
    return Onboarding(
        tuple(tuple(Shown(texts[text], manifest.labels[label]) for text, label in row) for row in found)
    )


def _read(
    manifest: Manifest,
    blobs: Mapping[str, bytes],
    weights: Mapping[str, np.ndarray[Any, Any]],
    texts: Sequence[str],
) -> tuple[Tensor, Tensor]:
    plain = {name: array for name, array in weights.items() if not name.startswith(PREFIX)}
    session = open_session("predict", blobs["predict.onnx"], plain)
    tokens = TextEncoder(blobs[TOKENIZER], manifest.max_tokens).encode(texts)
    feed = {"input_ids": tokens.ids, "attention_mask": tokens.mask, "owner": np.zeros(len(texts), np.int64)}
    embedding, logits = session.run(["text_embedding", "logits"], {**feed, **manifest.profile.zeros(1)})
    return torch.from_numpy(embedding), torch.from_numpy(logits)


def _network(manifest: Manifest, weights: Mapping[str, np.ndarray[Any, Any]]) -> Onboarder:
    own = {name.removeprefix(PREFIX): a for name, a in weights.items() if name.startswith(PREFIX)}
    sizes = {"prototypes": len(own["prior"]), "code_size": len(own["second"]), "hidden": len(own["first"])}
    config = OnboardingConfig.model_validate(sizes)
    width = own["first"].shape[1]
    network = Onboarder(config, manifest.profile, width, len(manifest.labels), 0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.tensor(own[name]))
    return network
