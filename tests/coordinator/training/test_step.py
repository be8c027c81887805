"""One training step: what the methods' training terms get to see."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.coordinator.conftest import VOCABULARY, TinyBackbone
from tests.coordinator.personal import TINY_PLORA, random_batch, random_users, trained_model
from torch import Tensor

from umbel.coordinator.methods.plora import PLoRA
from umbel.coordinator.sites import Frame
from umbel.coordinator.training.step import Batch, UserTable, batch_loss, set_dropout


@pytest.mark.parametrize("agreement", [0.1, 0.0])
def test_training_terms_know_the_owners_and_the_states_without_profiles(
    tiny_backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch, agreement: float
) -> None:
    """The states are those of profiles of zeros, none are hidden; they come only where a method asks."""
    model = trained_model(tiny_backbone("bert"), TINY_PLORA.model_copy(update={"agreement": agreement}))
    table = UserTable(model.profile_spec(), 3)
    with torch.no_grad():
        table.values[0].copy_(torch.tensor(random_users(0, 3, 5)))
    seen: list[Frame] = []

    def look(method: PLoRA, logits: Tensor, generic: Tensor | None, frame: Frame) -> None:
        seen.append(frame)

    monkeypatch.setattr(PLoRA, "training_term", look)
    batch: Any = random_batch(0, 4, 6, 3, len(VOCABULARY))
    ids, mask, owner = batch.tensors()
    labels = torch.tensor(batch.labels)
    keep = torch.tensor([[1.0], [0], [1], [1]])
    batch_loss(model, table, Batch(ids, mask, labels, owner, keep, np.arange(4)), 0.0)
    (frame,) = seen
    assert frame.owner is not None
    assert torch.equal(frame.owner, owner)
    if not agreement:
        assert frame.generic_states is None
        return
    zeros = {"plora.user": torch.zeros(3, 5)}
    assert frame.generic_states is not None
    assert not frame.generic_states.requires_grad
    wanted = model.states(ids, mask, model.frame(mask, owner, zeros))
    torch.testing.assert_close(frame.generic_states, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_dropout_of_an_encoder_can_be_taken_out(tiny_backbone: TinyBackbone, family: str) -> None:
    encoder = copy.deepcopy(tiny_backbone(family).module)
    ids = torch.arange(5, 13)[None]
    encoder.train()
    before = [encoder(input_ids=ids).last_hidden_state for _ in range(2)]
    assert not torch.equal(*before)
    set_dropout(encoder, 0.0)
    encoder.train()
    found = encoder(input_ids=ids).last_hidden_state
    encoder.eval()
    torch.testing.assert_close(found, encoder(input_ids=ids).last_hidden_state, rtol=0, atol=1e-6)
