"""The personal model: it starts as the backbone, serves many users in one batch, and folds for one."""

import numpy as np
import pytest
import torch
from tests.coordinator.conftest import FAMILIES, VOCABULARY, TinyBackbone
from tests.coordinator.personal import LABELS, random_batch, random_users, trained_model
from tests.numeric import assert_close_relative
from torch import Tensor

from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.graphs.joint import parameter_arrays
from umbel.coordinator.methods.plora import PLoRA, PLoRAConfig
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.sites import rows_of
from umbel.shared.errors import ConfigError
from umbel.shared.profile import ProfileSpec, TensorSpec

CONFIG = PLoRAConfig(rank=3, alpha=6, user_size=5, agreement=0.1, dropout=0.0)
families = pytest.mark.parametrize("family", FAMILIES)


def new_model(tiny_backbone: TinyBackbone, family: str, seed: int = 0) -> PersonalModel:
    return build_model(tiny_backbone(family), "classification", LABELS, {"plora": CONFIG}, seed)


def profile_of(users: int) -> dict[str, Tensor]:
    return {"plora.user": torch.tensor(random_users(0, users, 5))}


@families
def test_a_new_model_is_the_plain_backbone_to_the_bit(tiny_backbone: TinyBackbone, family: str) -> None:
    """B = 0, so even with a profile nothing is added; the backbone itself is left as it was."""
    backbone = tiny_backbone(family)
    before = [name for name, _ in backbone.module.named_parameters()]
    model = new_model(tiny_backbone, family).eval()
    assert [name for name, _ in backbone.module.named_parameters()] == before
    ids, mask, owner = random_batch(0, 4, 7, 2, len(VOCABULARY)).tensors()
    states = model.states(ids, mask, model.frame(mask, owner, profile_of(2)))
    plain = backbone.module(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(states, plain, rtol=0, atol=0)


@families
def test_users_mixed_in_a_batch_equal_users_one_by_one(tiny_backbone: TinyBackbone, family: str) -> None:
    """Within 1e-5: a batch of one without padding takes other paths through float32's sums."""
    model = trained_model(tiny_backbone(family), CONFIG)
    batch = random_batch(0, 6, 8, 3, len(VOCABULARY))
    profile = profile_of(3)
    together = model(*batch.tensors(), profile).detach().numpy()
    for index in range(6):
        row = batch.row(index)
        length = int(row.attention_mask.sum())
        ids, mask, owner = row.tensors()
        user = {name: values[batch.owner[index]].unsqueeze(0) for name, values in profile.items()}
        alone = model(ids[:, :length], mask[:, :length], owner, user).detach().numpy()
        assert_close_relative(f"row {index}", together[index : index + 1], alone)


def test_a_row_depends_on_its_owner_alone(tiny_backbone: TinyBackbone) -> None:
    model = trained_model(tiny_backbone("bert"), CONFIG)
    batch = random_batch(0, 6, 8, 3, len(VOCABULARY))
    profile = profile_of(3)
    before = model(*batch.tensors(), profile)
    profile["plora.user"][1] += 1.0
    changed = (model(*batch.tensors(), profile) != before).any(dim=1).numpy()
    assert changed.any()
    np.testing.assert_array_equal(changed, batch.owner == 1)


@families
def test_folded_equals_unfolded(tiny_backbone: TinyBackbone, family: str) -> None:
    """W' = W + s B A and b' = b + s B P p; ModernBERT's Wqkv gains a bias. 1e-5: other order of sums."""
    model = trained_model(tiny_backbone(family), CONFIG)
    ids, mask, owner = random_batch(0, 4, 8, 1, len(VOCABULARY)).tensors()
    profile = profile_of(1)
    wanted = model(ids, mask, owner, profile).detach().numpy()
    generator_state = torch.get_rng_state()
    twin = model.folded({"plora.user": profile["plora.user"][0]})
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert_close_relative("logits", twin(ids, mask, owner, {}).detach().numpy(), wanted)
    assert twin.method_list() == []
    assert not any(".base." in name or "plora" in name for name, _ in twin.named_parameters())
    torch.testing.assert_close(model(ids, mask, owner, profile).detach().numpy(), wanted, rtol=0, atol=0)
    generic = model(ids, mask, owner, {"plora.user": torch.zeros(1, 5)}).detach().numpy()
    assert not np.allclose(wanted, generic, rtol=1e-3)


def test_a_folded_projection_against_the_equation(tiny_backbone: TinyBackbone) -> None:
    """One Linear of the twin, computed from the model's own A, P, B and p; float32 both, so 1e-6."""
    model = trained_model(tiny_backbone("bert"), CONFIG)
    user = torch.tensor(random_users(0, 1, 5)[0])
    path = "encoder.layer.1.attention.self.query"
    site = "methods.plora.projections.layer_1_query."
    A, P, B = (model.get_parameter(site + name).detach() for name in "APB")
    twin = model.folded({"plora.user": user})
    base = model.encoder.get_submodule(path + ".base")
    folded = twin.encoder.get_submodule(path)
    torch.testing.assert_close(
        folded.get_parameter("weight"), base.get_parameter("weight") + 2.0 * B @ A, rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(
        folded.get_parameter("bias"), base.get_parameter("bias") + 2.0 * B @ P @ user, rtol=1e-6, atol=1e-7
    )


def test_parameters_are_named_once_and_told_apart(tiny_backbone: TinyBackbone) -> None:
    model = new_model(tiny_backbone, "bert")
    expected = [
        f"methods.plora.projections.layer_{layer}_{role}.{matrix}"
        for layer in range(2)
        for role in ("query", "value")
        for matrix in "APB"
    ]
    assert sorted(model.shared_names()) == sorted([*expected, "task.weight", "task.bias"])
    assert len({id(parameter) for parameter in model.parameters()}) == len(list(model.named_parameters()))
    assert model.profile_spec() == ProfileSpec((TensorSpec("plora.user", (5,), "float16"),))


def test_what_only_training_terms_read_is_not_among_the_shared_tensors(
    tiny_backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PLoRA, "training_only", ("projections.layer_0_query", "projections.layer_1"))
    model = new_model(tiny_backbone, "bert")
    aside = {f"methods.plora.projections.layer_0_query.{matrix}" for matrix in "APB"}
    assert model.training_only_names() == aside  # layer_1 is no whole part of a name
    assert not aside & {*model.shared_names(), *parameter_arrays(model)}
    everything = {name for name, _ in model.named_parameters()}
    assert {*parameter_arrays(model)} == everything - aside
    assert len(model.shared_names()) == 3 * 3 + 2  # the other three sites, and the head


def test_the_same_arguments_give_the_same_bits_and_another_seed_others(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(1)
    one = new_model(tiny_backbone, "bert").state_dict()
    torch.manual_seed(2)  # the global generator has no say
    two = new_model(tiny_backbone, "bert").state_dict()
    other = new_model(tiny_backbone, "bert", seed=1).state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    differing = {name for name in one if not torch.equal(one[name], other[name])}
    drawn = {name for name in one if name == "task.weight" or name.endswith((".A", ".P"))}
    assert differing == drawn


def test_the_head_starts_small_and_fair(tiny_backbone: TinyBackbone) -> None:
    """Weights N(0, 0.02^2), bias zero: 96 draws have a deviation within 25 % of it."""
    model = new_model(tiny_backbone, "bert")
    assert model.get_parameter("task.weight").shape == (3, 32)
    assert model.get_parameter("task.weight").std().item() == pytest.approx(0.02, rel=0.25)
    assert not model.get_parameter("task.bias").any()


def test_the_head_averages_over_tokens_and_not_over_padding(tiny_backbone: TinyBackbone) -> None:
    task = new_model(tiny_backbone, "bert").task
    states = torch.tensor([[[1.0] * 32, [3.0] * 32, [99.0] * 32]])
    logits = task(states, torch.tensor([[1, 1, 0]]))
    wanted = task.get_parameter("weight") @ torch.full((32,), 2.0)  # (1 + 3) / 2
    torch.testing.assert_close(logits[0], wanted)


def test_nll_is_the_negative_log_probability_in_nats(tiny_backbone: TinyBackbone) -> None:
    task = new_model(tiny_backbone, "bert").task
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
    found = task.nll(logits, torch.tensor([0, 2]))
    torch.testing.assert_close(found, -torch.log(torch.tensor([0.7, 0.5])))


def test_rows_of_gives_each_row_its_owners_tensor() -> None:
    values = torch.arange(24.0).reshape(3, 2, 4).requires_grad_()
    owner = torch.tensor([2, 0, 2, 2])
    rows = rows_of(owner, values)
    torch.testing.assert_close(rows, values[owner], rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(rows.sum(), values)
    torch.testing.assert_close(gradient[:, 0, 0], torch.tensor([1.0, 0.0, 3.0]), rtol=0, atol=0)


def test_the_frame_is_gone_after_a_failure(tiny_backbone: TinyBackbone) -> None:
    """A profile of the wrong size fails, and the next plain call of the encoder is plain again."""
    model = trained_model(tiny_backbone("bert"), CONFIG)
    ids, mask, owner = random_batch(0, 2, 5, 1, len(VOCABULARY)).tensors()
    with pytest.raises(RuntimeError):
        model(ids, mask, owner, {"plora.user": torch.zeros(1, 6)})
    plain = tiny_backbone("bert").module(input_ids=ids, attention_mask=mask).last_hidden_state
    found = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


def test_unknown_names_are_refused_with_the_known_ones(tiny_backbone: TinyBackbone) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(tiny_backbone("bert"), "classification", LABELS, {"magic": CONFIG}, 0)
    assert caught.value.headline == "there is no method 'magic'"
    assert "plora" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        build_model(tiny_backbone("bert"), "poetry", LABELS, {"plora": CONFIG}, 0)
    assert caught.value.render() == "there is no task 'poetry'\nKnown tasks: classification."


def test_a_prompt_leaves_texts_room(tiny_backbone: TinyBackbone) -> None:
    """Before any training; an encoder's tokens are the prompt's and the text's together."""
    backbone = tiny_backbone("bert")
    room = backbone.shape.max_tokens

    def built(rows: int) -> PersonalModel:
        row = {"methods": {"lopa": {"rows": rows}}}
        methods = validated(CoordinatorConfig, row, "here").method_configs()
        return build_model(backbone, "classification", ("no", "yes"), methods, 0)

    assert built(room - 8).longest_text(backbone.shape) == 8
    for rows in (room - 7, room, room + 1):
        with pytest.raises(ConfigError, match="leave texts no room"):
            built(rows)
