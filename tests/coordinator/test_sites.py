"""Where methods may act: the same five roles in each family, whatever the family calls its layers."""

import pytest
import torch
from tests.coordinator.conftest import FAMILIES, TinyBackbone
from torch import Tensor, nn

from umbel.coordinator.sites import Frame, FrameHolder, InjectedLinear, Site, find_sites, inject
from umbel.shared.errors import BackboneError

ROLES = ("feed_forward", "feed_forward_in", "key", "query", "value")
# The first layer's paths and row offsets, in the order of ROLES, as the families' own source names them.
FIRST_LAYER = {
    "bert": [
        ("encoder.layer.0.output.dense", 0),
        ("encoder.layer.0.intermediate.dense", 0),
        ("encoder.layer.0.attention.self.key", 0),
        ("encoder.layer.0.attention.self.query", 0),
        ("encoder.layer.0.attention.self.value", 0),
    ],
    "roberta": [
        ("encoder.layer.0.output.dense", 0),
        ("encoder.layer.0.intermediate.dense", 0),
        ("encoder.layer.0.attention.self.key", 0),
        ("encoder.layer.0.attention.self.query", 0),
        ("encoder.layer.0.attention.self.value", 0),
    ],
    "distilbert": [
        ("transformer.layer.0.ffn.lin2", 0),
        ("transformer.layer.0.ffn.lin1", 0),
        ("transformer.layer.0.attention.k_lin", 0),
        ("transformer.layer.0.attention.q_lin", 0),
        ("transformer.layer.0.attention.v_lin", 0),
    ],
    "modernbert": [
        ("layers.0.mlp.Wo", 0),
        ("layers.0.mlp.Wi", 0),
        ("layers.0.attn.Wqkv", 32),
        ("layers.0.attn.Wqkv", 0),
        ("layers.0.attn.Wqkv", 64),
    ],
}


class Marker:
    """A method that adds a constant at one role and remembers what it saw."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.seen: list[tuple[Site, Tensor, Tensor]] = []

    def at_site(self, site: Site, x: Tensor, h: Tensor, frame: Frame) -> Tensor | None:
        self.seen.append((site, x, h))
        return torch.ones_like(h) if site.role == self.role else None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_five_sites_a_layer(tiny_backbone: TinyBackbone, family: str) -> None:
    backbone = tiny_backbone(family)
    sites = find_sites(backbone.module)
    assert [(site.layer, site.role) for site in sites] == [
        (layer, role) for layer in range(backbone.shape.layers) for role in ROLES
    ]
    assert [(site.path, site.offset) for site in sites[:5]] == FIRST_LAYER[family]
    assert {(site.d_in, site.d_out) for site in sites if site.role in ("key", "query", "value")} == {(32, 32)}
    assert {(site.d_in, site.d_out) for site in sites if site.role == "feed_forward"} == {(48, 32)}
    gates = 2 if family == "modernbert" else 1
    assert {(s.d_in, s.d_out) for s in sites if s.role == "feed_forward_in"} == {(32, 48 * gates)}
    assert [site.name for site in sites[:2]] == ["layer_0_feed_forward", "layer_0_feed_forward_in"]
    assert len({site.name for site in sites}) == len(sites)


def test_a_module_without_attention_is_refused() -> None:
    with pytest.raises(BackboneError) as caught:
        find_sites(nn.Sequential(nn.Linear(4, 4)))
    assert caught.value.headline == "found no query projection in a Sequential"
    assert caught.value.hint == "umbel knows the layer names of BERT, RoBERTa, DistilBERT and ModernBERT."


@pytest.fixture
def fused() -> tuple[nn.Sequential, list[Site], FrameHolder]:
    """A fused projection of two sites, 3 -> 2 + 2, and the holder of its frame."""
    sites = [Site(0, "value", 3, 2, "0", 2), Site(0, "query", 3, 2, "0", 0)]
    return nn.Sequential(nn.Linear(3, 4)), sites, FrameHolder()


def test_a_method_acts_at_its_rows_of_a_fused_projection(
    fused: tuple[nn.Sequential, list[Site], FrameHolder],
) -> None:
    model, sites, holder = fused
    x = torch.arange(6.0).reshape(1, 2, 3)
    plain = model(x)
    marker = Marker("value")
    inject(model, sites, [marker], holder)
    holder.frame = Frame({}, torch.ones(1, 2))
    torch.testing.assert_close(model(x), plain + torch.tensor([0.0, 0.0, 1.0, 1.0]), rtol=0, atol=0)
    assert [site.role for site, _, _ in marker.seen] == ["query", "value"]  # in the order of the rows
    torch.testing.assert_close(marker.seen[1][2], plain[..., 2:], rtol=0, atol=0)
    torch.testing.assert_close(marker.seen[1][1], x, rtol=0, atol=0)


def test_methods_add_up_and_each_sees_the_plain_projection(
    fused: tuple[nn.Sequential, list[Site], FrameHolder],
) -> None:
    model, sites, holder = fused
    x = torch.ones(1, 1, 3)
    plain = model(x)
    first, second = Marker("query"), Marker("query")
    inject(model, sites, [first, second], holder)
    holder.frame = Frame({}, torch.ones(1, 1))
    torch.testing.assert_close(model(x)[..., :2], plain[..., :2] + 2.0)
    torch.testing.assert_close(second.seen[0][2], plain[..., :2], rtol=0, atol=0)


def test_without_a_frame_nothing_acts(fused: tuple[nn.Sequential, list[Site], FrameHolder]) -> None:
    model, sites, holder = fused
    x = torch.ones(1, 1, 3)
    plain = model(x)
    marker = Marker("query")
    inject(model, sites, [marker], holder)
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0)
    assert marker.seen == []


def test_injection_keeps_the_linear_and_adds_no_parameters(
    fused: tuple[nn.Sequential, list[Site], FrameHolder],
) -> None:
    model, sites, holder = fused
    base = model[0]
    inject(model, sites, [Marker("query")], holder)
    injected = model[0]
    assert isinstance(injected, InjectedLinear)
    assert injected.base is base
    assert [name for name, _ in model.named_parameters()] == ["0.base.weight", "0.base.bias"]


def test_records_are_kept_only_when_asked_for() -> None:
    quiet, loud = Frame({}, torch.ones(1, 1)), Frame({}, torch.ones(1, 1), records={})
    for frame in (quiet, loud):
        frame.record("key", torch.ones(1))
        frame.record("key", torch.zeros(1))
    assert quiet.records is None
    assert loud.records is not None
    assert [value.item() for value in loud.records["key"]] == [1.0, 0.0]


def test_what_is_made_of_private_tensors_is_made_once_per_user() -> None:
    users = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([[5.0], [6.0]])}
    owner, mask = torch.tensor([1, 0, 1, 1]), torch.ones(4, 1)
    rows = {name: values[owner] for name, values in users.items()}
    sizes: list[int] = []

    def make(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(a))
        return (a * b).sum(-1, keepdim=True), torch.stack([a, a], dim=-1)

    once = Frame(rows, mask, owner=owner, users=users).per_user(make, "a", "b")
    each = Frame(rows, mask, owner=owner).per_user(make, "a", "b")
    assert sizes == [2, 4]
    for one, other in zip(once, each, strict=True):
        assert torch.equal(one, other)
    # Whom personalised dropout hides has zeros, which is nobody's own row.
    keep = torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    hidden = Frame(rows, mask, owner=owner, users=users, keep=keep).per_user(make, "a", "b")
    assert sizes == [2, 4, 4]
    assert not hidden[0][1].any()
    assert torch.equal(hidden[1][2], each[1][2])
