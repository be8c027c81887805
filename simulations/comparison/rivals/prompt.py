"""Prompt tuning per person, by Hugging Face PEFT."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, final

import torch
from torch import Tensor, nn

from umbel.coordinator.model import PersonalModel
from umbel.shared.errors import ConfigError
from umbel.simulations.comparison.rivals.common import (
    Learner,
    plain_copy,
    seeded,
    train_on_seen,
    with_peft,
)

ROWS = 10
SHARED_RATE = 1e-2


@final
class Prompt(Learner):
    """PEFT's prompt tuning: 10 rows before the input embeddings, for each person from one shared prompt.

    The shared prompt begins as large as words and is trained on seen people: random rows alone make the
    generic model worse. The prompt's own states are left out of the mean that the head sees.
    """

    name = "prompt"
    title = "Prompt tuning per user"
    version = 2
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
        with seeded(self.world.seed, "", "rival prompt init"), torch.no_grad():
            self._rows.normal_().mul_(words.std(0)).add_(words.mean(0))
        return model, [self._rows]

    def prepare(self, on_step: Callable[[int, int], None]) -> None:
        """Trains the prompt that everybody starts from."""
        train_on_seen(self.world, self.model(), [([self._rows], SHARED_RATE)], on_step)
        self.starts_here()

    def shared_numbers(self) -> int:
        """The prompt that everybody starts from."""
        return self._rows.numel()


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
