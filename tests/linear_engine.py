"""An engine of a few lines of numpy in place of the graphs: softmax regression with a private bias.

    logits = W count(x) + b + p_u

W and b are the trainable shared tensors, p_u is private. What is around the graphs is tested with it:
exactly, fast, and in an environment without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from umbel.device_client.engine import Engine
from umbel.shared.profile import FloatArray, ProfileSpec, TensorSpec
from umbel.shared.recipe import LearningRecipe
from umbel.shared.release import Manifest, Release
from umbel.shared.text import IntArray, TokenBatch

LABELS = ("no", "yes")
WORDS = ("good", "bad", "film", "book", "slow")
PRIVATE = "user.bias"
SHAPES: Mapping[str, tuple[int, ...]] = {"head.weight": (2, len(WORDS)), "head.bias": (2,)}

Arrays = Mapping[str, FloatArray]


class LinearEngine:
    """Has what umbel.device_client.engine.Engine has."""

    embedding_size = len(WORDS)
    embeds = False
    precision, compute = "float32", "onnxruntime"

    def __init__(self, recipe: LearningRecipe | None = None, *, onboards: bool = False) -> None:
        self.onboards = onboards
        manifest = Manifest(
            parent=None,
            task="classification",
            labels=LABELS,
            backbone={"name": "linear", "family": "none", "sha256": "0" * 64},
            methods={},
            max_tokens=8,
            profile=ProfileSpec((TensorSpec(PRIVATE, (2,)),)),
            recipe=recipe or LearningRecipe(steps=5),
            trainables=SHAPES,
            parity={},
            blobs={},
        )
        self.release = Release(Path("nowhere"), manifest, manifest.release_id)
        self.labels = LABELS

    def trainables(self) -> dict[str, FloatArray]:
        return {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        rows = [[WORDS.index(word) + 1 for word in text.split()] for text in texts]
        width = max([2, *(len(row) for row in rows)])
        ids = np.array([row + [0] * (width - len(row)) for row in rows], np.int64).reshape(-1, width)
        return TokenBatch(ids, (ids > 0).astype(np.int64))

    def predict(self, tokens: TokenBatch, owner: IntArray, profile: Arrays, shared: Arrays) -> FloatArray:
        logits = _counts(tokens) @ shared["head.weight"].T + shared["head.bias"] + profile[PRIVATE][owner]
        return logits.astype(np.float32)

    def read(self, tokens: TokenBatch, shared: Arrays) -> tuple[FloatArray, FloatArray]:
        return np.zeros((len(tokens), 2), np.float32), _counts(tokens)

    def onboard(
        self,
        logits: FloatArray,
        embedding: FloatArray,
        labels: IntArray,
        owner: IntArray,
        users: int,
        shared: Arrays,
    ) -> tuple[dict[str, FloatArray], FloatArray]:
        """Everybody's bias starts at a tenth of how often they gave each label."""
        start = np.zeros((users, 2), np.float32)
        known = labels >= 0
        np.add.at(start, (owner[known], labels[known]), np.float32(0.1))
        return {PRIVATE: start}, np.ones((users, 1), np.float32)

    def learn(
        self, tokens: TokenBatch, labels: IntArray, owner: IntArray, profile: Arrays, shared: Arrays
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        nll, error = self._errors(tokens, labels, owner, profile, shared)
        gradient = np.zeros_like(profile[PRIVATE])
        np.add.at(gradient, owner, error)
        return nll, {PRIVATE: gradient}

    def contribute(
        self, tokens: TokenBatch, labels: IntArray, owner: IntArray, profile: Arrays, shared: Arrays
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        nll, error = self._errors(tokens, labels, owner, profile, shared)
        return nll, {"head.weight": error.T @ _counts(tokens), "head.bias": error.sum(0)}

    def _errors(
        self, tokens: TokenBatch, labels: IntArray, owner: IntArray, profile: Arrays, shared: Arrays
    ) -> tuple[FloatArray, FloatArray]:
        """Returns nll (batch,) and its gradient by the logits (batch, labels)."""
        logits = self.predict(tokens, owner, profile, shared)
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        rows = np.arange(len(labels))
        nll = -np.log(chances[rows, labels])
        chances[rows, labels] -= 1
        return nll.astype(np.float32), chances.astype(np.float32)


def linear_engine(recipe: LearningRecipe | None = None, *, onboards: bool = False) -> Engine:
    """Returns the engine under the type that it stands for."""
    return cast(Engine, cast(Any, LinearEngine(recipe, onboards=onboards)))


def _counts(tokens: TokenBatch) -> FloatArray:
    counts = np.stack([(tokens.ids == word + 1).sum(1) for word in range(len(WORDS))], 1)
    return counts.astype(np.float32)
