"""One bottleneck adapter per person."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from umbel.coordinator.model import PersonalModel
from umbel.coordinator.sites import find_sites
from umbel.simulations.comparison.rivals.common import Learner, plain_copy, seeded

WIDTH = 48


@final
class Adapter(Learner):
    """h + up(relu(down(h))) after every layer's feed-forward block, before its dropout and LayerNorm."""

    name = "adapter"
    title = f"One bottleneck-{WIDTH} adapter per user"
    rates = (1e-4, 3e-4, 1e-3, 3e-3)

    def build(self) -> tuple[PersonalModel, list[nn.Parameter]]:
        """Returns a copy of the generic model with adapters in its encoder, and their weights and biases."""
        model = plain_copy(self.world.generic)
        sites = [site for site in find_sites(model.encoder) if site.role == "feed_forward"]
        self._bottlenecks = [_Bottleneck(site.d_out) for site in sites]
        for site, bottleneck in zip(sites, self._bottlenecks, strict=True):
            model.encoder.get_submodule(site.path).register_forward_hook(_adding(bottleneck))
        return model, [p for bottleneck in self._bottlenecks for p in bottleneck.parameters()]

    def begin(self, user: str) -> None:
        """Draws the way down as torch does for a Linear; the way up stays at zeros."""
        with seeded(self.world.seed, user, "rival adapter init"):
            for bottleneck in self._bottlenecks:
                bottleneck.down.reset_parameters()


@final
class _Bottleneck(nn.Module):
    """up(relu(down(h))), zero at birth."""

    def __init__(self, size: int):
        super().__init__()
        self.down = nn.Linear(size, WIDTH)
        self.up = nn.Linear(WIDTH, size)
        with torch.no_grad():
            self.up.weight.zero_()
            self.up.bias.zero_()

    def forward(self, h: Tensor) -> Tensor:
        """Maps (batch, seq, d) to (batch, seq, d)."""
        change: Tensor = self.up(functional.relu(self.down(h)))
        return change


def _adding(bottleneck: _Bottleneck) -> Any:
    def hook(_module: nn.Module, _inputs: Any, h: Tensor) -> Tensor:
        total: Tensor = h + bottleneck(h)
        return total

    return hook
