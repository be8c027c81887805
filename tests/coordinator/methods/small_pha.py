"""A small PHA without an encoder, for its tests."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tests.oracles.pha import TINY

from umbel.coordinator.backbone import BackboneShape
from umbel.coordinator.methods.pha import PHA, PHAConfig
from umbel.coordinator.model import PersonalModel
from umbel.coordinator.sites import Frame
from umbel.shared.rng import generator

CONFIG = PHAConfig.model_validate(TINY)
SHAPE = BackboneShape(hidden_size=4, layers=2, heads=1, vocabulary=9, max_tokens=9)
Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]


def lone_pha(**changes: Any) -> PHA:
    """A PHA of two layers without an encoder, whatever began as zeros or ones moved away from there."""
    method = PHA(CONFIG.model_copy(update=changes), SHAPE, [], torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            parameter.add_(torch.tensor(numbers(name, *parameter.shape)), alpha=0.1)
    return method.eval()


def numbers(purpose: str, *shape: int) -> Floats:
    return generator(0, 0, "", purpose).normal(size=shape).astype(np.float32)


def values_of(method: PHA) -> dict[str, Array]:
    return {name: p.detach().numpy().astype(np.float64) for name, p in method.named_parameters()}


def shares_of(scores: Array) -> Array:
    value: Array = np.exp(scores) / np.exp(scores).sum()
    return value


def unit(x: Array) -> Array:
    value: Array = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return value


def pha_of(model: PersonalModel) -> PHA:
    method = model.methods["pha"]
    assert isinstance(method, PHA)
    return method


def frame_of(users: Floats, x: Floats, **more: Any) -> Frame:
    """A frame that has reached layer 1's feed-forward block with input x."""
    frame = Frame({"pha.prototype": torch.tensor(users)}, torch.ones(x.shape[:2]), **more)
    frame.block_inputs[1] = torch.tensor(x)
    return frame
