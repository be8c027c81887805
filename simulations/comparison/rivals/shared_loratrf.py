"""One LoRATRF for everyone: low-rank adaptation with task-relevant feature enhancement."""

from __future__ import annotations

from typing import final

from torch import nn

from umbel.coordinator.methods.loratrf import LoRATRFConfig
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.training.start import start_shared
from umbel.simulations.comparison.rivals.shared import SharedAdapter


@final
class SharedLoRATRF(SharedAdapter):
    """LoRATRF of rank 8 and filter rank 2 at every query and value projection, nothing private."""

    name = "shared-loratrf"
    title = "LoRATRF shared by all (r = 8, r' = 2)"

    def build(self) -> tuple[PersonalModel, list[nn.Parameter]]:
        """Returns the model, its task vectors started from the training texts, and the method's tensors."""
        world = self.world
        data = world.cohort.data
        method = LoRATRFConfig.model_validate({"rank": 8, "alpha": 8.0, "filter_rank": 2, "private": "none"})
        model = build_model(world.backbone, "classification", data.labels, {"loratrf": method}, world.seed)
        with world.precision():
            start_shared(model, data)
        return model, list(model.methods.parameters())
