"""One LoRA per person, by Hugging Face PEFT."""

from __future__ import annotations

from typing import Any, final

from torch import nn

from umbel.coordinator.model import PersonalModel
from umbel.simulations.comparison.rivals.common import Learner, plain_copy, seeded, with_peft

_PURPOSE = "rival lora init"


@final
class LoRA(Learner):
    """PEFT's LoRA of rank 8 at every query and value projection; A random for each person, B zero."""

    name = "lora"
    title = "One LoRA per user (PEFT, r = 8)"
    rates = (3e-4, 1e-3, 3e-3, 1e-2)

    def build(self) -> tuple[PersonalModel, list[nn.Parameter]]:
        """Returns a copy of the generic model with LoRA in its encoder, and every A and B."""
        model = plain_copy(self.world.generic)
        return model, add_lora(model, rank=8, alpha=16)

    def begin(self, user: str) -> None:
        """Draws A and zeroes B as PEFT does."""
        from peft.tuners.lora import LoraLayer

        with seeded(self.world.seed, user, _PURPOSE):
            for module in self.model().encoder.modules():
                if isinstance(module, LoraLayer):
                    layer: Any = module
                    layer.reset_lora_parameters("default", init_lora_weights=True)


def add_lora(model: PersonalModel, rank: int, alpha: int) -> list[nn.Parameter]:
    """Puts PEFT's LoRA into a plain model's encoder, in place, and returns every A and B."""
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["query", "value"])
    model.encoder = with_peft(model.encoder, config)
    return [parameter for name, parameter in model.encoder.named_parameters() if ".lora_" in name]
