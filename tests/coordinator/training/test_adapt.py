"""What an adaptation's step is: the mean over what was drawn, each text being read once."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.coordinator.conftest import TinyBackbone

from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.training import adapt
from umbel.coordinator.training.collaborative import factorise
from umbel.coordinator.training.data import Rows, TrainingData
from umbel.coordinator.training.traits import TraitHead
from umbel.shared.rng import generator
from umbel.shared.text import TokenBatch

TEXTS, LABELS = 12, 3


@pytest.fixture
def model(tiny_backbone: TinyBackbone) -> PersonalModel:
    return build_model(tiny_backbone("bert"), "classification", ["a", "b", "c"], {}, 0).eval()


def data() -> TrainingData:
    rng = generator(3, 0, "", "texts and judgements")
    lengths = rng.integers(3, 9, TEXTS)
    mask = (np.arange(9) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(1, 9, mask.shape) * mask
    rows = Rows(rng.integers(0, TEXTS, 80), rng.integers(0, 6, 80), rng.integers(0, LABELS, 80))
    users = tuple(str(number) for number in range(6))
    return TrainingData(("a", "b", "c"), users, TokenBatch(ids, mask), rows, rows, ())


def head(found: TrainingData, width: int) -> TraitHead:
    factors = factorise(found.train, 6, LABELS, 2, 2.0, 0)
    return TraitHead(factors, width, TEXTS, torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_text_drawn_twice_is_read_once_and_counts_twice(model: PersonalModel) -> None:
    """The loss is that of a batch in which each draw is a row of its own; 1e-6: another order of the sum."""
    found = data()
    said = adapt.opinions(found.train, LABELS)
    chosen = np.array([4, 1, 4, 4, 0, 7, 1])
    encoder: Any = model.encoder
    traits = head(found, encoder.config.hidden_size)
    read: list[int] = []
    handle = encoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    whole, _ = adapt._loss(model, found, said, chosen, torch.no_grad, traits)
    handle.remove()
    alone = [adapt._loss(model, found, said, chosen[i : i + 1], torch.no_grad, traits)[0] for i in range(7)]
    assert read == [4]
    np.testing.assert_allclose(float(whole), np.mean([float(loss) for loss in alone]), rtol=1e-6)


@torch.no_grad()
def test_a_look_reads_held_out_texts_once(model: PersonalModel) -> None:
    """One pass gives the held-out loss and how far texts are from their traits, as two passes did."""
    found = data()
    encoder: Any = model.encoder
    traits = head(found, encoder.config.hidden_size)
    read: list[int] = []
    handle = encoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    look = adapt._look(model, found, torch.no_grad, traits)
    handle.remove()
    texts = np.unique(found.validation.text)
    assert sum(read) == len(texts)
    apart = float(traits.loss(adapt.mean_states(model, found, texts, torch.no_grad), texts))
    wanted = adapt.held_out_loss(model, found, torch.no_grad) + apart
    np.testing.assert_allclose(look, wanted, rtol=1e-6)
