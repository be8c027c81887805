"""One LoRA for everyone, by Hugging Face PEFT."""

from __future__ import annotations

from typing import final

from torch import nn

from umbel.coordinator.model import PersonalModel, build_model
from umbel.simulations.comparison.rivals.common import plain_copy, seeded
from umbel.simulations.comparison.rivals.lora import add_lora
from umbel.simulations.comparison.rivals.shared import SharedAdapter


@final
class SharedLoRA(SharedAdapter):
    """PEFT's LoRA of rank 16 at every query and value projection."""

    name = "shared-lora"
    title = "LoRA shared by all (PEFT, r = 16, alpha = 16)"

    def build(self) -> tuple[PersonalModel, list[nn.Parameter]]:
        """Returns the model, and every A and B."""
        world = self.world
        model = plain_copy(
            build_model(world.backbone, "classification", world.cohort.data.labels, {}, world.seed)
        )
        with seeded(world.seed, "", "rival shared lora init"):
            return model, add_lora(model, rank=16, alpha=16)
