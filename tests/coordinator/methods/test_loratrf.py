"""LoRATRF: its equation in every form, its birth, its start, dropout, the basis and the counts."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.coordinator.conftest import FAMILIES, VOCABULARY, TinyBackbone
from tests.coordinator.personal import (
    LABELS,
    Joint,
    Sessions,
    assert_agree,
    oracle_of,
    random_batch,
    random_profile,
    torch_gradients,
    trained_with,
)
from tests.numeric import assert_close_relative
from torch import Tensor

from umbel.coordinator.backbone import BackboneShape
from umbel.coordinator.graphs.joint import export_joint
from umbel.coordinator.methods.loratrf import LoRATRF, LoRATRFConfig
from umbel.coordinator.model import build_model
from umbel.coordinator.sites import Frame, Site
from umbel.shared.rng import generator

SMALL: dict[str, Any] = {"rank": 3, "alpha": 6.0, "filter_rank": 2, "beta": 1.5, "shift_size": 4}
SHAPE = BackboneShape(hidden_size=4, layers=2, heads=1, vocabulary=9, max_tokens=9)
SITES = [Site(layer, role, 4, 4, "", 0) for layer in (0, 1) for role in ("key", "query", "value")]
QUERY = SITES[4]  # of layer 1
FORMS = list(
    itertools.product(
        ("cosine-clamp", "sigmoid"),
        ("h", "lora"),
        ("projection", "layer", "shared"),
        ("gates", "shift", "none"),
    )
)
NAMES = ("gate", "on", "vectors", "private")

Floats = npt.NDArray[np.float32]


def config_of(**changes: Any) -> LoRATRFConfig:
    return LoRATRFConfig.model_validate({**SMALL, **changes})


def numbers(purpose: str, *shape: int) -> Floats:
    return generator(0, 0, "", purpose).normal(size=shape).astype(np.float32)


def lone(**changes: Any) -> LoRATRF:
    """A method of two layers without an encoder; B, D and G are noise."""
    method = LoRATRF(config_of(**changes), SHAPE, SITES, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name.endswith((".B", ".D", "G")):
                parameter.copy_(torch.tensor(numbers(name, *parameter.shape)))
    return method


def matrices(method: LoRATRF, site: Site) -> tuple[Floats, ...]:
    return tuple(method.get_parameter(f"projections.{site.name}.{n}").detach().numpy() for n in "ABCD")


def added(
    method: LoRATRF, site: Site, x: Floats, h: Floats, users: Floats, keep: Floats | None = None
) -> Floats:
    profile = {f"loratrf.{method.config.private}": torch.tensor(users)}
    kept = None if keep is None else torch.tensor(keep)
    frame = Frame(profile, torch.ones(x.shape[:2]), keep=kept)
    found = method.at_site(site, torch.tensor(x), torch.tensor(h), frame)
    assert found is not None
    return np.asarray(found.detach().numpy())


@pytest.mark.parametrize("gate", ["cosine-clamp", "sigmoid"])
@pytest.mark.parametrize("on", ["h", "lora"])
@pytest.mark.parametrize("private", ["gates", "shift"])
def test_equation_token_by_token(gate: str, on: str, private: str) -> None:
    """1e-6 is float32's rounding over sums of at most four terms."""
    method = lone(gate=gate, on=on, private=private)
    A, B, C, D = matrices(method, QUERY)
    xi = method.get_parameter("xi.layer_1_query").detach().numpy()
    x, h, users = (
        numbers("x", 2, 3, 4),
        numbers("h", 2, 3, 4),
        numbers("u", 2, 2 if private == "gates" else 4),
    )
    expected = np.zeros((2, 3, 4))
    for row, token in np.ndindex(2, 3):
        own, strength = xi, 1.0
        if private == "gates":
            strength = 1 + method.get_parameter("G").detach().numpy()[1] @ users[row]
        else:
            own = xi + method.get_parameter("S.layer_1_query").detach().numpy() @ users[row]
        state = h[row, token]
        if gate == "sigmoid":
            f = 1 / (1 + np.exp(-(state @ own) / 2))  # sqrt(d) = 2
        else:
            f = max(0.0, state @ own / np.linalg.norm(state) / np.linalg.norm(own))
        update = 6 / 3 * (B @ (A @ x[row, token]))
        filtered = strength * f * (state if on == "h" else update)
        expected[row, token] = update + 1.5 * (D @ (C @ filtered))
    assert_close_relative("added", added(method, QUERY, x, h, users), expected, 1e-6)


def test_keys_and_the_feed_forward_block_are_left_alone() -> None:
    frame = Frame({"loratrf.gates": torch.zeros(1, 2)}, torch.ones(1, 1))
    assert lone().at_site(SITES[0], torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), frame) is None


@pytest.mark.parametrize("form", FORMS, ids="+".join)
def test_every_form_against_the_oracle(tiny_backbone: TinyBackbone, form: tuple[str, ...]) -> None:
    config = config_of(**dict(zip(NAMES, form, strict=True)))
    model = trained_with(tiny_backbone("bert"), {"loratrf": config})
    for seed in range(3):
        batch = random_batch(seed, 4, 8, 3, len(VOCABULARY))
        profile = random_profile(seed, 3, model.profile_spec())
        found, wanted = torch_gradients(model, batch, profile), oracle_of(model, batch, profile)
        assert found.grads.keys() == wanted.grads.keys()
        assert_agree(found, wanted, set(found.grads))


@pytest.mark.parametrize(
    "form", [("sigmoid", "lora", "shared", "shift"), ("cosine-clamp", "h", "layer", "none")], ids="+".join
)
def test_other_forms_in_onnxruntime(tiny_backbone: TinyBackbone, form: tuple[str, ...]) -> None:
    """The two furthest from the default, which test_every_method.py runs."""
    backbone = tiny_backbone("bert")
    model = trained_with(backbone, {"loratrf": config_of(**dict(zip(NAMES, form, strict=True)))})
    names = tuple(model.shared_names())
    sessions = Sessions(Joint(backbone, model, names, export_joint(model, names, backbone.shape)))
    for rows, seq, users in ((1, 2, 1), (4, 9, 3)):
        batch = random_batch(rows, rows, seq, users, backbone.shape.vocabulary)
        profile = random_profile(rows, users, model.profile_spec())
        found = sessions.run(batch, profile)
        assert_agree(found, oracle_of(model, batch, profile), {*profile, *names})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("private", ["gates", "shift"])
def test_a_new_model_is_the_plain_backbone_to_the_bit(
    tiny_backbone: TinyBackbone, family: str, private: str
) -> None:
    """B and D are zero, so even with a profile nothing is added."""
    backbone = tiny_backbone(family)
    configs = {"loratrf": config_of(private=private)}
    model = build_model(backbone, "classification", LABELS, configs, 0).eval()
    ids, mask, owner = random_batch(0, 4, 7, 2, len(VOCABULARY)).tensors()
    profile = {n: torch.tensor(v) for n, v in random_profile(0, 2, model.profile_spec()).items()}
    plain = backbone.module(input_ids=ids, attention_mask=mask).last_hidden_state
    found = model.states(ids, mask, model.frame(mask, owner, profile))
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


@pytest.mark.parametrize("private", ["gates", "shift"])
def test_zeros_are_the_model_without_private_tensors(tiny_backbone: TinyBackbone, private: str) -> None:
    """Within 1e-6: a vector of every row takes another path through float32's sums than one for all."""
    backbone = tiny_backbone("bert")
    model = trained_with(backbone, {"loratrf": config_of(private=private)})
    generic = trained_with(backbone, {"loratrf": config_of(private="none")})
    assert not generic.profile_spec().tensors
    with torch.no_grad():
        for name in generic.shared_names():
            generic.get_parameter(name).copy_(model.get_parameter(name))
    ids, mask, owner = random_batch(0, 4, 7, 2, len(VOCABULARY)).tensors()
    nobody = {n: torch.tensor(v) for n, v in model.profile_spec().zeros(2).items()}
    found, wanted = model(ids, mask, owner, nobody), generic(ids, mask, owner, {})
    assert_close_relative("logits", found.detach().numpy(), wanted.detach().numpy(), 1e-6)


@pytest.mark.parametrize("private", ["gates", "shift"])
def test_personalised_dropout_hides_the_profile_and_rescales_nothing(private: str) -> None:
    method = lone(private=private, gate="sigmoid")  # which is zero nowhere
    x, h, users = (
        numbers("x", 3, 2, 4),
        numbers("h", 3, 2, 4),
        numbers("u", 3, 2 if private == "gates" else 4),
    )
    mixed = added(method, QUERY, x, h, users, np.array([[1], [0], [1]], np.float32))
    np.testing.assert_array_equal(mixed[[0, 2]], added(method, QUERY, x, h, users)[[0, 2]])
    np.testing.assert_array_equal(mixed[1], added(method, QUERY, x, h, 0 * users)[1])
    assert np.abs(mixed[1] - added(method, QUERY, x, h, users)[1]).max() > 1e-3


def relevance(method: LoRATRF, h: Tensor) -> Tensor:
    """f of states (batch, seq, d), seen through C = D = I and A = 0: what is added is beta f h."""
    found = method._relevance(QUERY, h, None)
    assert found.shape == (*h.shape[:2], 1)
    return found[..., 0]


@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-2, 1.0, 1e3]))
@settings(max_examples=50, deadline=None)
def test_the_clamped_cosine_lies_in_0_1_and_knows_directions_only(seed: int, scale: float) -> None:
    method = lone()
    h = torch.tensor(generator(seed, 0, "", "h").normal(size=(2, 5, 4)).astype(np.float32))
    f = relevance(method, h)
    assert bool(((f >= 0) & (f <= 1)).all())
    torch.testing.assert_close(relevance(method, scale * h), f, rtol=1e-3, atol=1e-5)
    xi = method.get_parameter("xi.layer_1_query").detach()
    torch.testing.assert_close(
        relevance(method, scale * xi.expand(1, 1, 4)), torch.ones(1, 1), rtol=1e-3, atol=0
    )
    assert not relevance(method, -scale * xi.expand(1, 1, 4)).any()


@pytest.mark.parametrize("gate", ["cosine-clamp", "sigmoid"])
@pytest.mark.parametrize("nothing", ["h", "xi", "both"])
def test_vectors_of_zeros_have_finite_gradients(gate: str, nothing: str) -> None:
    method = lone(gate=gate)
    xi = method.get_parameter("xi.layer_1_query")
    h = torch.zeros(1, 2, 4) if nothing != "xi" else torch.tensor(numbers("h", 1, 2, 4))
    h.requires_grad_()
    if nothing != "h":
        with torch.no_grad():
            xi.zero_()
    frame = Frame({"loratrf.gates": torch.zeros(1, 2)}, torch.ones(1, 2))
    found = method.at_site(QUERY, torch.zeros(1, 2, 4), h, frame)
    assert found is not None
    gradients = torch.autograd.grad(found.sum(), [h, xi])
    assert all(bool(g.isfinite().all()) for g in (found, *gradients))
    if gate == "cosine-clamp":
        assert not found.any()


def means_of(length: float = 3.0) -> dict[str, Tensor]:
    return {
        site.name: length * (1 + n) * torch.tensor(numbers(f"mean {n}", 4)).double()
        for n, site in enumerate(SITES)
    }


def test_a_task_vector_starts_at_the_mean_of_its_projection() -> None:
    method, means = lone(), means_of()
    method.start_shared(means)
    for site in SITES:
        if site.role != "key":
            torch.testing.assert_close(
                method.get_parameter(f"xi.{site.name}").detach(), means[site.name].float()
            )


@pytest.mark.parametrize(("vectors", "count"), [("layer", 2), ("shared", 1)])
def test_a_vector_of_many_starts_between_their_directions(vectors: str, count: int) -> None:
    """Of the mean length; by hand for two or four projections of very different lengths."""
    method, means = lone(vectors=vectors), means_of()
    method.start_shared(means)
    assert len(method.xi) == count
    names = [f"layer_{n}_{role}" for n in range(2) for role in ("query", "value")]
    own = np.array([means[name].numpy() for name in (names if count == 1 else names[:2])])
    lengths = np.sqrt((own**2).sum(1))
    wanted = sum(row / size for row, size in zip(own, lengths, strict=True)) / len(own) * lengths.mean()
    assert_close_relative("xi", next(iter(method.xi.values())).detach().numpy(), wanted, 1e-6)


def test_a_shift_turns_the_vector_as_far_wherever_it_starts() -> None:
    method = lone(private="shift")
    ratios = []
    for _ in range(2):
        S, xi = (method.get_parameter(f"{name}.layer_1_query").detach() for name in ("S", "xi"))
        ratios.append(float(S.norm() / xi.norm()))
        method.start_shared(means_of())
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-5)


def test_a_mean_of_zeros_leaves_the_vector_as_it_was() -> None:
    method = lone()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.start_shared({name: 0 * value for name, value in means_of().items()})
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_the_start_is_live_where_a_random_one_is_not() -> None:
    """At the width of MiniLM, for states that have a mean: f is about 0.7 from it, and about 0 from noise."""
    site = Site(0, "query", 384, 384, "", 0)
    shape = BackboneShape(384, 1, 12, 9, 9)
    h = torch.tensor(numbers("mean of the task", 384) + numbers("states", 20, 7, 384))
    found = []
    for start in (False, True):
        method = LoRATRF(LoRATRFConfig(), shape, [site], torch.Generator().manual_seed(0))
        if start:
            method.start_shared({site.name: h.double().mean((0, 1))})
        found.append(float(method._relevance(site, h, None).detach().mean()))
    assert found[0] < 0.1
    assert found[1] == pytest.approx(2**-0.5, abs=0.05)


@given(users=st.integers(1, 9), private=st.sampled_from(["gates", "shift"]), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_rebase_changes_no_output(users: int, private: str, seed: int) -> None:
    """And with more users than directions their second moment becomes the identity."""
    method = lone(private=private)
    name, size = f"loratrf.{private}", 2 if private == "gates" else 4
    people_ = generator(seed, 0, "", "users").normal(size=(users, size)).astype(np.float32)
    x, h = numbers("x", users, 3, 4), numbers("h", users, 3, 4)
    before = added(method, QUERY, x, h, people_)
    found = method.rebase({name: torch.tensor(people_), "other.tensor": torch.ones(users, 1)})
    assert found.keys() == {name, "other.tensor"}
    assert_close_relative("added", added(method, QUERY, x, h, found[name].numpy()), before, 1e-4)
    if users > 2 * size:
        moment = found[name].double().T @ found[name].double() / users
        torch.testing.assert_close(moment, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("private", ["gates", "shift", "none"])
def test_rebase_when_nobody_has_learned_anything_changes_nothing(private: str) -> None:
    method = lone(private=private)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    profiles = {tensor.name: torch.zeros(3, *tensor.shape) for tensor in method.profile_tensors()}
    assert method.rebase(profiles).keys() == profiles.keys()
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def counts(method: LoRATRF) -> int:
    return sum(parameter.numel() for parameter in method.parameters())


@pytest.mark.parametrize("private", ["gates", "shift", "none"])
@pytest.mark.parametrize(("vectors", "xis"), [("projection", 24), ("layer", 12), ("shared", 1)])
def test_counts_and_bytes_at_the_papers_size(private: str, vectors: str, xis: int) -> None:
    """BERT-base, r = 16, r' = 8: 24 sites of 2 * 16 * 768 + 2 * 8 * 768 = 36,864, and 768 for each xi."""
    sites = [Site(layer, role, 768, 768, "", 0) for layer in range(12) for role in ("query", "key", "value")]
    config = LoRATRFConfig.model_validate({"private": private, "vectors": vectors})
    method = LoRATRF(config, BackboneShape(768, 12, 12, 30522, 512), sites, torch.Generator().manual_seed(0))
    basis = {"gates": 12 * 12, "shift": xis * 768 * 8, "none": 0}[private]
    assert counts(method) == 24 * 36_864 + 768 * xis + basis
    size = {"gates": 24, "shift": 16, "none": 0}[private]
    assert sum(tensor.packed_bytes for tensor in method.profile_tensors()) == size


def test_a_size_that_is_a_third_smaller_than_lora_of_rank_16() -> None:
    """r = 8 and r' = 2 take 16 d + 4 d + d a site, LoRA of rank 16 takes 32 d: 34.4 % fewer."""
    sites = [Site(layer, role, 384, 384, "", 0) for layer in range(6) for role in ("query", "value")]
    config = LoRATRFConfig(rank=8, filter_rank=2, private="none")
    method = LoRATRF(config, BackboneShape(384, 6, 12, 30522, 512), sites, torch.Generator())
    lora = 12 * 2 * 16 * 384
    assert counts(method) == 12 * 21 * 384
    assert 1 - counts(method) / lora == pytest.approx(0.34375)


def test_it_is_not_folded(tiny_backbone: TinyBackbone) -> None:
    """The filter depends on the text, so no change of W and b stands for it."""
    model = trained_with(tiny_backbone("bert"), {"loratrf": config_of()})
    with pytest.raises(NotImplementedError, match="loratrf cannot be folded"):
        model.folded({"loratrf.gates": torch.zeros(2)})


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"alpha": 0.0},
        {"filter_rank": 0},
        {"beta": -1.0},
        {"gate": "relu"},
        {"on": "x"},
        {"vectors": "token"},
        {"start": "zeros"},
        {"private": "all"},
        {"shift_size": 0},
        {"storage": "int8"},
        {"ranks": 3},
    ],
)
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        LoRATRFConfig.model_validate(wrong)


def test_the_default_trainables_are_a_alone() -> None:
    assert LoRATRF.round_tensors == ("*.A",)
