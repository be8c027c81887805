"""Where training starts: what labels say, against a slow twin; the table; the mean of every projection."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coordinator.conftest import FAMILIES, TinyBackbone
from tests.coordinator.personal import plora_of
from tests.coordinator.small_training import people
from tests.oracles.start import Row, summaries_oracle

from umbel.coordinator.config import TrainingConfig
from umbel.coordinator.methods.plora import PLoRA, PLoRAConfig
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.sites import Frame, InjectedLinear, Site
from umbel.coordinator.training.data import Rows, TrainingData, prepare
from umbel.coordinator.training.start import embeddings, site_means, start_shared, start_users, summaries
from umbel.coordinator.training.step import UserTable
from umbel.shared.rng import generator
from umbel.shared.text import TextEncoder

LABELS = ("no", "yes")
PLORA = PLoRAConfig(rank=3, alpha=6, user_size=5)
Matrix = npt.NDArray[np.float64]


def texts(count: int, width: int, seed: int = 0) -> Matrix:
    return np.asarray(generator(seed, 0, "", "embeddings").normal(size=(count, width)))


def rows_of(examples: list[Row]) -> Rows:
    text, user, label = np.array(examples, np.int64).T
    return Rows(text, user, label)


@st.composite
def populations(draw: st.DrawFn) -> tuple[Matrix, list[Row], int, int]:
    """Users of 1 to 6 examples, some of one label only; 2 to 4 labels, some never given; embeddings that may
    all be one."""
    labels = draw(st.integers(2, 4))
    users = draw(st.integers(1, 6))
    count = draw(st.integers(1, 6))
    embedded = texts(count, draw(st.integers(1, 4)), draw(st.integers(0, 99)))
    if draw(st.booleans()):
        embedded = np.repeat(embedded[:1], count, axis=0)
    examples = []
    for user in range(users):
        choices = (
            st.integers(0, labels - 1) if draw(st.booleans()) else st.just(draw(st.integers(0, labels - 1)))
        )
        for label in draw(st.lists(choices, min_size=1, max_size=6)):
            examples += [(draw(st.integers(0, count - 1)), user, label)]
    return embedded, draw(st.permutations(examples)), users, labels


@given(population=populations())
@settings(max_examples=150, deadline=None)
def test_summaries_are_those_of_the_slow_twin(population: tuple[Matrix, list[Row], int, int]) -> None:
    embedded, examples, users, labels = population
    found = summaries(embedded, rows_of(examples), users, labels)
    assert found.shape == (users, (embedded.shape[1] + 1) * (labels - 1))
    np.testing.assert_allclose(found, summaries_oracle(embedded, examples, users, labels), atol=1e-8)


def test_by_hand() -> None:
    """Two users of two examples each like opposite ends of the only direction: +-1 apart; neither leans."""
    embedded = np.array([[1.0], [-1.0]])
    found = summaries(embedded, rows_of([(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 1)]), 2, 2)
    assert found == pytest.approx(np.array([[1.0, 0.0], [-1.0, 0.0]]))


def test_what_rounding_makes_of_equal_people_is_not_blown_up() -> None:
    """Each gives one label in three: a third less a third is not 0 in float64, and must be no direction."""
    examples = [(text, user, int(text % 3 == 0)) for user in range(4) for text in range(3 * (user + 1))]
    lean = summaries(texts(12, 2), rows_of(examples), 4, 2)[:, -1]
    assert lean.tolist() == [0.0] * 4
    constant = summaries(np.full((12, 3), 0.1), rows_of([(t, u, (t + u) % 2) for t, u, _ in examples]), 4, 2)
    assert not constant[:, :-1].any()


def test_a_label_that_nobody_gives_says_nothing() -> None:
    examples = [(text, user, 0) for user in range(3) for text in range(2)]
    assert not summaries(texts(2, 4), rows_of(examples), 3, 3).any()


def small(
    tiny_backbone: TinyBackbone, config: PLoRAConfig, family: str = "bert"
) -> tuple[PersonalModel, TrainingData, UserTable]:
    backbone = tiny_backbone(family)
    model = build_model(backbone, "classification", LABELS, {"plora": config}, 0)
    encoder = TextEncoder(backbone.tokenizer_json, 16)
    data = prepare(
        people(12, 30), LABELS, encoder, TrainingConfig.model_validate({"calibration_share": 0.2}), 0
    )
    return model, data, UserTable(model.profile_spec(), len(data.users))


def test_embeddings_are_the_mean_states_of_the_plain_encoder(tiny_backbone: TinyBackbone) -> None:
    """Text after text, without padding; 1e-5 is what float32 sums of another shape may differ by."""
    model, data, _ = small(tiny_backbone, PLORA)
    found = embeddings(model, data.tokens)
    assert found.dtype == np.float64
    assert len(found) == len(data.tokens) > 3
    for number in range(len(data.tokens)):
        alone = data.tokens.rows([number])
        ids, mask = torch.tensor(alone.ids), torch.tensor(alone.mask)
        with torch.no_grad():
            states = model.states(ids, mask, Frame({"plora.user": torch.zeros(1, 5)}, mask))
        assert found[number] == pytest.approx(states[0].double().mean(0).numpy(), abs=1e-5)


def test_the_table_starts_where_labels_point(tiny_backbone: TinyBackbone) -> None:
    """Every third person likes "bad" where the others like "good": the first direction tells them apart.

    It has variance 1, and the means of two groups on it are further apart than that.
    """
    model, data, table = small(tiny_backbone, PLORA)
    start_users(model, table, data)
    first = table.as_profile()["plora.user"].detach()[:, 0]
    odd = torch.tensor([int(user.split()[1]) % 3 == 0 for user in data.users])
    assert abs(first[odd].mean() - first[~odd].mean()) > 1
    again = UserTable(model.profile_spec(), len(data.users))
    start_users(model, again, data)
    assert torch.equal(again.as_profile()["plora.user"], table.as_profile()["plora.user"])


def test_starting_changes_nothing_that_is_shared(tiny_backbone: TinyBackbone) -> None:
    model, data, table = small(tiny_backbone, PLORA)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_users(model, table, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in table.parameters())


@pytest.mark.parametrize("why", ["zeros", "labels", "alone"])
def test_the_table_stays_at_zeros(tiny_backbone: TinyBackbone, why: str) -> None:
    """By configuration, with more labels than are looked at, and with one person, who differs from nobody."""
    config = PLORA.model_copy(update={"start": "zeros"}) if why == "zeros" else PLORA
    model, data, table = small(tiny_backbone, config)
    assert plora_of(model).starts_users() == (why != "zeros")
    if why == "labels":
        data = replace(data, labels=tuple(str(number) for number in range(17)))
    if why == "alone":
        data = replace(data, users=data.users[:1])
    start_users(model, table, data)
    assert not table.as_profile()["plora.user"].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_projections_give_on_average_text_by_text(tiny_backbone: TinyBackbone, family: str) -> None:
    """W x + b of every token, by the injected method itself, which sees it as h; 1e-5 as above."""
    model, data, _ = small(tiny_backbone, PLORA, family)
    seen: dict[str, list[Matrix]] = {}

    def note(self: PLoRA, site: Site, x: torch.Tensor, h: torch.Tensor, frame: Frame) -> None:
        seen.setdefault(site.name, []).append(h[0].double().numpy())

    tokens = data.tokens.rows(np.arange(12))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(PLoRA, "at_site", note)
        for number in range(12):
            alone = tokens.rows([number])
            ids, mask = torch.tensor(alone.ids), torch.tensor(alone.mask)
            model.states(ids, mask, Frame({"plora.user": torch.zeros(1, 5)}, mask))
    found = site_means(model, tokens)
    assert found.keys() == seen.keys()
    for name, values in found.items():
        assert values.dtype == torch.float64
        assert values.numpy() == pytest.approx(np.concatenate(seen[name]).mean(0), abs=1e-5)
    assert not any(m.base._forward_hooks for m in model.encoder.modules() if isinstance(m, InjectedLinear))


def test_shared_tensors_start_from_training_texts_where_a_method_asks_for_it(
    tiny_backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, _ = small(tiny_backbone, PLORA)
    told: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(PLoRA, "start_shared", lambda self, means: told.append(means))
    start_shared(model, data)
    assert told == []
    monkeypatch.setattr(PLoRA, "starts_shared", lambda self: True)
    start_shared(model, data)
    (means,) = told
    wanted = site_means(model, data.tokens.rows(np.unique(data.train.text)))
    assert means.keys() == wanted.keys()
    assert all(torch.equal(means[name], wanted[name]) for name in wanted)
