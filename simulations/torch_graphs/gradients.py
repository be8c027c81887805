"""The gradients of many people's shared steps at once, each under values of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from umbel.device_client.engine import GRADIENT
from umbel.device_client.rounds import WantedGradient, read_is_enough
from umbel.shared.profile import FloatArray
from umbel.shared.release import CONTRIBUTE_EMBEDDED


def gradients_of_each(wanted: Sequence[WantedGradient], rows: int) -> list[dict[str, FloatArray]]:
    """Returns what each has made by itself, to float32's rounding.

    Args:
        wanted: Of one engine whose sessions run for each of many (`TorchSession`); all with embeddings, or
            all without.
        rows: Texts at a time.
    """
    engine = wanted[0].engine
    behind = read_is_enough(engine, wanted[0].examples)
    session = engine.session(CONTRIBUTE_EMBEDDED if behind else "contribute")
    longest = max(len(own.examples) for own in wanted)
    size = max(1, rows // max(longest, 1))
    found: list[dict[str, FloatArray]] = []
    for start in range(0, len(wanted), size):
        part = wanted[start : start + size]
        names = list(part[0].values)
        stacked = session.run_each([GRADIENT + name for name in names], _feeds(part, behind=behind))
        found += [
            {name: values[row] for name, values in zip(names, stacked, strict=True)}
            for row in range(len(part))
        ]
    return found


def _feeds(wanted: Sequence[WantedGradient], *, behind: bool) -> list[dict[str, npt.NDArray[Any]]]:
    """Returns what each feeds, padded to the same shapes; a text that only fills a place weighs nothing."""
    rows = max(len(own.examples) for own in wanted)
    width = max(own.examples.tokens.ids.shape[1] for own in wanted)
    return [_feed(own, rows, width, behind) for own in wanted]


def _feed(own: WantedGradient, rows: int, width: int, behind: bool) -> dict[str, npt.NDArray[Any]]:
    examples = own.examples
    more = rows - len(examples)
    weights = np.concatenate([np.ones(len(examples), np.float32), np.zeros(more, np.float32)])
    feed: dict[str, npt.NDArray[Any]] = {
        "labels": np.pad(examples.labels, (0, more)),
        "owner": np.pad(own.owner, (0, more)),
        "weights": weights,
        **own.profile,
        **own.values,
    }
    if behind:
        assert examples.embedding is not None
        return feed | {"text_embedding": np.pad(examples.embedding, ((0, more), (0, 0)))}
    wider = width - examples.tokens.ids.shape[1]
    mask = np.pad(examples.tokens.mask, ((0, more), (0, wider)))
    mask[len(examples) :, 0] = 1  # attention to nothing at all is no number
    return feed | {
        "input_ids": np.pad(examples.tokens.ids, ((0, more), (0, wider))),
        "attention_mask": mask,
    }
