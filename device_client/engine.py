"""Runs a release's graphs with onnxruntime; all graphs share one copy of the weights in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from umbel.shared.profile import FloatArray
from umbel.shared.release import BACKBONE_WEIGHTS, SHARED_WEIGHTS, TOKENIZER, Release
from umbel.shared.text import IntArray, TextEncoder, TokenBatch

GRADIENT = "grad."


@final
class Engine:
    """The graphs of one release, ready to run.

    Sessions are made when first used. The trainable shared tensors have the release's values unless `shared` says
    otherwise; in a round it carries the round's.
    """

    def __init__(self, release: Release, *, threads: int = 1):
        """Opens the tokenizer and the weights.

        Args:
            release: A checked release.
            threads: Threads of one graph run.
        """
        self.release = release
        self.threads = threads
        self.encoder = TextEncoder(release.blob_path(TOKENIZER).read_bytes(), release.manifest.max_tokens)
        self._weights = _load_weights(release)
        self._sessions: dict[str, Any] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the logits."""
        return self.release.manifest.labels

    def trainables(self) -> dict[str, FloatArray]:
        """Returns the release's values of the shared tensors that rounds may train."""
        return {name: self._weights[name] for name in self.release.manifest.trainables}

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Encodes texts as the release's backbone wants them."""
        return self.encoder.encode(texts)

    def predict(
        self, tokens: TokenBatch, owner: IntArray, profile: Mapping[str, FloatArray], shared: Mapping[str, FloatArray]
    ) -> FloatArray:
        """Returns logits (batch, labels).

        Args:
            tokens: The texts.
            owner: (batch,) whose text each is: an index into the profile's leading axis.
            profile: Private tensors (users, *shape).
            shared: Other values for trainable shared tensors; empty for the release's own.
        """
        return self._run("predict", ["logits"], _feed(tokens, owner, profile, shared))["logits"]

    def learn(
        self,
        tokens: TokenBatch,
        labels: IntArray,
        owner: IntArray,
        profile: Mapping[str, FloatArray],
        shared: Mapping[str, FloatArray],
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Returns each example's nll (batch,) and the gradient of their sum for every private tensor (users, *shape)."""
        names = list(profile)
        feed = _feed(tokens, owner, profile, shared) | _targets(labels)
        found = self._run("learn", ["nll", *(GRADIENT + name for name in names)], feed)
        return found["nll"], {name: found[GRADIENT + name] for name in names}

    def contribute(
        self,
        tokens: TokenBatch,
        labels: IntArray,
        owner: IntArray,
        profile: Mapping[str, FloatArray],
        shared: Mapping[str, FloatArray],
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        """Returns each example's nll (batch,) and the gradient of their sum for every trainable shared tensor."""
        names = list(self.release.manifest.trainables)
        feed = _feed(tokens, owner, profile, shared) | _targets(labels)
        found = self._run("contribute", ["nll", *(GRADIENT + name for name in names)], feed)
        return found["nll"], {name: found[GRADIENT + name] for name in names}

    def _run(self, graph: str, outputs: list[str], feed: dict[str, npt.NDArray[Any]]) -> dict[str, FloatArray]:
        session = self._session(graph)
        return dict(zip(outputs, session.run(outputs, feed), strict=True))

    def _session(self, graph: str) -> Any:
        if graph not in self._sessions:
            self._sessions[graph] = _open_session(self.release, graph, self._weights, self.threads)
        return self._sessions[graph]


def _load_weights(release: Release) -> dict[str, FloatArray]:
    from safetensors.numpy import load_file

    weights: dict[str, FloatArray] = {}
    for name in (BACKBONE_WEIGHTS, SHARED_WEIGHTS):
        weights |= load_file(release.blob_path(name))
    return weights


def _open_session(release: Release, graph: str, weights: Mapping[str, FloatArray], threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Trainables are inputs with defaults on purpose; onnxruntime warns about each of them.
    options.log_severity_level = 3
    # Spinning threads would take the cores of the other processes of a simulation.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    data = release.blob_path(f"{graph}.onnx").read_bytes()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _feed(
    tokens: TokenBatch, owner: IntArray, profile: Mapping[str, FloatArray], shared: Mapping[str, FloatArray]
) -> dict[str, npt.NDArray[Any]]:
    return {"input_ids": tokens.ids, "attention_mask": tokens.mask, "owner": owner, **profile, **shared}


def _targets(labels: IntArray) -> dict[str, npt.NDArray[Any]]:
    return {"labels": labels, "weights": np.ones(len(labels), np.float32)}
