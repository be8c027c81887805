"""A private bias per label: the strongest cheap baseline, and a part that goes with any method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor

from umbel.coordinator.methods.base import AbstractMethod, BackboneShape, MethodConfig
from umbel.coordinator.sites import Frame, Site
from umbel.shared.profile import TensorSpec


@final
class HeadBiasConfig(MethodConfig):
    """Options of the private bias."""

    scale: float = Field(
        default=0.5,
        gt=0,
        description="Deviation of the bias between people, in nats: b = scale b_u.",
    )
    storage: Literal["float16", "float32"] = Field(
        default="float16", description="How a device stores the bias."
    )


@final
class HeadBias(AbstractMethod):
    """logits = task(states) + scale b_u: how much more than others a person gives each label.

    b_u (labels,) is private and zero at birth. Nothing is shared, so there is nothing for rounds to train.
    """

    name = "headbias"
    citation = "A private last layer's bias, as in Arivazhagan et al., FedPer, 2019, arXiv 1912.00818"
    equation = "z = W mean(states) + b + scale b_u"
    Config = HeadBiasConfig
    config: HeadBiasConfig
    round_tensors = ()

    def __init__(
        self, config: HeadBiasConfig, shape: BackboneShape, sites: Sequence[Site], rng: torch.Generator
    ):
        super().__init__()
        self.config = config
        self.labels = 0

    def bind(self, labels: int) -> None:
        """Takes the number of labels as the size of b_u."""
        self.labels = labels

    def profile_tensors(self) -> tuple[TensorSpec, ...]:
        """The bias b_u (labels,)."""
        return (TensorSpec("headbias.bias", (self.labels,), self.config.storage),)

    def at_logits(self, logits: Tensor, frame: Frame) -> Tensor | None:
        """Returns scale b_u: (batch, labels)."""
        bias = frame.profile["headbias.bias"]  # (batch, labels)
        if frame.keep is not None:
            bias = bias * frame.keep
        return self.config.scale * bias

    def fold(self, site: Site, profile: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Returns None: inside the encoder the method does nothing."""
        return None

    def fold_logits(self, profile: Mapping[str, Tensor]) -> tuple[None, Tensor]:
        """Returns no change of W, and scale b_u: (labels,)."""
        return None, self.config.scale * profile["headbias.bias"]
