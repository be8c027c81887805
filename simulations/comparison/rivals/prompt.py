"""Prompt tuning per person, by Hugging Face PEFT."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, final

import torch
from torch import Tensor, nn

from umbel.coordinator.model import PersonalModel
from umbel.shared.errors import ConfigError
from umbel.simulations.comparison.rivals.common import Learner, plain_copy, seeded, with_peft

ROWS = 10


@final
class Prompt(Learner):
    """PEFT's prompt tuning: 10 rows before the input embeddings, random for each person, as large as words.

    The prompt's own states are left out of the mean that the head sees.
    """

    name = "prompt"
    title = "Prompt tuning per user"
    whole = True
    rates = (3e-3, 1e-2, 3e-2)

    def build(self) -> tuple[PersonalModel, list[nn.Parameter]]:
        """Returns a copy of the generic model with a prompt before its input, and the prompt's rows.

        Raises:
            ConfigError: Beside the longest texts, the encoder has no room for the prompt.
        """
        longest = self.world.backbone.shape.max_tokens - ROWS
        if self.world.config.max_tokens > longest:
            raise ConfigError(
                "texts leave no room for a prompt",
                [f"max_tokens is {self.world.config.max_tokens}, at most {longest} fit beside {ROWS} rows"],
            )
        model = plain_copy(self.world.generic)
        encoder = _Prompted(model.encoder)
        model.encoder = encoder
        self._rows = encoder.rows()
        words = encoder.words()
        self._spread = (words.mean(0), words.std(0))
        return model, [self._rows]

    def begin(self, user: str) -> None:
        """Draws the rows with the mean and spread of the word embeddings, each coordinate its own."""
        mean, deviation = self._spread
        with seeded(self.world.seed, user, "rival prompt init"), torch.no_grad():
            self._rows.normal_().mul_(deviation).add_(mean)


@final
class _Prompted(nn.Module):
    """An encoder behind PEFT's prompt: the token states come back without the prompt's rows."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        from peft import PromptTuningConfig, TaskType

        config = PromptTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=ROWS)
        self.inner: Any = with_peft(encoder, config)

    def rows(self) -> nn.Parameter:
        """Returns the prompt (rows, d)."""
        rows: nn.Parameter = self.inner.prompt_encoder["default"].embedding.weight
        return rows

    def words(self) -> Tensor:
        """Returns the word embeddings (vocabulary, d)."""
        words: Tensor = self.inner.get_base_model().get_input_embeddings().weight.detach()
        return words

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """Returns `last_hidden_state` (batch, seq, d)."""
        found = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        return SimpleNamespace(last_hidden_state=found.last_hidden_state[:, ROWS:])
