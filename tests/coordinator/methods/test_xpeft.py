"""X-PEFT: its equation, masks and bits, birth, start, random banks, folding, options, counts, a whole use."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import random_examples
from tests.coordinator.conftest import FAMILIES, VOCABULARY, TinyBackbone, tiny_config, write_backbone
from tests.coordinator.personal import (
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
from tests.oracles.personal import OracleResult
from tests.oracles.xpeft import TINY

from umbel.coordinator.backbone import BackboneShape, load_backbone
from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.graphs.joint import export_joint
from umbel.coordinator.graphs.parity import TOLERANCE
from umbel.coordinator.methods.xpeft import XPEFT, XPEFTConfig, hard_mask, soft_mask
from umbel.coordinator.model import PersonalModel, build_model
from umbel.coordinator.publish import publish
from umbel.coordinator.sites import Frame, Site
from umbel.coordinator.train import train
from umbel.device_client.device import learn_profile
from umbel.device_client.prediction import predict_texts
from umbel.device_client.profile_file import read_profile
from umbel.shared.bank import random_bank
from umbel.shared.errors import ConfigError
from umbel.shared.profile import ProfileSpec, pack_profile, unpack_profile
from umbel.shared.rng import generator

CONFIG = XPEFTConfig.model_validate(TINY)
SHAPE = BackboneShape(hidden_size=5, layers=2, heads=1, vocabulary=9, max_tokens=9)
ENDS = [Site(layer, "feed_forward", 9, 5, f"layer.{layer}.output.dense", 0) for layer in range(2)]
STARTS = [Site(layer, "feed_forward_in", 5, 9, f"layer.{layer}.intermediate.dense", 0) for layer in range(2)]
MASKS = ("xpeft.down", "xpeft.up")

Floats = npt.NDArray[np.float32]

forms = pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": "soft"},
        {"dead_zone": 0.3},
        {"activation": "gelu"},
        {"activation": "tanh", "mask": "soft", "kept": 1},
        {"bank": "random", "bank_seed": 3},
        {"bank": "random", "dead_zone": 0.7},
        {"bank": "random", "mask": "soft", "centred": False},
    ],
    ids=lambda options: " ".join(str(value) for value in options.values()) or "default",
)


def made(config: XPEFTConfig = CONFIG, seed: int = 0) -> XPEFT:
    """An X-PEFT of two layers without an encoder."""
    return XPEFT(config, SHAPE, [*STARTS, *ENDS], torch.Generator().manual_seed(seed))


def changed(**changes: Any) -> XPEFTConfig:
    return XPEFTConfig.model_validate({**TINY, **changes})


def numbers(purpose: str, *shape: int) -> Floats:
    return generator(0, 0, "", purpose).normal(size=shape).astype(np.float32)


def of_model(model: PersonalModel) -> XPEFT:
    method = model.methods["xpeft"]
    assert isinstance(method, XPEFT)
    return method


def profile_of(model: PersonalModel, users: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    found = random_profile(seed, users, model.profile_spec())
    return {name: torch.tensor(values) for name, values in found.items()}


# The equation


def test_equation_against_a_literal_numpy_program() -> None:
    """Token by token, adapter by adapter; a hard mask of k = 3 of N = 7 and ReLU."""
    method = made()
    parts = {n: p.detach().numpy().astype(np.float64) for n, p in method.named_parameters()}
    logits = {name: numbers(name, 2, 2, 7) for name in MASKS}  # (batch, L, N)
    h = numbers("h", 2, 4, 5)
    frame = Frame({name: torch.tensor(values) for name, values in logits.items()}, torch.ones(2, 4))
    for site in ENDS:
        found = method.at_site(site, torch.zeros(2, 4, 9), torch.tensor(h), frame)
        bank = {name: parts[f"banks.{site.name}.{name}"] for name in ("down", "up")}
        expected = np.zeros((2, 4, 5))
        for row in range(2):
            mixed = {}
            for name, matrices in bank.items():
                order = np.argsort(-logits[f"xpeft.{name}"][row, site.layer])
                mixed[name] = sum(matrices[number] / 3 for number in order[:3])
            for token in range(4):
                low = h[row, token] @ mixed["down"]
                normal = (low - low.mean()) / np.sqrt(low.var() + 1e-5)
                expected[row, token] = np.maximum(normal, 0) @ mixed["up"]
        assert found is not None
        assert_close_relative(site.name, found.detach().numpy(), expected)


def test_it_acts_only_where_a_feed_forward_block_ends() -> None:
    frame = Frame({name: torch.zeros(2, 2, 7) for name in MASKS}, torch.ones(2, 4))
    for site in STARTS:
        assert made().at_site(site, torch.zeros(2, 4, 5), torch.zeros(2, 4, 9), frame) is None


def trained_names(model: PersonalModel) -> list[str]:
    """Every shared parameter that has a gradient: all but a random bank's matrices."""
    random = of_model(model).config.bank == "random"
    return [n for n in model.shared_names() if not (random and n.endswith((".down", ".up")))]


def assert_is_the_oracle(found: OracleResult, wanted: OracleResult) -> None:
    assert found.grads.keys() == wanted.grads.keys()
    assert_agree(found, wanted, set(wanted.grads))


@forms
def test_every_form_against_the_oracle(tiny_backbone: TinyBackbone, options: dict[str, Any]) -> None:
    """Logits and every gradient; a random bank has none."""
    model = trained_with(tiny_backbone("bert"), {"xpeft": changed(**options)})
    names = trained_names(model)
    assert len(names) == (6 if "bank" in options else 10)  # of two layers; and the head's two
    for seed in range(5):
        batch = random_batch(seed, 5, 9, 3, len(VOCABULARY))
        profile = random_profile(seed, 3, model.profile_spec())
        wanted = oracle_of(model, batch, profile)
        assert_is_the_oracle(torch_gradients(model, batch, profile, names), wanted)


@pytest.mark.parametrize(
    "options",
    [{"mask": "soft", "activation": "gelu"}, {"bank": "random"}, {"dead_zone": 0.7}],
)
def test_other_forms_in_onnxruntime(tiny_backbone: TinyBackbone, options: dict[str, Any]) -> None:
    backbone = tiny_backbone("bert")
    model = trained_with(backbone, {"xpeft": changed(**options)})
    names = tuple(trained_names(model))
    sessions = Sessions(Joint(backbone, model, names, export_joint(model, names, backbone.shape)))
    for rows, seq, users in ((1, 2, 1), (5, 9, 3)):
        batch = random_batch(rows, rows, seq, users, len(VOCABULARY))
        profile = random_profile(rows, users, model.profile_spec())
        assert_is_the_oracle(sessions.run(batch, profile), oracle_of(model, batch, profile))


def test_the_edge_of_a_dead_zone_in_onnxruntime(tiny_backbone: TinyBackbone) -> None:
    """The float32 at 0.3 is clear, the next one below is not: torch, onnxruntime and the oracle agree."""
    backbone = tiny_backbone("bert")
    model = trained_with(backbone, {"xpeft": changed(dead_zone=0.3)})
    names = tuple(trained_names(model))
    sessions = Sessions(Joint(backbone, model, names, export_joint(model, names, backbone.shape)))
    edge = np.float32(0.3)
    below = np.nextafter(edge, np.float32(0))
    row = np.array([edge, below, -edge, -below, 0.0, 2 * edge, below], np.float32)
    logits = np.stack([np.roll(row, n) for n in range(4)]).reshape(2, 2, 7)
    profile = {"xpeft.down": logits, "xpeft.up": logits[:, ::-1].copy()}
    batch = random_batch(0, 4, 6, 2, len(VOCABULARY))
    wanted = oracle_of(model, batch, profile)
    assert_is_the_oracle(torch_gradients(model, batch, profile, names), wanted)
    assert_is_the_oracle(sessions.run(batch, profile), wanted)


# Masks

rows_of_logits = st.integers(2, 130).flatmap(
    lambda count: st.tuples(st.just(count), st.integers(1, count - 1), st.integers(0, 2**32))
)


def random_logits(count: int, seed: int) -> Floats:
    """Returns logits (4, N), each row without equal ones; where two fell on one float32 it draws again."""
    values, draw = np.zeros((4, count), np.float32), 0
    while any(len(np.unique(row)) < count for row in values):
        values = generator(seed, draw, "", "logits").normal(size=(4, count)).astype(np.float32)
        draw += 1
    return values


@given(rows_of_logits, st.sampled_from([0.1, 1.0, 5.0]))
@settings(max_examples=60, deadline=None)
def test_a_hard_mask_is_equal_shares_of_the_k_largest(
    sizes: tuple[int, int, int], temperature: float
) -> None:
    count, kept, seed = sizes
    logits = random_logits(count, seed)
    mask = hard_mask(torch.tensor(logits), kept, temperature).numpy()
    for row, own in zip(mask, logits, strict=True):
        assert sorted(np.flatnonzero(row)) == sorted(np.argsort(-own)[:kept])
        assert set(row[row > 0]) == {np.float32(1) / np.float32(kept)}


@given(rows_of_logits)
@settings(max_examples=60, deadline=None)
def test_the_bits_that_are_kept_give_the_very_same_mask(sizes: tuple[int, int, int]) -> None:
    """Logits -> packed file -> bits 0.0 and 1.0 -> mask, for layers of any width and number of choices."""
    count, kept, seed = sizes
    config = XPEFTConfig(adapters=count, kept=kept, width=1, dead_zone=0.0)
    site = Site(0, "feed_forward", 1, 1, "x", 0)
    method = XPEFT(config, BackboneShape(1, 4, 1, 9, 9), [site], torch.Generator())
    spec = ProfileSpec(method.profile_tensors())
    logits = {"xpeft.down": random_logits(count, seed), "xpeft.up": random_logits(count, seed + 1)}
    data = pack_profile(spec, logits, "0" * 64)
    assert len(data) == spec.file_bytes == 40 + 2 * -(-4 * count // 8)
    for name, bits in unpack_profile(spec, data, "0" * 64).items():
        assert set(bits.ravel().tolist()) == {0.0, 1.0}
        masks = [hard_mask(torch.tensor(values), kept, 1.0) for values in (bits[0], logits[name])]
        assert torch.equal(*masks)


@given(
    rows_of_logits,
    st.sampled_from([0.000001, 0.1, 0.3, 0.999999]),
    st.sampled_from([1e-3, 0.1, 0.5, 2.0]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_the_bits_that_are_kept_give_the_very_same_mask_with_a_dead_zone(
    sizes: tuple[int, int, int], zone: float, scale: float, coarse: bool
) -> None:
    """Also of equal logits: rounded to tenths where `coarse`. The file is as long as without a dead zone."""
    count, kept, seed = sizes
    specs = [mask_spec(count, kept, zone) for zone in (0.0, zone)]
    logits = {name: random_logits(count, seed + n) * np.float32(scale) for n, name in enumerate(MASKS)}
    if coarse:
        logits = {name: values.round(1) for name, values in logits.items()}
    data = pack_profile(specs[1], logits, "0" * 64)
    assert len(data) == specs[1].file_bytes == specs[0].file_bytes == 40 + 2 * -(-4 * count // 8)
    read = unpack_profile(specs[1], data, "0" * 64)
    for name, bits in read.items():
        assert set(bits.ravel().tolist()) <= {0.0, 1.0}
        masks = [hard_mask(torch.tensor(values), kept, 1.0, zone) for values in (bits[0], logits[name])]
        assert torch.equal(*masks)
    assert pack_profile(specs[1], read, "0" * 64) == data


def mask_spec(count: int, kept: int, zone: float) -> ProfileSpec:
    """Private tensors of an X-PEFT of four layers."""
    config = XPEFTConfig(adapters=count, kept=kept, width=1, dead_zone=zone)
    site = Site(0, "feed_forward", 1, 1, "x", 0)
    method = XPEFT(config, BackboneShape(1, 4, 1, 9, 9), [site], torch.Generator())
    return ProfileSpec(method.profile_tensors())


@given(rows_of_logits, st.sampled_from([0.1, 0.5]))
@settings(max_examples=60, deadline=None)
def test_a_dead_zone_leaves_what_is_clear(sizes: tuple[int, int, int], zone: float) -> None:
    """Enough clear ones: the paper's mask. Fewer: all but the clearly negative, and everything if none is."""
    count, kept, seed = sizes
    logits = random_logits(count, seed)
    masks = hard_mask(torch.tensor(logits), kept, 1.0, zone).numpy()
    for mask, own in zip(masks, logits, strict=True):
        likes, dislikes = (own >= np.float32(zone)), (own <= -np.float32(zone))
        if likes.sum() >= kept:
            assert np.array_equal(mask, hard_mask(torch.tensor(own), kept, 1.0).numpy())
        elif (~dislikes).sum() >= kept:
            assert np.array_equal(mask > 0, ~dislikes)
            assert len(set(mask[mask > 0])) == 1
        else:
            assert np.array_equal(mask, hard_mask(torch.tensor(own), kept, 1.0).numpy())


@given(rows_of_logits, st.sampled_from([0.1, 1.0, 5.0]))
@settings(max_examples=60, deadline=None)
def test_no_dead_zone_is_the_papers_mask(sizes: tuple[int, int, int], temperature: float) -> None:
    """Written out as it was before there was one, ties included, to the bit; and stored as it was."""
    count, kept, seed = sizes
    logits = torch.tensor(random_logits(count, seed).round(1))
    chosen = (logits >= torch.topk(logits, kept, dim=-1).values[..., -1:]).float()
    assert torch.equal(hard_mask(logits, kept, temperature, 0.0), chosen / chosen.sum(-1, keepdim=True))
    assert {tensor.storage for tensor in mask_spec(count, kept, 0.0).tensors} == {f"top:{kept}"}


@given(rows_of_logits, st.sampled_from([0.000001, 0.1, 0.3]), st.floats(0, 0.999))
@settings(max_examples=60, deadline=None)
def test_logits_in_the_dead_zone_are_nobodys(sizes: tuple[int, int, int], zone: float, share: float) -> None:
    """However they are scaled below it: exactly the mask of zeros, and the bits of zeros."""
    count, kept, seed = sizes
    logits = random_logits(count, seed)
    logits *= np.float32(share * zone) / np.abs(logits).max()
    assert torch.equal(
        hard_mask(torch.tensor(logits), kept, 1.0, zone), hard_mask(torch.zeros(4, count), kept, 1.0)
    )
    assert not any(tensor.stored(logits).any() for tensor in mask_spec(count, kept, zone).tensors)


@pytest.mark.parametrize("bank", ["trained", "random"])
def test_a_profile_in_the_dead_zone_is_the_generic_model(tiny_backbone: TinyBackbone, bank: str) -> None:
    """To the bit, until one logit is clear."""
    model = trained_with(tiny_backbone("bert"), {"xpeft": changed(dead_zone=0.5, bank=bank)})
    batch = random_batch(0, 4, 8, 1, len(VOCABULARY))
    profile = profile_of(model)
    largest = max(float(values.abs().max()) for values in profile.values())

    def logits(scale: float) -> torch.Tensor:
        found = model(*batch.tensors(), {name: scale * values for name, values in profile.items()})
        assert isinstance(found, torch.Tensor)
        return found

    generic = logits(0.0)
    for scale in (1e-6, 0.1, 0.499 / largest):
        assert torch.equal(logits(scale), generic)
    assert not torch.equal(logits(1.0), generic)


@pytest.mark.parametrize("zone", [0.0, 0.5])
def test_a_packed_profile_says_the_same_logits(tiny_backbone: TinyBackbone, zone: float) -> None:
    """To the bit, through the whole model, person by person."""
    model = trained_with(tiny_backbone("bert"), {"xpeft": changed(dead_zone=zone)})
    batch = random_batch(0, 4, 8, 1, len(VOCABULARY))
    spec = model.profile_spec()
    for seed in range(5):
        learned = random_profile(seed, 1, spec)
        kept = unpack_profile(spec, pack_profile(spec, learned, "0" * 64), "0" * 64)
        both = [
            model(*batch.tensors(), {name: torch.tensor(values) for name, values in profile.items()})
            for profile in (learned, kept)
        ]
        assert torch.equal(*both)


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(2, 40),
    temperature=st.sampled_from([0.3, 1.0, 4.0]),
    zone=st.sampled_from([0.0, 0.3, 0.9]),
)
@settings(max_examples=40, deadline=None)
def test_the_gradient_of_a_hard_mask_is_that_of_the_softmax(
    seed: int, count: int, temperature: float, zone: float
) -> None:
    logits = torch.tensor(random_logits(count, seed), requires_grad=True)
    weights = torch.tensor(random_logits(count, seed + 1))
    hard = torch.autograd.grad((hard_mask(logits, 1, temperature, zone) * weights).sum(), logits)[0]
    soft = torch.autograd.grad((soft_mask(logits, temperature) * weights).sum(), logits)[0]
    assert torch.equal(hard, soft)
    assert bool(hard.any())


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5])
@pytest.mark.parametrize("count", [2, 7, 100])
def test_a_row_of_equal_values_is_the_mean_of_the_bank(value: float, count: int) -> None:
    logits = torch.full((1, count), value)
    uniform = torch.full((1, count), 1.0) / count
    assert torch.equal(hard_mask(logits, 1, 1.0), uniform)
    torch.testing.assert_close(soft_mask(logits, 1.0), uniform)


def test_equal_values_at_the_edge_are_chosen_together() -> None:
    mask = hard_mask(torch.tensor([[3.0, 1.0, 1.0, 0.0]]), 2, 1.0)
    torch.testing.assert_close(mask, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]]))


# Birth


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bank", ["trained", "random"])
def test_a_new_model_is_the_backbone(tiny_backbone: TinyBackbone, family: str, bank: str) -> None:
    """A random bank adds zeros; a trained one the rounding of a mean that is zero: 1e-6 of logits near 1."""
    backbone = tiny_backbone(family)
    model = build_model(backbone, "classification", ("a", "b"), {"xpeft": changed(bank=bank)}, 0).eval()
    ids, mask, owner = random_batch(0, 3, 5, 1, backbone.shape.vocabulary).tensors()
    nobody = {name: torch.tensor(values) for name, values in model.profile_spec().zeros(1).items()}
    plain = model.task(backbone.module(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
    tolerance = 0.0 if bank == "random" else 1e-6
    torch.testing.assert_close(model(ids, mask, owner, nobody), plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mask", ["hard", "soft"])
@pytest.mark.parametrize("bank", ["trained", "random"])
def test_a_new_model_can_learn_both_masks(tiny_backbone: TinyBackbone, mask: str, bank: str) -> None:
    """At birth the up-masks have a gradient, since the B_i differ; once they moved, the down-masks too."""
    config = changed(mask=mask, bank=bank, dead_zone=0.0)
    model = build_model(tiny_backbone("bert"), "classification", ("a", "b"), {"xpeft": config}, 0).eval()
    batch = random_batch(0, 6, 8, 1, len(VOCABULARY))
    profile = {name: torch.zeros(1, 2, 7, requires_grad=True) for name in MASKS}

    def gradients() -> dict[str, torch.Tensor]:
        nll = model.task.nll(model(*batch.tensors(), profile), torch.tensor(batch.labels % 2)).sum()
        return dict(zip(MASKS, torch.autograd.grad(nll, list(profile.values())), strict=True))

    first = gradients()
    assert first["xpeft.up"].abs().amax(-1).min() > 1e-6  # in every layer
    if bank == "random":
        assert not first["xpeft.down"].any()  # exactly zero, so that no step is made of rounding
    with torch.no_grad():
        profile["xpeft.up"] -= 0.1 * first["xpeft.up"] / first["xpeft.up"].abs().max()
    assert gradients()["xpeft.down"].abs().amax(-1).min() > 1e-9


def test_up_projections_that_are_all_alike_would_never_be_told_apart(tiny_backbone: TinyBackbone) -> None:
    """Why they do not start at zeros: the gradient of a mask over equal adapters is zero."""
    model = build_model(tiny_backbone("bert"), "classification", ("a", "b"), {"xpeft": CONFIG}, 0).eval()
    with torch.no_grad():
        for site in of_model(model).sites:
            of_model(model).get_parameter(f"banks.{site.name}.up").fill_(0.01)
    batch = random_batch(0, 6, 8, 1, len(VOCABULARY))
    profile = {name: torch.zeros(1, 2, 7, requires_grad=True) for name in MASKS}
    nll = model.task.nll(model(*batch.tensors(), profile), torch.tensor(batch.labels % 2)).sum()
    assert torch.autograd.grad(nll, profile["xpeft.up"])[0].abs().max() < 1e-7


@pytest.mark.parametrize("bank", ["trained", "random"])
def test_a_mix_of_k_has_the_spread_that_is_asked_for(bank: str) -> None:
    """k of N with weights 1/k; centring takes a share k/N of the up-projections' variance."""
    shape = BackboneShape(64, 1, 1, 9, 9)
    site = Site(0, "feed_forward", 64, 64, "x", 0)
    config = XPEFTConfig(adapters=80, kept=20, width=16, spread=0.05, bank=bank)  # type: ignore[arg-type]
    method = XPEFT(config, shape, [site], torch.Generator().manual_seed(0))
    profile = {name: torch.tensor(numbers(name, 1, 80)) for name in MASKS}
    down, up = method.fold_adapter(profile)[site.name]
    assert (down.shape, up.shape) == ((64, 16), (16, 64))
    assert float(down.std()) == pytest.approx(0.05, rel=0.1)
    assert float(up.std()) == pytest.approx(0.05 * (1 - 20 / 80) ** 0.5, rel=0.1)
    nobody = method.fold_adapter({name: torch.zeros(1, 80) for name in MASKS})[site.name]
    assert float(nobody[1].abs().max()) < 1e-7
    plain = XPEFT(config.model_copy(update={"centred": False}), shape, [site], torch.Generator())
    assert float(plain.fold_adapter({n: torch.zeros(1, 80) for n in MASKS})[site.name][1].abs().max()) > 0.01


# Random banks


def test_a_random_bank_is_what_its_seed_says() -> None:
    """Whatever the seed of the model; each layer and each side has its own."""
    config = changed(bank="random", bank_seed=5)
    for seed in (0, 1):
        for layer, site in enumerate(ENDS):
            for side, shape in (("down", (7, 5, 8)), ("up", (7, 8, 5))):
                found = made(config, seed).get_parameter(f"banks.{site.name}.{side}").detach().numpy()
                wanted = random_bank(5, f"layer {layer} {side}", shape, 0.1 * 3**0.5)
                np.testing.assert_array_equal(found, wanted)


# Start


def started(summary: npt.NDArray[np.float64], config: XPEFTConfig | None = None) -> dict[str, Floats]:
    """Where training starts the users of these summaries; 200 adapters unless told otherwise."""
    found = made(config or changed(adapters=200)).start_users(torch.tensor(summary))
    assert list(found) == list(MASKS)
    assert {values.dtype for values in found.values()} == {torch.float32}
    return {name: values.numpy() for name, values in found.items()}


def summary_of(users: int, features: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return generator(seed, 0, "", "summary").normal(size=(users, features))


def test_users_whose_labels_say_alike_start_with_alike_masks() -> None:
    """The cosine of two users' 800 logits is that of their summaries: within 4 / sqrt(800), so it is told."""
    summary = summary_of(6, 9)
    summary[1] = summary[0] + 0.1 * summary[1]
    summary[2] = -summary[0]
    logits = np.concatenate([v.reshape(6, -1) for v in started(summary).values()], axis=1)
    for one in range(6):
        for two in range(one):
            cosines = [
                values[one] @ values[two] / np.linalg.norm(values[one]) / np.linalg.norm(values[two])
                for values in (summary, logits)
            ]
            assert cosines[0] == pytest.approx(cosines[1], abs=4 / 800**0.5)


@given(users=st.integers(1, 9), features=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_start_is_of_unit_size(users: int, features: int, seed: int) -> None:
    found = started(summary_of(users, features, seed), CONFIG)
    assert {values.shape for values in found.values()} == {(users, 2, 7)}
    assert np.mean([np.square(values) for values in found.values()]) == pytest.approx(1, rel=1e-5)


def test_a_start_has_no_sign_to_choose() -> None:
    """Directions come with signs that differ between machines; what is opposite must start opposite."""
    summary = summary_of(30, 25)
    for name, values in started(summary).items():
        np.testing.assert_allclose(started(-summary)[name], -values, atol=1e-5)


def test_people_who_do_not_differ_start_at_zeros() -> None:
    assert not any(values.any() for values in started(np.zeros((4, 5))).values())


def test_a_start_is_made_only_where_it_is_asked_for() -> None:
    assert made().starts_users()
    assert not made(changed(start="zeros")).starts_users()


# Folding, dropout


@forms
def test_the_folded_adapter_is_the_unfolded_form(
    tiny_backbone: TinyBackbone, options: dict[str, Any]
) -> None:
    """A_u and B_u of one person, in a program of four lines, give what the model adds; 1e-5 for float32."""
    model = trained_with(tiny_backbone("bert"), {"xpeft": changed(**options)})
    method = of_model(model)
    profile = profile_of(model)
    folded = method.fold_adapter({name: values[0] for name, values in profile.items()})
    assert list(folded) == ["layer_0_feed_forward", "layer_1_feed_forward"]
    h = torch.tensor(numbers("h", 1, 4, 32))
    act = getattr(torch, options.get("activation", "relu"), torch.nn.functional.gelu)
    for site in method.sites:
        down, up = folded[site.name]
        weight, bias = (method.get_parameter(f"banks.{site.name}.norm_{part}") for part in ("weight", "bias"))
        inner = torch.nn.functional.layer_norm(h @ down, (8,), weight, bias, 1e-5)
        delta = method.at_site(site, torch.zeros(1, 4, 48), h, Frame(profile, torch.ones(1, 4)))
        assert delta is not None
        assert_close_relative("delta", delta.detach().numpy(), (act(inner) @ up).detach().numpy())


def test_it_is_no_change_of_weights() -> None:
    with pytest.raises(NotImplementedError, match="xpeft cannot be folded into weights"):
        made().fold(ENDS[0], {})


@forms
def test_personalised_dropout_hides_both_masks(tiny_backbone: TinyBackbone, options: dict[str, Any]) -> None:
    model = trained_with(tiny_backbone("bert"), {"xpeft": changed(**options)})
    ids, mask, _ = random_batch(0, 4, 6, 4, len(VOCABULARY)).tensors()
    profile = profile_of(model, 4)

    def logits(keep: list[float] | None, values: dict[str, torch.Tensor]) -> torch.Tensor:
        kept = None if keep is None else torch.tensor(keep).unsqueeze(1)
        return model.run(ids, mask, Frame(values, mask, keep=kept))

    personal = logits(None, profile)
    generic = logits(None, {name: torch.zeros_like(values) for name, values in profile.items()})
    mixed = logits([1.0, 0.0, 1.0, 0.0], profile)
    torch.testing.assert_close(mixed[[0, 2]], personal[[0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(mixed[[1, 3]], generic[[1, 3]], rtol=0, atol=0)
    assert not torch.allclose(personal, generic, rtol=1e-4)


# Counts and bytes


def test_counts_at_the_papers_size() -> None:
    """BERT-base, N = 100, k = 50, hard: 300 bytes a person, against one bottleneck-48 adapter of 3,538,944.

    Both masks have 12 * 100 bits: 2 * 150 bytes. An adapter has 12 layers of 2 * 768 * 48 float32.
    The bank has 100 of them; LayerNorm adds 12 * 2 * 48.
    """
    sites = [Site(layer, "feed_forward", 3072, 768, f"{layer}", 0) for layer in range(12)]
    shape = BackboneShape(768, 12, 12, 30522, 512)
    with torch.device("meta"):
        method = XPEFT(XPEFTConfig(width=48), shape, sites, torch.Generator())
    spec = ProfileSpec(method.profile_tensors())
    assert [(tensor.shape, tensor.storage) for tensor in spec.tensors] == [((12, 100), "top:50@0.25")] * 2
    adapter = 12 * 2 * 768 * 48 * 4
    assert (spec.packed_bytes, adapter) == (300, 3_538_944)
    assert spec.packed_bytes == 2 * -(-12 * 100 // 8)
    assert adapter > 10_000 * spec.packed_bytes
    trained = sum(parameter.numel() for parameter in method.parameters())
    assert trained == 100 * adapter // 4 + 12 * 2 * 48


@given(
    layers=st.integers(1, 24),
    sizes=st.integers(2, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
)
@settings(max_examples=40, deadline=None)
def test_bytes_of_a_profile(layers: int, sizes: tuple[int, int]) -> None:
    adapters, kept = sizes
    site = Site(0, "feed_forward", 1, 1, "x", 0)
    shape = BackboneShape(1, layers, 1, 9, 9)
    for mask, expected in (("hard", 2 * -(-layers * adapters // 8)), ("soft", 2 * 2 * layers * adapters)):
        config = XPEFTConfig.model_validate({"adapters": adapters, "kept": kept, "width": 1, "mask": mask})
        method = XPEFT(config, shape, [site], torch.Generator())
        assert ProfileSpec(method.profile_tensors()).packed_bytes == expected


# Options


@pytest.mark.parametrize(
    "wrong",
    [
        {"adapters": 1},
        {"width": 0},
        {"kept": 0},
        {"dead_zone": -0.1},
        {"dead_zone": 1.0},
        {"dead_zone": float("nan")},
        {"mask": "firm"},
        {"bank": "none"},
        {"bank_seed": -1},
        {"activation": "step"},
        {"temperature": 0.0},
        {"spread": 0.0},
        {"masks": "hard"},
    ],
)
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as error:
        validated(CoordinatorConfig, {"methods": {"xpeft": wrong}}, "config.toml")
    (problem,) = error.value.problems
    assert problem.startswith(f"methods.xpeft.{next(iter(wrong))}: ")


def test_a_mask_must_leave_some_out() -> None:
    with pytest.raises(ConfigError) as error:
        validated(CoordinatorConfig, {"methods": {"xpeft": {"adapters": 20}}}, "config.toml")
    (problem,) = error.value.problems
    assert "kept is 50, expected fewer than adapters, which is 20" in problem


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dead_zone": 0.1, "mask": "soft"}, "dead_zone is 0.1, but a soft mask has none"),
        ({"dead_zone": 1e-7}, "dead_zone is 1e-07, expected at most six decimal places"),
        ({"dead_zone": 0.1 + 0.2}, "expected at most six decimal places"),
    ],
)
def test_a_dead_zone_that_is_none(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        validated(CoordinatorConfig, {"methods": {"xpeft": options}}, "config.toml")
    assert problem in error.value.problems[0]


def test_devices_train_none_of_it_in_rounds() -> None:
    config = validated(CoordinatorConfig, {"methods": {"xpeft": {}}}, "config.toml")
    assert config.trainables == ("task.*",)


# The whole way


@pytest.mark.parametrize(
    ("bank", "zone"),
    [
        pytest.param("trained", 0.0, marks=pytest.mark.slow),
        ("random", 0.0),
        pytest.param("random", 0.25, marks=pytest.mark.slow),
    ],
)
def test_from_a_configuration_to_a_person(tmp_path: Path, bank: str, zone: float) -> None:
    """Trains, publishes, learns on a device, keeps bits, predicts with them; a random bank stays as made."""
    backbone = write_backbone(tmp_path / "backbone", tiny_config("bert"))
    row: dict[str, Any] = {
        "backbone": {"name": str(backbone), "max_tokens": 16},
        "methods": {
            "xpeft": {
                "adapters": 12,
                "kept": 4,
                "width": 8,
                "spread": 0.3,
                "bank": bank,
                "dead_zone": zone,
            }
        },
        "training": {"max_steps": 40, "batch_size": 16, "evaluate_every": 20, "shared_rate": 0.01},
        "recipe": {"steps": [8], "prior_strength": [0.1], "k": [4]},
    }
    config = validated(CoordinatorConfig, row, "config")
    examples = [example for n in range(8) for example in random_examples(0, f"user {n}", 24)]
    trained = train(config, examples, tmp_path / "training", threads=1)
    new = build_model(
        load_backbone(str(backbone)), "classification", trained.labels, config.method_configs(), 0
    )
    for name in new.shared_names():
        moved = not torch.equal(trained.tensors[name], new.get_parameter(name))
        assert moved == (bank == "trained" or not name.endswith((".down", ".up"))), name

    release = publish(trained, tmp_path / "release")
    assert max(release.manifest.parity.values()) <= TOLERANCE
    own = random_examples(0, "somebody new", 8)
    learned = learn_profile(release, own, tmp_path / "profile.umbel")
    assert learned.nll_personal < learned.nll_generic
    assert learned.file_bytes == 40 + 2 * 3
    profile = read_profile(release, tmp_path / "profile.umbel")
    ones = set(profile["xpeft.up"].sum(-1).ravel().tolist())
    assert ones <= {0, *range(4, 12)} if zone else ones == {4.0}
    texts = [example.text for example in own]
    mine, plain = (predict_texts(release, texts, path) for path in (tmp_path / "profile.umbel", None))
    assert [row.probability for row in mine] != [row.probability for row in plain]


def test_a_soft_mask_learns_as_other_tensors_do() -> None:
    soft = XPEFTConfig.model_validate({"mask": "soft"})
    assert (soft.dead_zone, soft.device_moment, soft.device_rate, soft.device_prior) == (0, "recipe", 1, 0.01)
    assert XPEFTConfig.model_validate({"mask": "soft", "device_rate": 2}).device_rate == 2
    hard = XPEFTConfig.model_validate({})
    assert (hard.dead_zone, hard.device_moment, hard.device_rate) == (0.25, "none", 50)
