"""LoPA: its three forms, its birth, what the text says, dropout of people, start, basis, counts."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.builders import random_examples
from tests.coordinator.conftest import VOCABULARY, TinyBackbone, tiny_config, write_backbone
from tests.coordinator.personal import (
    assert_agree,
    oracle_of,
    random_batch,
    random_profile,
    torch_gradients,
    trained_with,
)
from tests.coordinator.test_every_method import assert_graphs_agree
from tests.numeric import assert_close_relative

from umbel.coordinator.backbone import Backbone, BackboneShape
from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.graphs.parity import TOLERANCE
from umbel.coordinator.methods.lopa import LoPA, LoPAConfig
from umbel.coordinator.publish import publish
from umbel.coordinator.sites import Frame, Site
from umbel.coordinator.train import train
from umbel.device_client.device import learn_profile
from umbel.device_client.prediction import predict_texts
from umbel.device_client.profile_file import read_profile
from umbel.shared.profile import ProfileSpec
from umbel.shared.rng import generator

Floats = npt.NDArray[np.float32]

D, M, R = 6, 3, 2
SHAPE = BackboneShape(hidden_size=D, layers=1, heads=1, vocabulary=9, max_tokens=9)
COMBINE, PRIVATE = ("product", "add", "concat"), ("both", "rows")
FORMS = [
    {"combine": combine, "private": private, "instance": instance}
    for combine in COMBINE
    for private in PRIVATE
    for instance in (True, False)
]


def options(**changes: object) -> LoPAConfig:
    return LoPAConfig.model_validate({"rows": M, "rank": R, "width": 5, **changes})


def form_name(form: dict[str, object]) -> str:
    return f"{form['combine']}-{form['private']}-{'text' if form['instance'] else 'no text'}"


forms = pytest.mark.parametrize("form", FORMS, ids=form_name)


def lone_lopa(**changes: object) -> LoPA:
    """A LoPA without an encoder whose heads have a say: large weights, biases that are not zero."""
    method = LoPA(options(**changes), SHAPE, [], torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if "head" in name:
                parameter.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    return method.eval()


def numbers(purpose: str, *shape: int) -> Floats:
    return generator(0, 0, "", purpose).normal(size=shape).astype(np.float32)


def people(method: LoPA, batch: int, size: float = 1.0) -> dict[str, torch.Tensor]:
    """Private factors, a row per example."""
    return {
        spec.name: torch.tensor(size * numbers(spec.name, batch, *spec.shape))
        for spec in method.profile_tensors()
    }


def prompt_of(
    method: LoPA,
    profile: dict[str, torch.Tensor],
    texts: Floats,
    mask: npt.NDArray[Any] | None = None,
    keep: list[float] | None = None,
) -> Floats:
    """The rows before texts (batch, seq, d)."""
    ones = np.ones(texts.shape[:2]) if mask is None else mask
    kept = None if keep is None else torch.tensor(keep).unsqueeze(1)
    rows = method.prompt(torch.tensor(texts), Frame(profile, torch.tensor(ones), keep=kept))
    return rows.detach().numpy()


def literal_rows(
    method: LoPA, profile: dict[str, torch.Tensor], row: int, text: Floats
) -> npt.NDArray[np.float64]:
    """The equation for one example, entry by entry; text (tokens, d) holds no padding."""
    p = {name: values.detach().numpy().astype(np.float64) for name, values in method.named_parameters()}
    mine = {name: values[row].numpy().astype(np.float64) for name, values in profile.items()}
    basis = p["V"] + (mine["lopa.columns"] @ p["S"] if "lopa.columns" in mine else 0.0)
    e = text.astype(np.float64).mean(0)
    e = (e - e.mean()) / np.sqrt(e.var() + 1e-6)
    U = V = np.zeros(0)
    if method.config.instance:
        U, V = (
            p[f"{head}.W2"] @ np.tanh(p[f"{head}.W1"] @ e + p[f"{head}.b1"]) + p[f"{head}.b2"]
            for head in ("row_head", "column_head")
        )
    first, second = np.zeros((M, D)), np.zeros((M, D))
    for i in range(M):
        for j in range(D):
            personal = sum(mine["lopa.rows"][i, k] * basis[j, k] for k in range(R))
            said = sum(U[i * R + k] * V[j * R + k] for k in range(R)) if len(U) else 0.0
            if method.config.combine == "product":
                first[i, j] = p["Z"][i, j] * 2 / (1 + np.exp(-(personal + said)))
            elif method.config.combine == "add":
                first[i, j] = p["Z"][i, j] + personal + said
            else:
                first[i, j] = p["Z"][i, j] * 2 / (1 + np.exp(-said))
                second[i, j] = p["Z_own"][i, j] + personal
    return np.concatenate([first, second]) if method.config.combine == "concat" else first


@forms
def test_equation_against_a_literal_numpy_program(form: dict[str, object]) -> None:
    """1e-6 is float32's rounding over sums of at most six terms."""
    method = lone_lopa(**form)
    texts, profile = numbers("texts", 4, 5, D), people(method, 4)
    mask = (np.arange(5) < np.array([[5], [1], [3], [4]])).astype(np.int64)
    found = prompt_of(method, profile, texts, mask)
    assert found.shape == (4, method.prompt_rows(), D)
    for row in range(4):
        expected = literal_rows(method, profile, row, texts[row, : mask[row].sum()])
        assert_close_relative(f"row {row}", found[row], expected, 1e-6)


@pytest.fixture(scope="module")
def bert(tiny_backbone: TinyBackbone) -> Backbone:
    return tiny_backbone("bert")


@forms
def test_every_form_against_the_oracle(bert: Backbone, form: dict[str, object]) -> None:
    """Logits, losses and every gradient, three users in a batch."""
    model = trained_with(bert, {"lopa": options(**form)})
    batch, profile = random_batch(1, 5, 8, 3, len(VOCABULARY)), random_profile(1, 3, model.profile_spec())
    found = torch_gradients(model, batch, profile)
    assert found.grads.keys() == {*model.shared_names(), *profile}
    assert_agree(found, oracle_of(model, batch, profile), set(found.grads))


@given(
    form=st.sampled_from(FORMS),
    rows=st.integers(1, 4),
    rank=st.integers(2, 4),
    width=st.integers(4, 8),
    standardise=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_options_against_the_oracle(
    bert: Backbone,
    form: dict[str, object],
    rows: int,
    rank: int,
    width: int,
    standardise: bool,
    seed: int,
) -> None:
    """No tensor of one value, which may be the small difference of large terms (`assert_close_relative`)."""
    config = options(rows=rows, rank=rank, width=width, standardise=standardise, **form)
    model = trained_with(bert, {"lopa": config})
    batch = random_batch(seed, 3, 6, 2, len(VOCABULARY))
    profile = random_profile(seed, 2, model.profile_spec())
    found = torch_gradients(model, batch, profile)
    assert_agree(found, oracle_of(model, batch, profile), set(found.grads))


def test_rows_beside_each_other_as_graphs(bert: Backbone) -> None:
    """The form that differs most; test_every_method has the usual one, and the slow test below has all."""
    config = options(combine="concat", private="rows", standardise=False)
    assert_graphs_agree(bert, trained_with(bert, {"lopa": config}), oracle=True)


@pytest.mark.slow
@forms
def test_every_form_as_graphs(bert: Backbone, form: dict[str, object]) -> None:
    assert_graphs_agree(bert, trained_with(bert, {"lopa": options(**form)}), oracle=True)


def test_birth() -> None:
    """Z has the spread of word embeddings, heads N(0, 0.02), their biases zero; V and S fit the form."""
    shape = BackboneShape(hidden_size=384, layers=6, heads=12, vocabulary=9, max_tokens=510)
    for combine, size in (("product", 1.0), ("add", 0.055), ("concat", 0.055)):
        config = LoPAConfig.model_validate({"combine": combine})
        method = LoPA(config, shape, [], torch.Generator().manual_seed(0))
        values = {name: parameter.detach().numpy() for name, parameter in method.named_parameters()}
        spreads = {"Z": 0.055, "V": size / 2}
        for head in ("row_head", "column_head"):
            spreads |= {f"{head}.W1": 0.02, f"{head}.W2": 0.02}
            assert not values[f"{head}.b1"].any()
            assert not values[f"{head}.b2"].any()
        if combine == "concat":
            spreads["Z_own"] = 0.055
        for name, spread in spreads.items():
            assert np.std(values[name]) == pytest.approx(spread, rel=0.05), name
        np.testing.assert_allclose(values["S"], size / 2 * np.eye(4), rtol=1e-6)


def test_the_default_spread_is_that_of_minilms_word_embeddings(minilm: Backbone) -> None:
    module: Any = minilm.module
    words = module.get_input_embeddings().weight
    assert LoPAConfig().init_std == pytest.approx(float(words.detach().std()), rel=0.02)  # 0.0556


@forms
def test_a_person_without_factors_has_the_generic_prompt(form: dict[str, object]) -> None:
    """To the bit, for every text; without heads the prompt is the shared rows themselves."""
    method = lone_lopa(**form)
    texts = numbers("texts", 2, 4, D)
    nobody = {name: torch.zeros_like(values) for name, values in people(method, 2).items()}
    found = prompt_of(method, nobody, texts)
    anybody = people(method, 2)
    assert np.abs(prompt_of(method, anybody, texts) - found).max() > 1e-3
    with torch.no_grad():  # with no basis left, factors say nothing: what remains is generic
        method.V.zero_()
        if method.config.private == "both":
            method.S.zero_()
    np.testing.assert_array_equal(found, prompt_of(method, anybody, texts))
    if not method.config.instance:
        shared = ("Z", "Z_own") if method.config.combine == "concat" else ("Z",)
        both = np.concatenate([method.get_parameter(name).detach().numpy() for name in shared])
        np.testing.assert_array_equal(found, np.stack([both, both]))


@pytest.mark.parametrize("private", ["both", "rows"])
def test_one_factor_alone_says_nothing_but_rows_over_the_basis_do(private: str) -> None:
    """U_u is what makes a person; V_u by itself, with U_u at zeros, leaves the generic prompt."""
    method = lone_lopa(private=private)
    texts, profile = numbers("texts", 2, 4, D), people(method, 2)
    nobody = {name: torch.zeros_like(values) for name, values in profile.items()}
    generic = prompt_of(method, nobody, texts)
    rows = prompt_of(method, {**nobody, "lopa.rows": profile["lopa.rows"]}, texts)
    assert np.abs(rows - generic).max() > 1e-2
    if private == "both":
        columns = {**nobody, "lopa.columns": profile["lopa.columns"]}
        np.testing.assert_array_equal(prompt_of(method, columns, texts), generic)


@pytest.mark.parametrize("combine", COMBINE)
def test_without_the_shared_basis_nothing_could_be_learned(bert: Backbone, combine: str) -> None:
    """At zeros the gradient of U_u comes from V alone: with V = 0 both factors' gradients are zero."""
    model = trained_with(bert, {"lopa": options(combine=combine)})
    batch, nobody = random_batch(1, 4, 6, 1, len(VOCABULARY)), model.profile_spec().zeros(1)
    found = torch_gradients(model, batch, nobody).grads
    assert np.abs(found["lopa.rows"]).max() > 1e-5
    with torch.no_grad():
        model.get_parameter("methods.lopa.V").zero_()
    found = torch_gradients(model, batch, nobody).grads
    assert not found["lopa.rows"].any()
    assert not found["lopa.columns"].any()


@given(size=st.sampled_from([0.1, 1.0, 30.0]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_product_never_turns_nor_doubles_an_entry(size: float, seed: int) -> None:
    """0 <= Z / Z_S <= 2 however large the factors are."""
    method = lone_lopa()
    texts = generator(seed, 0, "", "texts").normal(size=(2, 3, D)).astype(np.float32)
    ratio = prompt_of(method, people(method, 2, size), texts) / method.Z.detach().numpy()
    assert ratio.min() >= 0
    assert ratio.max() <= 2 * (1 + 1e-6)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_padding_and_the_order_of_tokens_do_not_matter(lengths: list[int], seed: int) -> None:
    """The heads read a mean over tokens: 1e-5 for its rounding in another order."""
    method, rng = lone_lopa(), generator(seed, 0, "", "texts")
    texts = rng.normal(size=(len(lengths), 6, D)).astype(np.float32)
    mask = (np.arange(6) < np.array(lengths)[:, None]).astype(np.int64)
    profile = people(method, len(lengths))
    found = prompt_of(method, profile, texts, mask)
    other = rng.normal(size=texts.shape).astype(np.float32)  # whatever stands in the padding
    for row, length in enumerate(lengths):
        other[row, :length] = texts[row, rng.permutation(length)]
    assert_close_relative("prompt", prompt_of(method, profile, other, mask), found, 1e-5)


def test_the_text_has_a_say_only_with_heads() -> None:
    texts = numbers("texts", 2, 4, D)
    for form in FORMS:
        method = lone_lopa(**form)
        profile = {name: values[:1].expand_as(values) for name, values in people(method, 2).items()}
        one, two = prompt_of(method, profile, texts)
        assert (np.abs(one - two).max() > 1e-3) == method.config.instance


def test_standardised_texts_have_one_size() -> None:
    """A text's mean embedding is small; as it is, the heads' product would hardly move."""
    method, profile = lone_lopa(), people(lone_lopa(), 2)
    texts = numbers("texts", 2, 4, D)
    usual, small = prompt_of(method, profile, texts), prompt_of(method, profile, texts * np.float32(0.1))
    assert_close_relative("prompt", small, usual, 1e-3)  # 1e-6 is added to a variance of about 0.003
    plain = lone_lopa(standardise=False)
    usual, small = prompt_of(plain, profile, texts), prompt_of(plain, profile, texts * np.float32(0.1))
    assert np.abs(small - usual).max() > 1e-2


@forms
def test_personalised_dropout_hides_a_whole_person_and_rescales_nothing(form: dict[str, object]) -> None:
    method = lone_lopa(**form)
    texts, profile = numbers("texts", 4, 3, D), people(method, 4)
    nobody = {name: torch.zeros_like(values) for name, values in profile.items()}
    mixed = prompt_of(method, profile, texts, keep=[1.0, 0.0, 1.0, 0.0])
    np.testing.assert_array_equal(mixed[[0, 2]], prompt_of(method, profile, texts)[[0, 2]])
    np.testing.assert_array_equal(mixed[[1, 3]], prompt_of(method, nobody, texts)[[1, 3]])


def test_the_heads_input_is_dropped_in_training_only() -> None:
    method, texts = lone_lopa(dropout=0.5), numbers("texts", 1, 3, D)
    profile = people(method, 1)
    np.testing.assert_array_equal(prompt_of(method, profile, texts), prompt_of(lone_lopa(), profile, texts))
    method.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = [prompt_of(method, profile, texts) for _ in range(8)]
    assert len({rows.tobytes() for rows in found}) > 4


def test_counts_at_the_papers_size() -> None:
    """RoBERTa-large, m = 10, r = 4, width 256: 1.60 M trainable in the paper.

    Z 10 * 1024; row head (1024 + 1) 256 + (256 + 1) 40; column head (1024 + 1) 256 + (256 + 1) 4096: together
    1,597,992. Ours has the basis V (1024, 4) and S (4, 4) more. One person: 40 + 4096 values of 2 bytes.
    """
    shape = BackboneShape(1024, 24, 16, 50265, 512)
    method = LoPA(LoPAConfig(), shape, [], torch.Generator().manual_seed(0))
    counts = {name: parameter.numel() for name, parameter in method.named_parameters()}
    assert sum(counts.values()) - counts["V"] - counts["S"] == 1_597_992
    assert counts["V"] + counts["S"] == 4_096 + 16
    assert ProfileSpec(method.profile_tensors()).packed_bytes == 8_272


@pytest.mark.parametrize(
    ("changes", "shared", "values", "packed"),
    [
        ({}, 607_544, 1_576, 3_152),
        ({"private": "rows"}, 607_528, 40, 80),
        ({"rank": 1}, 302_603, 394, 788),
        ({"instance": False}, 5_392, 1_576, 3_152),
        ({"combine": "concat"}, 611_384, 1_576, 3_152),
        ({"storage": "float32"}, 607_544, 1_576, 6_304),
    ],
    ids=str,
)
def test_counts_at_minilms_size(changes: dict[str, object], shared: int, values: int, packed: int) -> None:
    """d = 384, m = 10, r = 4 unless said."""
    shape = BackboneShape(384, 6, 12, 30522, 510)
    method = LoPA(LoPAConfig.model_validate(changes), shape, [], torch.Generator().manual_seed(0))
    assert sum(parameter.numel() for parameter in method.parameters()) == shared
    assert sum(spec.size for spec in method.profile_tensors()) == values
    assert ProfileSpec(method.profile_tensors()).packed_bytes == packed


@given(m=st.integers(1, 20), r=st.integers(1, 8), d=st.integers(2, 64), form=st.sampled_from(FORMS))
@settings(max_examples=30, deadline=None)
def test_private_values_are_r_times_m_plus_d(m: int, r: int, d: int, form: dict[str, object]) -> None:
    """r (m + d), or r m in the light form; two bytes each; m rows before the text, 2 m beside each other."""
    shape = BackboneShape(d, 1, 1, 9, 64)
    method = LoPA(options(rows=m, rank=r, **form), shape, [], torch.Generator().manual_seed(0))
    spec = ProfileSpec(method.profile_tensors())
    values = r * m if form["private"] == "rows" else r * (m + d)
    assert spec.packed_bytes == 2 * values
    assert [tensor.name for tensor in spec.tensors] == ["lopa.rows", "lopa.columns"][: len(spec.tensors)]
    assert method.prompt_rows() == (2 * m if form["combine"] == "concat" else m)


def test_rows_before_the_text_come_off_its_longest(bert: Backbone) -> None:
    model = trained_with(bert, {"lopa": options(combine="concat")})
    assert model.prompt_rows() == 2 * M
    batch = random_batch(0, 2, 5, 1, len(VOCABULARY))
    ids, mask, _ = batch.tensors()
    profile = {name: torch.tensor(v) for name, v in random_profile(0, 2, model.profile_spec()).items()}
    assert model.states(ids, mask, Frame(profile, mask)).shape == (2, 5, 32)


def test_it_does_nothing_elsewhere_and_cannot_be_folded() -> None:
    method, site = lone_lopa(), Site(0, "query", D, D, "q", 0)
    frame = Frame(people(method, 2), torch.ones(2, 3), records={})
    assert method.at_site(site, torch.zeros(2, 3, D), torch.zeros(2, 3, D), frame) is None
    assert method.at_logits(torch.zeros(2, 2), frame) is None
    assert method.training_term(torch.zeros(2, 2), None, frame) is None
    assert not method.needs_generic_pass()
    with pytest.raises(NotImplementedError, match="lopa cannot be folded"):
        method.fold(site, {name: values[0] for name, values in people(method, 1).items()})


@pytest.mark.parametrize("combine", ["add", "concat"])
def test_why_rounds_leave_the_prompt_alone(bert: Backbone, combine: str) -> None:
    """From the gradient of the shared rows that a person's rows are added to follows that of U_u: times V.

    Learning ends where that gradient is the prior's, a multiple of U_u itself.
    """
    model = trained_with(bert, {"lopa": options(combine=combine, private="rows")})
    batch, profile = random_batch(1, 4, 6, 1, len(VOCABULARY)), random_profile(1, 1, model.profile_spec())
    found = torch_gradients(model, batch, profile).grads
    seen = found["methods.lopa.Z" if combine == "add" else "methods.lopa.Z_own"]
    basis = model.get_parameter("methods.lopa.V").detach().numpy()
    assert_close_relative("U_u", seen @ basis, found["lopa.rows"][0])
    assert LoPA.round_tensors == ()
    config = validated(CoordinatorConfig, {"methods": {"lopa": {}}}, "config")
    assert config.trainables == ("task.*",)


def rebased(method: LoPA, users: int, **sizes: float) -> dict[str, Floats]:
    """The new factors, after a look that no prompt changed."""
    texts = numbers("texts", users, 3, D)
    old = {name: v * sizes.get(name.partition(".")[2], 1.0) for name, v in people(method, users).items()}
    before = prompt_of(method, old, texts)
    new = method.rebase({**old, "other.tensor": torch.ones(users, 1)})
    assert new.keys() == {*old, "other.tensor"}
    own = {name: new[name] for name in old}
    assert_close_relative("prompt", prompt_of(method, own, texts), before, 1e-5)
    return {name: values.numpy() for name, values in own.items()}


@forms
def test_rebase_makes_second_moments_the_identity_and_changes_no_prompt(form: dict[str, object]) -> None:
    """Computed in float64 and stored in float32, so 1e-5; the factors are of sizes 7 and 0.01 before."""
    found = rebased(lone_lopa(**form), 8, rows=7.0, columns=0.01)
    for name, factors in found.items():
        rows = factors.reshape(-1, R).astype(np.float64)
        assert_close_relative(name, rows.T @ rows / len(rows), np.eye(R))


@given(
    form=st.sampled_from(FORMS),
    users=st.integers(1, 5),
    rank=st.sampled_from([1, 2, 4]),
    size=st.sampled_from([1e-4, 1.0, 100.0]),
)
@settings(max_examples=30, deadline=None)
def test_rebase_of_any_people_is_finite_and_changes_no_prompt(
    form: dict[str, object], users: int, rank: int, size: float
) -> None:
    found = rebased(lone_lopa(rows=1, **{**form, "rank": rank}), users, rows=size, columns=size)
    for factors in found.values():
        rows = factors.reshape(-1, rank).astype(np.float64)
        assert np.linalg.eigvalsh(rows.T @ rows / len(rows))[-1] == pytest.approx(1.0, rel=1e-4)


def test_rebase_with_columns_that_nobody_has_leaves_them_at_zero() -> None:
    method = lone_lopa()
    found = rebased(method, 4, rows=3.0, columns=0.0)
    assert not found["lopa.columns"].any()
    assert np.linalg.matrix_rank(method.S.detach().numpy()) == R  # they can still be learned


@pytest.mark.parametrize("users", [0, 3])
def test_rebase_when_nobody_has_learned_anything_changes_nothing(users: int) -> None:
    method = lone_lopa()
    before = {name: parameter.clone() for name, parameter in method.named_parameters()}
    nobody = {name: torch.zeros_like(values) for name, values in people(method, users).items()}
    found = method.rebase(nobody)
    assert all(torch.equal(found[name], nobody[name]) for name in nobody)
    assert all(torch.equal(values, before[name]) for name, values in method.named_parameters())


@given(users=st.integers(1, 9), features=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_people_start_at_their_coordinates_on_the_leading_directions(
    users: int, features: int, seed: int
) -> None:
    """Column by column; the directions by another way: eigenvectors of the features' second moment."""
    summary = generator(seed, 0, "", "summary").normal(size=(users, features))
    found = lone_lopa().start_users(torch.tensor(summary))
    assert list(found) == ["lopa.rows"]
    assert found["lopa.rows"].shape == (users, M, R)
    assert found["lopa.rows"].dtype == torch.float32
    flat = found["lopa.rows"].numpy().transpose(0, 2, 1).reshape(users, M * R)
    count = min(users, features, M * R)
    assert not flat[:, count:].any()
    directions = np.linalg.eigh(summary.T @ summary).eigenvectors[:, ::-1]
    wanted = (summary @ directions)[:, :count]
    wanted = wanted * np.sign(wanted[np.abs(wanted).argmax(0), np.arange(count)])
    np.testing.assert_allclose(flat[:, :count], wanted, atol=1e-5)


def test_a_start_is_made_only_where_it_is_asked_for() -> None:
    assert lone_lopa().starts_users()
    assert not lone_lopa(start="zeros").starts_users()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"rank": 0},
        {"private": "columns"},
        {"combine": "divide"},
        {"width": 0},
        {"dropout": 1.0},
        {"init_std": 0.0},
        {"start": "ones"},
        {"storage": "int8"},
    ],
)
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        LoPAConfig.model_validate(wrong)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        LoPAConfig.model_validate({"row": 3})


@pytest.mark.slow
def test_from_a_configuration_to_a_device(tmp_path: Path) -> None:
    """Training, the choice of the recipe, a release, learning and predicting, as people do it."""
    backbone = write_backbone(tmp_path / "backbone", tiny_config("bert"))
    row = {
        "backbone": {"name": str(backbone), "max_tokens": 16},
        "methods": {"lopa": options(rows=2).model_dump()},
        "training": {"max_steps": 40, "batch_size": 16, "evaluate_every": 20, "shared_rate": 0.01},
        "recipe": {"steps": [16], "prior_strength": [0.003, 0.01], "k": [4]},
    }
    examples = [example for n in range(8) for example in random_examples(0, f"user {n}", 24)]
    trained = train(validated(CoordinatorConfig, row, "config"), examples, tmp_path / "training", threads=1)
    release = publish(trained, tmp_path / "release")
    assert max(release.manifest.parity.values()) <= TOLERANCE
    assert set(release.manifest.trainables) == {"task.weight", "task.bias"}
    own, path = random_examples(0, "somebody new", 8), tmp_path / "profile.umbel"
    learned = learn_profile(release, own, path)
    assert learned.nll_personal < learned.nll_generic
    assert learned.file_bytes == 40 + 2 * R * (2 + 32)
    assert np.abs(read_profile(release, path)["lopa.rows"]).max() > 0
    texts = [example.text for example in own]
    mine, plain = (predict_texts(release, texts, who) for who in (path, None))
    assert [row.probability for row in mine] != [row.probability for row in plain]
