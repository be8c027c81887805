"""Steer: a shared direction per layer, and how far each person goes along it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from umbel.coordinator.methods.base import AbstractMethod, BackboneShape, MethodConfig
from umbel.coordinator.sites import Frame, Site
from umbel.shared.profile import TensorSpec


@final
class SteerConfig(MethodConfig):
    """Options of Steer."""

    spread: float = Field(default=0.1, gt=0, description="Standard deviation of the first directions.")


@final
class Steer(AbstractMethod):
    """h = W x + b + g_u[l] v_l, where the feed-forward block of layer l ends.

    g_u (L,) is private and zero at birth; v_l (d,) is shared. A gradient of v_l is g_u[l] times something, so
    it would tell the coordinator about the person: devices train none of this method's tensors.
    """

    name = "steer"
    citation = "An example for docs/adding_a_method.md; no paper."
    equation = "h = W x + b + g_u[l] v_l"
    Config = SteerConfig
    round_tensors = ()

    def __init__(
        self, config: SteerConfig, shape: BackboneShape, sites: Sequence[Site], rng: torch.Generator
    ):
        super().__init__()
        self.config = config
        self.layers = shape.layers
        own = [site for site in sites if site.role == "feed_forward"]
        self.directions = nn.ParameterDict(
            {site.name: torch.empty(site.d_out).normal_(0.0, config.spread, generator=rng) for site in own}
        )

    def profile_tensors(self) -> tuple[TensorSpec, ...]:
        """How far the person goes along each layer's direction: g_u (L,)."""
        return (TensorSpec("steer.gains", (self.layers,), "float16"),)

    def at_site(self, site: Site, x: Tensor, h: Tensor, frame: Frame) -> Tensor | None:
        """Returns g_u[l] v_l: (batch, 1, d_out)."""
        if site.name not in self.directions:
            return None
        gains = frame.profile["steer.gains"]  # (batch, L)
        if frame.keep is not None:  # personalised dropout: some examples are trained without a profile
            gains = gains * frame.keep
        direction: Tensor = self.directions[site.name]  # (d_out,)
        return (gains[:, site.layer, None] * direction).unsqueeze(1)

    def fold(self, site: Site, profile: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Returns (0, g_u[l] v_l): for one person the method is a bias."""
        if site.name not in self.directions:
            return None
        shift = profile["steer.gains"][site.layer] * self.directions[site.name]
        return shift.new_zeros(site.d_out, site.d_in), shift
