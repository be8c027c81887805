"""A bank that grows: nobody's output changes, with bits or logits taken along and without a profile."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coordinator.conftest import VOCABULARY, TinyBackbone
from tests.coordinator.personal import LABELS, oracle_of, random_batch, random_profile, trained_with
from tests.coordinator.test_publish import REPORT
from tests.numeric import assert_close_relative
from tests.oracles import xpeft as oracle
from torch import Tensor

from umbel import cli
from umbel.coordinator.artifacts import TrainedModel, load_trained, rebuild, save_trained
from umbel.coordinator.config import CoordinatorConfig, validated
from umbel.coordinator.growth import grow
from umbel.coordinator.methods import xpeft
from umbel.coordinator.model import PersonalModel
from umbel.shared.errors import ConfigError
from umbel.shared.growth import LOW_LOGIT, grown_file, grown_profile
from umbel.shared.profile import pack_profile, unpack_profile
from umbel.shared.recipe import LearningRecipe
from umbel.shared.rng import generator

SMALL, LARGE = "a" * 64, "b" * 64
forms = pytest.mark.parametrize(
    ("mask", "zone"),
    [("hard", 0.0), ("hard", 0.5), ("soft", 0.0)],
    ids=["hard", "hard with a dead zone", "soft"],
)


def trained_of(tiny: TinyBackbone, methods: dict[str, Any]) -> TrainedModel:
    backbone = tiny("bert")
    row = {"backbone": {"name": backbone.name, "max_tokens": 16}, "methods": methods}
    config = validated(CoordinatorConfig, row, "here")
    model = trained_with(backbone, config.method_configs())
    tensors = {name: model.get_parameter(name).detach() for name in model.shared_names()}
    for name, value in list(tensors.items()):
        if name.endswith(".up"):  # training has moved their sum away from zero
            noise = generator(0, 0, "", f"moved {name}").normal(0.1, 0.1, tuple(value.shape))
            tensors[name] = value + torch.tensor(noise.astype(np.float32))
    recipe = LearningRecipe(steps=3)
    return TrainedModel(config, LABELS, backbone.sha256, "f" * 64, recipe, REPORT, tensors)


def small(tiny: TinyBackbone, **options: Any) -> TrainedModel:
    return trained_of(tiny, {"xpeft": {**oracle.TINY, **options}})


def learned(model: PersonalModel, seed: int, users: int = 1) -> dict[str, Any]:
    """Returns profiles whose up-masks say nothing in the first layer."""
    profile = random_profile(seed, users, model.profile_spec())
    profile["xpeft.up"][:, 0] = 0.0
    return profile


def logits_of(model: PersonalModel, profile: dict[str, Any], seed: int) -> Any:
    batch = random_batch(seed, 4, 8, len(profile["xpeft.up"]), len(VOCABULARY))
    tensors = {name: torch.tensor(values) for name, values in profile.items()}
    return model(*batch.tensors(), tensors).detach().numpy()


@forms
@pytest.mark.parametrize("adapters", [8, 9, 20])
def test_nobodys_logits_change(tiny_backbone: TinyBackbone, mask: str, zone: float, adapters: int) -> None:
    """A person's packed file taken along, and nobody's zeros: the rounding of a mean in float32 is left."""
    trained = small(tiny_backbone, mask=mask, dead_zone=zone)
    _, before = rebuild(trained)
    _, after = rebuild(grow(trained, {"xpeft": {"adapters": adapters}}))
    specs = before.profile_spec(), after.profile_spec()
    assert specs[1].tensors[0].shape == (2, adapters)
    fill = LOW_LOGIT if mask == "soft" else None
    for seed in range(4):
        packed = pack_profile(specs[0], learned(before, seed), SMALL)
        moved = grown_file(*specs, packed, (SMALL, LARGE), fill)
        was, now = unpack_profile(specs[0], packed, SMALL), unpack_profile(specs[1], moved, LARGE)
        personal = logits_of(before, was, seed)
        assert_close_relative("personal", logits_of(after, now, seed), personal, 2e-6)
        generic = logits_of(before, specs[0].zeros(), seed)
        assert_close_relative("generic", logits_of(after, specs[1].zeros(), seed), generic, 2e-6)
        assert not np.allclose(personal, generic, rtol=1e-3)


@forms
def test_the_oracle_says_the_same(tiny_backbone: TinyBackbone, mask: str, zone: float) -> None:
    """In float64 only the rounding of the new adapters to float32 is left."""
    trained = small(tiny_backbone, mask=mask, dead_zone=zone)
    _, before = rebuild(trained)
    _, after = rebuild(grow(trained, {"xpeft": {"adapters": 15}}))
    batch = random_batch(0, 4, 8, 2, len(VOCABULARY))
    specs = before.profile_spec(), after.profile_spec()
    for own in (learned(before, 0, 2), specs[0].zeros(2)):
        profile = own
        if mask == "hard":  # what a device keeps
            rows = [{name: values[user : user + 1] for name, values in own.items()} for user in (0, 1)]
            kept = [unpack_profile(specs[0], pack_profile(specs[0], row, SMALL), SMALL) for row in rows]
            profile = {name: np.concatenate([row[name] for row in kept]) for name in profile}
        longer = grown_profile(*specs, profile, LOW_LOGIT)
        found, wanted = oracle_of(after, batch, longer), oracle_of(before, batch, profile)
        assert_close_relative("logits", found.logits, wanted.logits, 3e-7)


@given(
    count=st.integers(2, 30),
    more=st.integers(1, 30),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_new_adapters_keep_the_mean_and_the_spread(
    count: int, more: int, shape: tuple[int, int], seed: int
) -> None:
    bank, noise = (
        generator(seed, 0, "", name).normal(mean, 0.3, (size, *shape)).astype(np.float32)
        for name, mean, size in (("bank", 0.5, count), ("noise", 2.0, more))
    )
    found = xpeft._grown(torch.tensor(bank), torch.tensor(noise)).numpy().astype(np.float64)
    np.testing.assert_array_equal(found[:count], bank)
    np.testing.assert_allclose(
        found, oracle.grown(bank.astype(np.float64), noise.astype(np.float64)), rtol=1e-6
    )
    mean = bank.astype(np.float64).mean(0)
    np.testing.assert_allclose(found.mean(0), mean, atol=2e-7)
    spread = np.sqrt(np.mean((found[count:] - mean) ** 2))
    expected = 0.0 if more == 1 else np.sqrt(np.mean((bank - mean) ** 2))
    assert spread == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_new_adapters_can_be_told_apart_and_chosen(tiny_backbone: TinyBackbone) -> None:
    """From a person's own bits the new logits have a gradient, and no two the same."""
    _, model = rebuild(grow(small(tiny_backbone), {"xpeft": {"adapters": 11}}))
    profile = {n: torch.tensor(v, requires_grad=True) for n, v in model.profile_spec().zeros().items()}
    batch = random_batch(0, 6, 8, 1, len(VOCABULARY))
    nll = model.task.nll(model(*batch.tensors(), profile), torch.tensor(batch.labels)).sum()
    gradient = torch.autograd.grad(nll, profile["xpeft.up"])[0][0, :, 7:]  # (layers, 4)
    assert gradient.abs().min() > 1e-9
    assert all(len(set(row.tolist())) == 4 for row in gradient)


def test_all_else_stays(tiny_backbone: TinyBackbone) -> None:
    methods = {"plora": {"rank": 2, "user_size": 3}, "xpeft": oracle.TINY}
    trained = trained_of(tiny_backbone, methods)
    grown = grow(trained, {"xpeft": {"adapters": 9}})
    assert grown.tensors.keys() == trained.tensors.keys()
    for name, value in trained.tensors.items():
        there: Tensor = grown.tensors[name]
        matrices = name.endswith((".down", ".up"))
        assert there.shape == ((9, *value.shape[1:]) if matrices else value.shape)
        assert torch.equal(there[:7] if matrices else there, value)
    assert grown.config.methods["plora"] == trained.config.methods["plora"]
    assert (grown.recipe, grown.labels) == (trained.recipe, trained.labels)
    assert grown.report["grown_from"] == trained.fingerprint
    assert grown.fingerprint != trained.fingerprint


def test_growth_gives_the_same_bits_again_and_never_adds_the_same(tiny_backbone: TinyBackbone) -> None:
    trained = small(tiny_backbone)
    one, two = (grow(trained, {"xpeft": {"adapters": 9}}) for _ in range(2))
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert one.fingerprint == two.fingerprint
    more = grow(one, {"xpeft": {"adapters": 11}})
    name = "methods.xpeft.banks.layer_0_feed_forward.up"
    mean = trained.tensors[name].mean(0)
    first, second = ((bank - mean).flatten(1) for bank in (more.tensors[name][7:9], more.tensors[name][9:]))
    cosines = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=-1)
    assert cosines.abs().max() < 0.9


@pytest.mark.parametrize(
    ("options", "changes", "problems"),
    [
        ({}, {"adapters": 6}, ["adapters is 6, expected more than 7"]),
        ({}, {"adapters": 9, "kept": 4}, ["kept differs"]),
        ({"dead_zone": 0.5}, {"adapters": 9, "dead_zone": 0.25}, ["dead_zone differs"]),
        (
            {"dead_zone": 0.0},
            {"mask": "soft"},
            ["adapters is 7, expected more than 7", "mask differs"],
        ),
        (
            {"bank": "random"},
            {"adapters": 9},
            ["bank is random: it is taken relative to its mean, which would move"],
        ),
    ],
)
def test_what_would_change_somebody_is_refused(
    tiny_backbone: TinyBackbone, options: dict[str, Any], changes: dict[str, Any], problems: list[str]
) -> None:
    with pytest.raises(ConfigError, match="the bank of xpeft cannot grow like this") as caught:
        grow(small(tiny_backbone, **options), {"xpeft": changes})
    assert list(caught.value.problems) == problems


def test_what_cannot_grow_is_refused(tiny_backbone: TinyBackbone) -> None:
    trained = trained_of(tiny_backbone, {"plora": {"rank": 2, "user_size": 3}})
    with pytest.raises(ConfigError, match="plora has nothing that could grow"):
        grow(trained, {"plora": {"rank": 4}})
    with pytest.raises(ConfigError, match="has no such method") as caught:
        grow(trained, {"xpeft": {"adapters": 9}})
    assert list(caught.value.problems) == ["methods.xpeft is not there"]
    with pytest.raises(ConfigError, match="nothing would grow"):
        grow(trained, {"plora": {"rank": 2}})
    with pytest.raises(ConfigError, match="the grown configuration cannot be used"):
        grow(trained, {"plora": {"ranks": 2}})


def test_as_it_is_typed(
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = small(tiny_backbone)
    save_trained(Path("training"), trained)
    command = ["coordinator", "grow", "training", "--out", "grown"]
    assert cli.main([*command, "--set", "xpeft.adapters=12"]) == 0
    assert "Publish it with: umbel coordinator publish grown --out release" in capsys.readouterr().out
    wanted = grow(trained, {"xpeft": {"adapters": 12}})
    found = load_trained(Path("grown"))
    assert replace(found, tensors={}) == replace(wanted, tensors={})
    assert all(torch.equal(found.tensors[name], value) for name, value in wanted.tensors.items())
    assert cli.main([*command, "--set", "xpeft.adapters=13"]) == 2  # the folder is taken
    for wrong in ("adapters", "xpeft.adapters", "adapters=12", "xpeft.adapters=twelve"):
        assert cli.main([*command[:-1], "other", "--set", wrong]) == 2, wrong
        err = capsys.readouterr().err
        assert "--set takes METHOD.OPTION=VALUE" in err
    assert not Path("other").exists()


def test_what_onboards_does_not_grow(tiny_backbone: TinyBackbone) -> None:
    """Its network writes profiles of the smaller size, and nothing could be published."""
    trained = small(tiny_backbone)
    row = {**trained.config.model_dump(mode="json"), "onboarding": {"steps": 1}}
    onboards = replace(trained, config=validated(CoordinatorConfig, row, "here"))
    with pytest.raises(ConfigError, match="onboarding network"):
        grow(onboards, {"xpeft": {"adapters": oracle.TINY["adapters"] + 1}})
