"""The places inside an encoder where a method may act, and the wrapper that lets it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

import torch
from torch import Tensor, nn

from umbel.shared.errors import BackboneError

# One row per family and spelling: (pattern of the Linear's path, roles of equal slices of its output rows).
_PATTERNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"\.(\d+)\.attention\.self\.query$", ("query",)),  # BERT, RoBERTa
    (r"\.(\d+)\.attention\.self\.key$", ("key",)),
    (r"\.(\d+)\.attention\.self\.value$", ("value",)),
    (r"\.(\d+)\.intermediate\.dense$", ("feed_forward_in",)),
    (r"\.(\d+)\.output\.dense$", ("feed_forward",)),
    (r"\.(\d+)\.attention\.q_lin$", ("query",)),  # DistilBERT
    (r"\.(\d+)\.attention\.k_lin$", ("key",)),
    (r"\.(\d+)\.attention\.v_lin$", ("value",)),
    (r"\.(\d+)\.ffn\.lin1$", ("feed_forward_in",)),
    (r"\.(\d+)\.ffn\.lin2$", ("feed_forward",)),
    (r"\.(\d+)\.attn\.Wqkv$", ("query", "key", "value")),  # ModernBERT
    (r"\.(\d+)\.mlp\.Wi$", ("feed_forward_in",)),
    (r"\.(\d+)\.mlp\.Wo$", ("feed_forward",)),
)


@final
@dataclass(frozen=True, slots=True)
class Site:
    """One projection of the encoder, or one slice of a fused projection.

    Attributes:
        layer: Layer index, from 0.
        role: "query", "key", "value", "feed_forward_in" or "feed_forward" (the projections that begin and end
            the feed-forward block).
        d_in: Width of its input.
        d_out: Width of its output.
        path: Path of the Linear inside the encoder.
        offset: First row of the Linear's output that belongs to this site.
    """

    layer: int
    role: str
    d_in: int
    d_out: int
    path: str
    offset: int

    @property
    def name(self) -> str:
        """Name that can be part of a parameter's name, such as "layer_0_query"."""
        return f"layer_{self.layer}_{self.role}"


@final
@dataclass(slots=True)
class Frame:
    """What a method sees during one forward pass.

    Attributes:
        profile: Private tensors by full name, a row per example: (batch, *shape).
        mask: (batch, seq) 1 for tokens, 0 for padding.
        keep: (batch, 1) 1 where the example's profile counts, 0 where personalised dropout hides it; None:
            all count.
        block_inputs: (batch, seq, d) the input of each feed-forward block that was reached, by layer.
        records: What methods noted for their training terms, by key; None while nothing is recorded.
        owner: (batch,) int64 whose text each row is; None where the caller gave a row per example itself.
        generic_states: (batch, seq, d) the last token states of the same texts without profiles, without a
            gradient; None unless a method that is on needs the generic pass.
        shift: (batch, d) what every private prompt row is moved by besides, so that its gradient can be asked
            for; None nearly always.
        embedding: (batch, d) the mean of each text's last token states; None before they are there.
        users: Private tensors as the caller gave them, (users, *shape); None where there may be more users
            than examples, as in training.
        made: What methods have made of private tensors for all of their sites at once, by key.
        everyone: (rows, ...) -> (batch, ...): what other workers have of the batch besides, where several
            processes share it in training; None where these rows are all of it.
    """

    profile: Mapping[str, Tensor]
    mask: Tensor
    keep: Tensor | None = None
    block_inputs: dict[int, Tensor] = field(default_factory=dict)
    records: dict[str, list[Tensor]] | None = None
    owner: Tensor | None = None
    generic_states: Tensor | None = None
    shift: Tensor | None = None
    embedding: Tensor | None = None
    users: Mapping[str, Tensor] | None = None
    made: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    everyone: Callable[[Tensor], Tensor] | None = None

    def of_batch(self, rows: Tensor) -> Tensor:
        """Returns (batch, ...) of the whole batch, for terms that compare its rows with each other."""
        return rows if self.everyone is None else self.everyone(rows)

    def once(self, key: str, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Returns what `make` gave when it was first asked for in this pass."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def per_user(self, make: Callable[..., tuple[Tensor, ...]], *names: str) -> tuple[Tensor, ...]:
        """Returns tensors made of private ones, a row per example, but made once per user where that can be.

        Args:
            make: Private tensors (n, *shape), in the order of `names` -> tensors (n, ...), row by row.
            names: Full names of private tensors.
        """
        if self.users is not None and self.owner is not None and self.keep is None:
            owner = self.owner
            return tuple(rows_of(owner, made) for made in make(*(self.users[name] for name in names)))
        own = [self.profile[name] for name in names]
        if self.keep is not None:
            own = [values * self.keep.reshape(-1, *[1] * (values.ndim - 1)) for values in own]
        return make(*own)

    def record(self, key: str, value: Tensor) -> None:
        """Notes a tensor for a training term; does nothing outside training."""
        if self.records is not None:
            self.records.setdefault(key, []).append(value)


class ActsAtSite(Protocol):
    """Anything that can add to a projection's output."""

    def at_site(self, site: Site, x: Tensor, h: Tensor, frame: Frame) -> Tensor | None:
        """Returns what to add to `h`, or None."""


@final
@dataclass(slots=True)
class FrameHolder:
    """Carries the current frame to the wrapped projections of one model."""

    frame: Frame | None = field(default=None)


@final
class InjectedLinear(nn.Module):
    """A frozen-in-place Linear to whose output the methods add.

    out = W x + b + sum over methods of delta(site, x, W x + b), each delta at the site's own rows.
    """

    def __init__(
        self, base: nn.Linear, sites: Sequence[Site], methods: Sequence[ActsAtSite], holder: FrameHolder
    ):
        super().__init__()
        self.base = base
        self.sites = tuple(sites)
        # A tuple keeps them out of the module tree: the model owns the methods, each parameter has one name.
        self._methods = tuple(methods)
        self._holder = holder

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, seq, d_in) to (batch, seq, d_out)."""
        h: Tensor = self.base(x)
        frame = self._holder.frame
        if frame is None:
            return h
        parts = [self._at(site, x, h, frame) for site in self.sites]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _at(self, site: Site, x: Tensor, h: Tensor, frame: Frame) -> Tensor:
        if site.role == "feed_forward_in":
            frame.block_inputs[site.layer] = x
        own = h if len(self.sites) == 1 else h[..., site.offset : site.offset + site.d_out]
        total = own
        for method in self._methods:
            delta = method.at_site(site, x, own, frame)
            if delta is not None:
                total = total + delta
        return total


def rows_of(owner: Tensor, values: Tensor) -> Tensor:
    """Returns values[owner] as a matrix product, whose gradient is one too and so has an ONNX form.

    Args:
        owner: (batch,) int64, each below users.
        values: (users, *shape).

    Returns:
        (batch, *shape).
    """
    choice = (owner.unsqueeze(1) == torch.arange(values.shape[0], device=owner.device)).to(values.dtype)
    return (choice @ values.reshape(values.shape[0], -1)).reshape(owner.shape[0], *values.shape[1:])


def find_sites(encoder: nn.Module) -> tuple[Site, ...]:
    """Finds every projection and feed-forward output of an encoder, ordered by layer and role.

    Raises:
        BackboneError: No attention projection was found.
    """
    sites: list[Site] = []
    for path, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            sites += _sites_of(path, module)
    if not any(site.role == "query" for site in sites):
        raise BackboneError(
            f"found no query projection in a {type(encoder).__name__}",
            hint="umbel knows the layer names of BERT, RoBERTa, DistilBERT and ModernBERT.",
        )
    return tuple(sorted(sites, key=lambda site: (site.layer, site.role)))


def _sites_of(path: str, module: nn.Linear) -> list[Site]:
    if path.endswith(".attention.output.dense"):
        return []
    for pattern, roles in _PATTERNS:
        if match := re.search(pattern, path):
            width = module.out_features // len(roles)
            return [
                Site(int(match.group(1)), role, module.in_features, width, path, index * width)
                for index, role in enumerate(roles)
            ]
    return []


def inject(
    encoder: nn.Module, sites: Sequence[Site], methods: Sequence[ActsAtSite], holder: FrameHolder
) -> None:
    """Replaces, in place, each Linear that holds a site by an `InjectedLinear`."""
    by_path: dict[str, list[Site]] = {}
    for site in sites:
        by_path.setdefault(site.path, []).append(site)
    for path, own in by_path.items():
        parent = encoder.get_submodule(path.rpartition(".")[0])
        name = path.rpartition(".")[2]
        base = getattr(parent, name)
        setattr(
            parent, name, InjectedLinear(base, sorted(own, key=lambda site: site.offset), methods, holder)
        )
